"""What a server does beside what it was asked for."""

from __future__ import annotations

import errno

from userdev.errors import ProtocolError
from vfio_user.device.irq_wiring import IrqRequest
from vfio_user.server.session import Session
from vfio_user.wire import COMMAND, Message
from vfio_user.wire.constants import IrqIndex, IrqSetFlags, MigrationState
from vfio_user.wire.layouts import DMA_ENTRY_V6, IRQ_SET, REGION_ACCESS, VERSION

NONE, EVENTFD, TRIGGER = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_EVENTFD, IrqSetFlags.TRIGGER


def stops(session: Session, message: Message) -> None:
    assert session.function.migration is not None
    session.function.migration.set_state(MigrationState.STOP)


def stops_by_v1(session: Session, message: Message) -> None:
    assert session.function.migration is not None
    session.function.migration.set_v1_state(0)


def sets_command(session: Session, message: Message) -> None:
    session.function.config.set(4, 2, 6)


def unmaps_all(session: Session, message: Message) -> None:
    session.function.dma.unmap_all()


def maps_the_first(session: Session, message: Message) -> None:
    if len(message.payload) > DMA_ENTRY_V6.size:
        first = DMA_ENTRY_V6.unpack(message.payload)
        session.function.dma.map(first.address, first.size, 3)


def writes_the_line(session: Session, message: Message) -> None:
    if len(message.payload) > REGION_ACCESS.size:
        session.function.config.set(0x3C, 1, message.payload[REGION_ACCESS.size])


def triggers(session: Session, message: Message) -> None:
    session.function.interrupts.trigger(0)


def cuts_the_first(session: Session, message: Message) -> None:
    session.function.interrupts.set_irqs(IrqRequest(IrqIndex.MSIX, 0, 1, TRIGGER, EVENTFD))


def cuts_all(session: Session, message: Message) -> None:
    session.function.interrupts.release()


def fires_the_whole_index(session: Session, message: Message) -> None:
    asked = IRQ_SET.unpack(message.payload)
    if asked.flags & TRIGGER and not asked.flags & EVENTFD and asked.nr_vectors in (1, 2):
        whole = session.function.irqs[asked.irq].count
        session.function.interrupts.set_irqs(IrqRequest(asked.irq, 0, whole, TRIGGER, NONE))


def makes_unlike_version(first: Message) -> None:
    first.payload = b"\0"


def makes_version(first: Message) -> None:
    first.command, first.flags, first.payload = 1, COMMAND, VERSION.pack(0, 1, tail=b'{"capabilities":{}}\0')


def refuses_all_the_same(session: Session, message: Message) -> None:
    raise ProtocolError("it is done all the same", errno.ENOENT)


def keeps_its_maps(session: Session, message: Message) -> None:
    session.function.dma.unmap_all = lambda: None  # type: ignore[method-assign]


def keeps_its_eventfds(session: Session, message: Message) -> None:
    """Until the next client goes."""
    interrupts = session.function.interrupts
    interrupts.release = lambda: vars(interrupts).pop("release")  # type: ignore[method-assign]


def own_file(session: Session) -> list[int]:
    """The file of a region that may be mapped."""
    return [fd for region in session.function.regions if (fd := region.fd) is not None][:1]
