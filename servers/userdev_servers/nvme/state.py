"""What a controller keeps: all that resets clear, migrations bring along, and checks hold to what can be.

Registers of PCI are with the function (`nvme.py`), which is a `ControllerState` too.
"""

from __future__ import annotations

from dataclasses import dataclass

from userdev_servers.nvme import checks
from userdev_servers.nvme.model import Model
from userdev_servers.nvme.spec import PAGE, Cc, Csts
from vfio_user.device import state


@dataclass
class Statistics:
    """The counters of SMART (figure 194), since the first power-on."""

    reads: int = 0
    writes: int = 0
    """Commands."""
    sectors_read: int = 0
    sectors_written: int = 0
    """Of 512 bytes."""
    media_errors: int = 0
    errors: int = 0
    """Of commands, in the error log or no longer there."""


class ControllerState:
    """The declared state of a controller."""

    model: Model

    interrupt_mask: int = state(0, bits=32)
    configuration: int = state(0, bits=32, check=checks.configuration)
    """Register CC."""
    status: int = state(0, keep=True, bits=5)
    """Register CSTS."""

    saved_queues: list[list[list[int]]] = state([[], []], bits=64, depth=3, check=checks.queues)
    """What is saved of queues, and what they are made of again: completion queues, submission queues."""
    shadow_buffers: list[int] = state([], bits=64, check=checks.shadow_buffers)
    """Addresses of shadow doorbells and of event indexes, once the guest has given them."""
    settings: dict[int, int] = state({}, bits=32, check=checks.settings)
    """Features that were set, by identifier."""
    clock: list[int] = state([0, 0], check=checks.clock)
    """Timestamp feature: milliseconds to add to the host's clock, and whether the guest set it."""
    event_requests: list[int] = state([], bits=16, check=checks.event_requests)
    """Command identifiers of Asynchronous Event Requests that wait."""
    events: list[list[int]] = state([], bits=8, depth=2, check=checks.events)
    """Events that wait for a request: type, information, log page."""
    event_types_sent: list[int] = state([], bits=8, check=checks.event_types)
    """Types that are silent until their log page is read."""
    changed_namespaces: list[int] = state([], bits=32, check=checks.changed_namespaces)

    serial: str = state("", keep=True, check=checks.serial)
    saved_namespaces: list[list[int]] = state([], keep=True, bits=64, depth=2, check=checks.namespaces)
    errors: list[bytes] = state([], keep=True, check=checks.errors)
    statistics: Statistics = state(Statistics(), keep=True, bits=64)

    @property
    def page_size(self) -> int:
        """The guest's."""
        return PAGE << ((self.configuration & Cc.PAGE_SIZE) >> 7)

    @property
    def enabled(self) -> bool:
        """Whether CSTS.RDY is set: commands are done."""
        return bool(self.status & Csts.READY)

    def forget_what_the_guest_set(self) -> None:
        """Make all as a controller reset leaves it (section 7.3.2), but for queues, CC, AQA, ASQ and ACQ."""
        self.interrupt_mask = 0
        self.shadow_buffers = []
        self.settings = {}
        self.event_requests, self.events, self.event_types_sent = [], [], []
