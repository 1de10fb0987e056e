"""Interrupts: what kinds the device has, where they are to be delivered, and waiting for them."""

from __future__ import annotations

from collections.abc import Sequence

from vfio_user.client.connection import ClientConnection
from vfio_user.client.errors import NoAnswer
from vfio_user.client.eventfd import EventFd
from vfio_user.wire import Command
from vfio_user.wire.constants import IrqSetFlags
from vfio_user.wire.layouts import IRQ_INFO, IRQ_SET, VfioIrqInfo

_NONE, _BOOL, _EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD


class IrqCalls(ClientConnection):
    """GET_IRQ_INFO and SET_IRQS; `irq` is an index of `vfio_user.wire.constants.IrqIndex`."""

    def irq_info(self, irq: int) -> VfioIrqInfo:
        """The description of an interrupt index (DEVICE_GET_IRQ_INFO)."""
        reply = self.request(Command.GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, irq, 0))
        return IRQ_INFO.unpack(reply.payload)

    def set_irqs(
        self, irq: int, flags: int, *, start: int = 0, count: int = 0, bools: bytes = b"", fds: Sequence[int] = ()
    ) -> None:
        """SET_IRQS as it is on the wire; the calls below are the forms that make sense."""
        argsz = IRQ_SET.size + len(bools)
        self.request(Command.SET_IRQS, IRQ_SET.pack(argsz, flags, irq, start, count, tail=bools), fds)

    def enable_irqs(self, irq: int, eventfds: Sequence[EventFd], *, start: int = 0) -> None:
        """Deliver vectors from `start` on by these eventfds, in as many messages as the server's limit asks for."""
        chunk = max(1, self.fds_per_message)
        for at in range(0, len(eventfds), chunk):
            fds = [eventfd.fd for eventfd in eventfds[at : at + chunk]]
            self.set_irqs(irq, _EVENTFD | IrqSetFlags.TRIGGER, start=start + at, count=len(fds), fds=fds)

    def detach_irqs(self, irq: int, *, start: int, count: int) -> None:
        """Take the eventfds of some vectors away: an EVENTFD set without descriptors, as QEMU does it."""
        self.set_irqs(irq, _EVENTFD | IrqSetFlags.TRIGGER, start=start, count=count)

    def disable_irqs(self, irq: int) -> None:
        """Switch the whole index off."""
        self.set_irqs(irq, _NONE | IrqSetFlags.TRIGGER)

    def trigger_irqs(self, irq: int, *, start: int = 0, count: int = 1, bools: bytes = b"") -> None:
        """Let the server trigger vectors by itself; `bools` chooses among them, one byte each."""
        self._act(irq, IrqSetFlags.TRIGGER, start, count, bools)

    def mask_irqs(self, irq: int, *, start: int = 0, count: int = 1, bools: bytes = b"") -> None:
        """Mask vectors; with `bools` those whose byte is not 0."""
        self._act(irq, IrqSetFlags.MASK, start, count, bools)

    def unmask_irqs(self, irq: int, *, start: int = 0, count: int = 1, bools: bytes = b"") -> None:
        """Unmask vectors; with `bools` those whose byte is not 0."""
        self._act(irq, IrqSetFlags.UNMASK, start, count, bools)

    def _act(self, irq: int, action: IrqSetFlags, start: int, count: int, bools: bytes) -> None:
        data = _BOOL if bools else _NONE
        self.set_irqs(irq, data | action, start=start, count=len(bools) or count, bools=bools)

    def wait_interrupt(self, eventfd: EventFd, *, timeout: float = 5.0) -> int:
        """Wait for an interrupt while the server's requests are served; how often it was triggered.

        Raises:
            NoAnswer: it was not, within `timeout` seconds.
        """
        counts: list[int] = []

        def triggered() -> bool:
            counts.append(eventfd.take())
            return bool(counts[-1])

        if not self.channel.serve_until(triggered, timeout=timeout, also=[eventfd.fd]):
            raise NoAnswer(f"no interrupt within {timeout:g} s")
        return counts[-1]

    def wait_vm_interrupt(self, *, timeout: float = 5.0) -> int:
        """Wait for a VM_INTERRUPT message (draft); its sub-index.

        Raises:
            NoAnswer: there is none within `timeout` seconds.
        """
        if not self.serve_until(lambda: bool(self.service.interrupts), timeout=timeout):
            raise NoAnswer(f"no VM_INTERRUPT within {timeout:g} s")
        return self.service.interrupts.popleft()
