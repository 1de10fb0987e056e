"""A device server with an interposer before it: what a guest is connected to is the interposer."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.process import Child
from vfio_user.harness.scratch import Scratch, listen
from vfio_user.harness.server import Device, DeviceServer
from vfio_user.interposer.control.client import Control


class InterposedServer(DeviceServer):
    """`path` is where a client connects, `server_path` where the server listens, `control` the interposer's commands.

    The interposer inherits sockets that listen already. Raises `ServerError`.
    """

    def __init__(
        self,
        device: Device,
        scratch: Scratch,
        folder: Path,
        name: str,
        *,
        limit: float = 30.0,
        host: Host = LocalHost(),  # noqa: B008  # frozen
        trace: bool = False,
    ) -> None:
        super().__init__(device, scratch, folder, name, limit=limit, host=host)
        self.server_path = self.path
        self.path = scratch.socket_path(f"{name}.front")
        self.control_path = scratch.socket_path(f"{name}.control")
        self.trace = folder / f"{name}.trace" if trace else None
        try:
            with ExitStack() as inherited:
                fds = [inherited.enter_context(listen(path)).fileno() for path in (self.path, self.control_path)]
                self.interposer_argv = host.command(self._command(*fds))
                self.interposer = Child(
                    f"{name}.interposer",
                    self.interposer_argv,
                    log=folder / f"{name}.interposer.log",
                    pass_fds=fds,
                    environment=scratch.environment,
                )
        except BaseException:
            super().stop()
            raise
        self.control = Control(self.control_path)

    @property
    def is_ours(self) -> bool:
        """Whether the server is one of this project's: its saved state is the same bytes whenever it is the same."""
        return bool(self.device.served)

    def stop(self) -> None:
        self.control.close()
        self.interposer.stop()
        super().stop()
        for path in (self.path, self.server_path, self.control_path):
            path.unlink(missing_ok=True)

    def _command(self, front: int, control: int) -> list[str]:
        command = [sys.executable, "-m", "vfio_user", "interpose", "--listen", f"fd:{front}"]
        command += ["--connect", str(self.server_path), "--control", f"fd:{control}"]
        return command + (["--trace", str(self.trace)] if self.trace else [])
