"""What brings a guest to a controller, as far as the controller knows: a PCI function is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vfio_user.device import Dma


class GuestInterrupts(Protocol):
    """The guest's interrupts, those of the mechanism that it uses."""

    @property
    def active(self) -> str:
        """ "msix", "intx", or another mechanism's name."""
        ...

    def trigger(self, vector: int = 0) -> None:
        """Interrupt the guest; with INTx every vector is the one line."""

    def lower(self) -> None:
        """Lower INTx; with MSI-X there is nothing to lower."""


class Port(Protocol):
    """The guest's memory, its interrupts, and turns to work where handlers run."""

    @property
    def dma(self) -> Dma:
        """The guest's memory, by IOVA."""

    @property
    def interrupts(self) -> GuestInterrupts:
        """The guest's interrupts."""

    def defer(self, work: Callable[[], None]) -> None:
        """Do `work` once the requests that came together are answered, on the session's thread."""

    def call_soon(self, work: Callable[[], None]) -> None:
        """Do `work` on the session's thread, between two messages; any thread may ask for it."""
