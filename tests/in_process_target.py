"""A server of ours in this process, for a conformance suite of either protocol."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from userdev.conformance import Crash
from userdev.transport import Stream, connect


class InProcessTarget:
    """It is started for its first client; `renew` ends it with its device, and the next client gets new ones."""

    pid: int | None = None
    renews = True
    """False where one check is tried: who asks behind it whether it begins conversations asks the same one."""
    _served: ExitStack | None = None
    _address = ""

    def serve(self, served: ExitStack) -> str:
        """Start a server with its device, which end when `served` does; its address."""
        raise NotImplementedError

    def connect(self) -> Stream:
        if self._served is None:
            self._served = ExitStack()
            self._address = self.serve(self._served)
        return connect(self._address, timeout=5)

    def renew(self) -> None:
        if self.renews:
            self._end()

    def _end(self) -> None:
        if self._served is not None:
            served, self._served = self._served, None
            served.close()

    def settle(self, stays: Callable[[Stream, float], None] | None = None) -> None:
        return

    def crashed(self) -> Crash | None:
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
