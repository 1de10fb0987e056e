"""A real server behind a real interposer, for tests that are clients: the interposer runs in a thread."""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from userdev.interposer.interposer import BaseInterposer
from userdev_servers.edu import Edu
from vfio_user.client import Client, GuestMemory
from vfio_user.interposer.control.client import InterposerControl
from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.server import Server
from vfio_user.wire import CURRENT, Dialect

EDU = f"{shlex.quote(sys.executable)} -m vfio_user serve edu --fd {{fd}}"
EDU_BY_PATH = f"{shlex.quote(sys.executable)} -m vfio_user serve edu --socket-path {{socket}}"


class Running:
    """An interposer that runs in a thread of the test's."""

    def __init__(self, interposer: BaseInterposer[Any]) -> None:
        self.interposer = interposer
        self._read, self._write = os.pipe()
        self.interposer.loop.watch(self._read, lambda _: self.interposer.loop.stop())
        self._thread = threading.Thread(target=self._run)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._write, b"x")
        self._thread.join(60)
        self._stack.close()
        os.close(self._read)
        os.close(self._write)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with self.interposer:
            self.interposer.run()


class Interposed(Running):
    """An interposer that starts `server_command`, with a control socket; `setup` is more of `Setup`."""

    def __init__(self, folder: Path, server_command: str | None = EDU, **setup: Any) -> None:
        self.folder = folder
        listen, control = str(folder / "listen"), str(folder / "control")
        setup |= {"listen": listen, "server_command": server_command, "control": control}
        super().__init__(interposer := Interposer(Setup(**setup)))
        self.interposer: Interposer = interposer
        self.memory: list[GuestMemory] = []

    def client(self, **options: Any) -> Client:
        return self._stack.enter_context(Client.connect(str(self.folder / "listen"), **options))

    def control(self) -> InterposerControl:
        return self._stack.enter_context(InterposerControl(self.folder / "control"))

    def ram(self, size: int = 1 << 20) -> GuestMemory:
        return self._stack.enter_context(GuestMemory(size))


@contextmanager
def interposed_edu(folder: Path, server_dialect: Dialect = CURRENT, **setup: Any) -> Iterator[Interposed]:
    """Before an edu in this process, which is there at once: where the server's own process does not matter."""
    address = f"unix:{folder / 'edu'}"
    with Server(Edu(), address, dialect=server_dialect), Interposed(folder, None, connect=address, **setup) as between:
        yield between
