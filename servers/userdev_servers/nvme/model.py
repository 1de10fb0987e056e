"""What is decided when a controller is made, and the bounds of what a guest makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

VERSION = 0x00010400
MAX_QUEUES = 64
"""I/O queue pairs."""
QUEUE_ENTRIES, ADMIN_ENTRIES = 2048, 4096
"""Of each I/O queue, and of each admin queue, at most; of the latter AQA cannot say more."""
REQUEST_LIMIT = 4
"""Asynchronous Event Requests that may wait."""
ERROR_ENTRIES, ERROR_ENTRY = 64, 64
"""Entries of the error log, and bytes of each."""
SERIAL_SIZE = 20


@dataclass(frozen=True)
class Model:
    """A controller's numbers. `vectors`: of MSI-X, 0 for a controller with INTx."""

    queues: int
    """I/O queue pairs."""
    vectors: int
    namespaces: int
    shadow_doorbells: bool = True
    """Doorbell Buffer Config is offered."""
    vendor: int = 0
    subsystem_vendor: int = 0


class Modelled(Protocol):
    """Whoever has a model: the checks of saved values need no more of a controller."""

    @property
    def model(self) -> Model:
        """The numbers of the controller."""
