"""What brings a guest to a controller, as far as the controller knows: a PCI function is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vfio_user.device import Dma


class Interrupts(Protocol):
    """The guest's interrupts, those of the mechanism that it uses."""

    @property
    def active(self) -> str:
        """ "msix", "intx", or another mechanism's name."""
        ...

    def trigger(self, vector: int = 0) -> None: ...

    def lower(self) -> None: ...


class Port(Protocol):
    """The guest's memory, its interrupts, and turns to work where handlers run."""

    @property
    def dma(self) -> Dma: ...

    @property
    def interrupts(self) -> Interrupts: ...

    def defer(self, work: Callable[[], None]) -> None: ...

    def call_soon(self, work: Callable[[], None]) -> None: ...
