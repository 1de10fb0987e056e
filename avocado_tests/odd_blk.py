"""Disks behind vhost-user that are odd in one way each, served as `FILE:CLASS`: for what QEMU and guests make of it.

Some of them are what must not be: negative controls of the tests that look for it.
"""

from __future__ import annotations

import atexit
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

from userdev_servers.blk import Blk
from userdev_servers.blk.requests import cut_header
from userdev_servers.blk.spec import HEADER, Feature, RequestType
from vhost_user.device import Begun, Chain, Later, Left, queue
from vhost_user.memory import DirtyLog

Image = Annotated[str, "as that of blk"]


class Unordered(Blk):
    """Does each request on a thread of its own, so that they end in any order."""

    def __init__(self, *, image: Image = "") -> None:
        super().__init__(image=image)
        self.backing.together.close()  # which one thread may use

    @queue()
    def serve(self, chain: Chain) -> int | Later:
        return partial(self._do, chain)

    def _do(self, chain: Chain) -> int:
        done = super().serve(chain)
        assert not isinstance(done, Begun | Left)
        return done if isinstance(done, int) else done()


class Holding(Unordered):
    """Keeps the writes to its first sector back while there is a FIFO, until whoever writes there has let go of it.

    Opening it for writing waits until there is such a request. Others are done meanwhile.
    """

    def __init__(self, *, image: Image = "", hold: Annotated[str, "the FIFO"] = "") -> None:
        super().__init__(image=image)
        self.hold = Path(hold)

    def _do(self, chain: Chain) -> int:
        header, _ = cut_header(chain.readable_views)
        if HEADER.unpack(header) == (RequestType.OUT, 0) and self.hold.is_fifo():
            self.hold.read_bytes()
        return super()._do(chain)


class Unlogged(Blk):
    """Writes to the guest's memory and marks nothing of it in the dirty log."""

    def on_attach(self) -> None:
        mock.patch.object(DirtyLog, "mark").start()


class Lacking(Blk):
    """Lacks a feature that drivers agree on, on one host."""

    def __init__(
        self, *, image: Image = "", on: Annotated[str, "that host"] = "", host: Annotated[str, "this one"] = ""
    ) -> None:
        super().__init__(image=image)
        if on == host:
            self.features &= ~Feature.CONFIG_WCE


class Forgetful(Blk):
    """Keeps what is written in memory, and brings it to its image only when it ends in order: a crash loses it."""

    def __init__(self, *, image: Image = "") -> None:
        self._image = Path(image)
        if not self._image.exists():
            self._image.write_bytes(bytes(8 << 20))
        self._memory = Path(f"{self._image}.{os.getpid()}")
        shutil.copyfile(self._image, self._memory)
        atexit.register(shutil.copyfile, self._memory, self._image)
        super().__init__(image=str(self._memory))
