"""Reset kinds, and standing still before memory or state changes under the device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

from userdev.declare.returned import WrongReturn


class ResetKind(Enum):
    """Why a device is reset."""

    DEVICE = "device"
    """DEVICE_RESET: the VMM's reset, as at power-on."""
    FLR = "flr"
    """The guest wrote Initiate Function Level Reset."""
    D3HOT_TO_D0 = "d3hot-to-d0"
    """The guest woke a function that has no No_Soft_Reset."""
    LOST_CONNECTION = "lost-connection"
    """The client went away. Registers keep their values for the next one; work under way must end."""


class Quiesce:
    """A device that needs time to stand still: `PciDevice.on_quiesce` returns one, and `done` is called later.

    `done` and `fail` may be called from any thread, once; the first call counts.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished = False
        self._then: Callable[[], None] | None = None
        self.errno = 0
        """Why the device could not stand still; waiting requests are answered with it. 0: it does."""

    @property
    def finished(self) -> bool:
        """Whether `done` or `fail` was called."""
        return self._finished

    def done(self) -> None:
        """The device stands still: no DMA and no interrupt until `PciDevice.on_resume`."""
        self._finish(0)

    def fail(self, errno: int) -> None:
        """The device cannot stand still; what waited for it is refused with `errno`, if it can be: see `on_quiesce`."""
        self._finish(errno)

    def then(self, call: Callable[[], None]) -> None:
        """For `Standstill`: `call` when finished, on the finishing thread; at once if that was before."""
        with self._lock:
            if not self._finished:
                self._then = call
                return
        call()

    def _finish(self, errno: int) -> None:
        with self._lock:
            if self._finished:
                return
            self._finished, self.errno, call = True, errno, self._then
        if call is not None:
            call()


def answer_of(on_quiesce: Callable[[], Quiesce | None]) -> Quiesce | None:
    """What an author's device says when it is asked to stand still.

    Raises:
        WrongReturn: it is nothing that can be waited for; or what the hook raises.
    """
    answer = on_quiesce()
    if not isinstance(answer, Quiesce | None):
        raise WrongReturn(on_quiesce, answer, "None once it stands still, or a Quiesce whose done() says when")
    return answer
