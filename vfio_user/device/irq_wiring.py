"""SET_IRQS: which eventfd stands for which vector, and what the client has masked (docs/protocol.md 9.3)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from userdev.errors import ProtocolError
from userdev.eventfd import drain, is_eventfd, is_full, signaller
from vfio_user.wire.constants import IrqIndex, IrqInfoFlags, IrqSetFlags

INTX, MSI, MSIX, ERR, REQ = map(int, IrqIndex)
MASK, UNMASK, TRIGGER = IrqSetFlags.MASK, IrqSetFlags.UNMASK, IrqSetFlags.TRIGGER
NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD

INFO_FLAGS = {
    INTX: IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED,
    MSI: IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE,
    MSIX: IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE,
    ERR: IrqInfoFlags.EVENTFD,
    REQ: IrqInfoFlags.EVENTFD,
}


@dataclass
class IrqInfo:
    """The answer of GET_IRQ_INFO for an index; flags are IrqInfoFlags."""

    index: int
    count: int
    flags: int


@dataclass
class IrqLines:
    """The vectors of one index, as the client wired them."""

    info: IrqInfo
    fds: dict[int, int] = field(default_factory=dict)
    """{vector: eventfd}"""
    signals: dict[int, Callable[[], None]] = field(default_factory=dict)
    """{vector: what signals its eventfd}"""
    masked: set[int] = field(default_factory=set)
    """Masked by SET_IRQS, or by themselves (INTx after it fired)."""

    def wire(self, vector: int, fd: int) -> None:
        """Signal `fd` for a vector from now on; it is owned, and the one before is closed."""
        self.cut(vector)
        self.fds[vector] = fd
        self.signals[vector] = signaller(fd)

    def cut(self, vector: int) -> None:
        """Close the vector's eventfd, where it has one."""
        if vector in self.fds:
            del self.signals[vector]
            os.close(self.fds.pop(vector))

    def cut_all(self) -> None:
        """Close the eventfds of all vectors."""
        for vector in list(self.fds):
            self.cut(vector)

    def empty_full(self) -> list[int]:
        """Empty the eventfds that are full, which frees whoever waits for room in one; their vectors."""
        return [vector for vector, fd in list(self.fds.items()) if is_full(fd) and drain(fd)]

    def fire(self, vector: int) -> bool:
        """Signal a vector's eventfd; False if it has none."""
        signal = self.signals.get(vector)
        if signal is None:
            return False
        signal()
        return True


@dataclass(frozen=True)
class IrqRequest:
    """A SET_IRQS message. `action` and `data` are one flag each. It owns its fds until they are taken out of `fds`."""

    index: int
    start: int
    count: int
    action: IrqSetFlags
    data: IrqSetFlags
    bools: bytes = b""
    fds: list[int] = field(default_factory=list)

    @property
    def disables_all(self) -> bool:
        """Whether it has a count of 0, which takes the eventfds of the whole index away."""
        return not self.count

    @property
    def wires(self) -> bool:
        """Sets eventfds, or removes them where it brings none."""
        return self.action is TRIGGER and (self.data is EVENTFD or self.disables_all)

    @property
    def resamples(self) -> bool:
        """Gives the eventfd by which the client unmasks INTx (KVM's resampling), or takes it back."""
        return self.index == INTX and self.action is UNMASK and self.data is EVENTFD

    @property
    def chosen(self) -> list[int]:
        """The vectors that a NONE or BOOL request means: bytes equal to 1 count, as in libvfio-user."""
        if self.data is BOOL:
            return [self.start + place for place, flag in enumerate(self.bools) if flag == 1]
        return list(range(self.start, self.start + self.count)) if self.data is NONE else []

    def check(self, irqs: list[IrqInfo]) -> None:
        """Compare the request with what there is. Disabling everything is allowed for an index without vectors
        (A16).

        Raises:
            ProtocolError: EINVAL, there is no such index or vector, or it does not have what is asked for.
        """
        if self.index >= len(irqs):
            raise ProtocolError(f"SET_IRQS: index {self.index}, and the device has {len(irqs)}")
        if self.disables_all:
            if self.start or self.action is not TRIGGER or self.data is not NONE or self.fds:
                raise ProtocolError("SET_IRQS: count 0 means disable: start 0, TRIGGER, no data")
            return
        count = irqs[self.index].count
        if self.start + self.count > count:
            raise ProtocolError(f"SET_IRQS: index {self.index} has {count} vectors, not {self.start + self.count}")
        if self.index in (ERR, REQ) and self.action is not TRIGGER:
            raise ProtocolError(f"SET_IRQS: index {self.index} cannot be masked")
        if self.data is BOOL and len(self.bools) != self.count:
            raise ProtocolError(f"SET_IRQS: {len(self.bools)} booleans for {self.count} vectors")
        if self.fds and (self.data is not EVENTFD or len(self.fds) != self.count):
            raise ProtocolError(f"SET_IRQS: {len(self.fds)} descriptors for {self.count} vectors")
        if not all(map(is_eventfd, self.fds)):
            raise ProtocolError("SET_IRQS: a descriptor that is no eventfd")

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())
