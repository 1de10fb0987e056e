"""Interrupts: what kinds the device has, where they are to be delivered, and waiting for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from userdev.transport import close_all
from vfio_user.client.connection import ClientConnection, at_once
from vfio_user.client.errors import NoAnswer, RemoteError, none_refused
from vfio_user.client.eventfd import EventFd
from vfio_user.client.reading import read_as
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import IrqSetFlags
from vfio_user.wire.layouts import IRQ_INFO, IRQ_SET, VfioIrqInfo

_NONE, _BOOL, _EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD


class IrqCalls(ClientConnection):
    """GET_IRQ_INFO and SET_IRQS; `irq` is an index of `vfio_user.wire.constants.IrqIndex`."""

    def irq_info(self, irq: int) -> VfioIrqInfo:
        """The description of an interrupt index (DEVICE_GET_IRQ_INFO)."""
        return none_refused(self.irq_infos([irq]))[0]

    def irq_infos(self, irqs: Sequence[int]) -> Iterator[VfioIrqInfo | RemoteError]:
        """Those of several, many asked for at once; one that is refused has its error there."""
        for some in at_once(irqs):
            asked = [IRQ_INFO.pack(IRQ_INFO.size, 0, irq, 0) for irq in some]
            replies = self.gather(self.submit_all(Command.GET_IRQ_INFO, asked))
            try:
                while replies:
                    yield self._irq_description(replies.pop(0))
            finally:
                for reply in replies:
                    close_all(reply.fds)

    def _irq_description(self, reply: Message) -> VfioIrqInfo | RemoteError:
        try:
            return read_as(IRQ_INFO, self.checked(Command.GET_IRQ_INFO, reply).payload, Command.GET_IRQ_INFO.value)
        except RemoteError as error:
            return error

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
