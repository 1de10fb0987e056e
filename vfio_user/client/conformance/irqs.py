"""SET_IRQS: every form that does something, and every form that may not."""

from __future__ import annotations

import operator
import select
from collections.abc import Callable

from userdev.conformance.check import CheckFailed, Group, Level, Skip, require
from userdev.counted import counted
from vfio_user.client.conformance.bench import DESCRIBED, Bench
from vfio_user.client.conformance.dialects import CURRENT_FAMILY
from vfio_user.client.conformance.refusals import Bad, enter
from vfio_user.client.eventfd import EventFd
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import IrqIndex, IrqInfoFlags, IrqSetFlags, RegionIndex
from vfio_user.wire.layouts import IRQ_SET, REGION_ACCESS

TRIGGERED = "set_irqs/trigger"
"""Without this rule nothing is known of other forms of SET_IRQS: it is how they are tried."""

LISTEN_SECONDS = 1.0
"""That a device is listened to of which one interrupt too many came: whether it interrupts by itself."""

_ID = 0x5353
_READ = REGION_ACCESS.pack(0, RegionIndex.CONFIG, 4)
_KEPT_BUSY = 64
"""Reads that a server is at while what is to come together is sent."""
_TRIED_VECTORS = 256  # of the first ones, each with an eventfd

set_irqs = Group[Bench]("set_irqs", "protocol.md 9.3: DEVICE_SET_IRQS", needs=(TRIGGERED,))

NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
MASK, UNMASK, TRIGGER = IrqSetFlags.MASK, IrqSetFlags.UNMASK, IrqSetFlags.TRIGGER


def _armed(bench: Bench, count: int = 1) -> tuple[int, list[EventFd]]:
    """An interrupt type and eventfds for its first vectors, set and shown to work."""
    bench.need_fds()
    irq = bench.irq(count).irq
    eventfds = [bench.eventfd() for _ in range(count)]
    bench.client.enable_irqs(irq, eventfds)
    return irq, eventfds


def _fired(eventfds: list[EventFd]) -> list[int]:
    return [eventfd.take() for eventfd in eventfds]


def _require_fired(bench: Bench, irq: int, eventfds: list[EventFd], wanted: list[int], wrong: str) -> None:
    """Each eventfd has to have been fired as often as is wanted.

    Of a device that interrupts by itself, as a timer does, nobody can tell whose an interrupt too many is.
    """
    seen = _fired(eventfds)
    if seen == wanted:
        return
    if all(map(operator.ge, seen, wanted)) and _interrupts_by_itself(bench, irq):
        raise Skip("the device interrupts by itself, and one of those came meanwhile")
    raise CheckFailed(f"{wrong}: {_instead(seen, wanted)}")


def _instead(seen: list[int], wanted: list[int]) -> str:
    """How often eventfds were fired that should have been otherwise; of many the first."""
    number, count, times = next(
        (number, *each) for number, each in enumerate(zip(seen, wanted, strict=True)) if each[0] != each[1]
    )
    which = f"eventfd {number}" if len(seen) > 1 else "it"
    return f"{which} was fired {counted(count, 'time')} in place of {times}"


def _interrupts_by_itself(bench: Bench, irq: int) -> bool:
    """Whether an eventfd is fired while nothing is asked of the device; takes `LISTEN_SECONDS` where none is.

    Who is in a hurry need not know: how interrupts are triggered has gone wrong, with a device that does not.
    """
    if bench.hurried:
        return False
    eventfds = [bench.eventfd() for _ in range(min(bench.irqs[irq].nr_vectors, _TRIED_VECTORS))]
    bench.client.enable_irqs(irq, eventfds)
    return bool(select.select(eventfds, [], [], LISTEN_SECONDS)[0])


@set_irqs.check("trigger", rule="spec: VFIO IRQ set, ACTION_TRIGGER with DATA_NONE")
def trigger(bench: Bench) -> None:
    """TRIGGER with NONE fires the eventfd of each vector of the range, once."""
    irq, eventfds = _armed(bench)
    bench.client.trigger_irqs(irq)
    seen = _fired(eventfds)
    if seen == [0] or (seen > [1] and not _interrupts_by_itself(bench, irq)):
        raise CheckFailed(f"the eventfd was not fired once before the reply: {_instead(seen, [1])}")


@set_irqs.check("trigger-range", rule="spec: VFIO IRQ set, start and count")
def trigger_range(bench: Bench) -> None:
    """TRIGGER fires the vectors of its range and no others."""
    irq, eventfds = _armed(bench, 2)
    bench.client.trigger_irqs(irq, start=1, count=1)
    _require_fired(bench, irq, eventfds, [0, 1], "triggering vector 1 did not fire vector 1 alone")


@set_irqs.check("trigger-bool", rule="spec: VFIO IRQ set, DATA_BOOL")
def trigger_bool(bench: Bench) -> None:
    """TRIGGER with BOOL fires the vectors whose byte is 1."""
    irq, eventfds = _armed(bench, 2)
    bench.client.trigger_irqs(irq, bools=b"\0\1")
    _require_fired(bench, irq, eventfds, [0, 1], "booleans 0, 1 did not fire vector 1 alone")


@set_irqs.check("trigger-without-eventfd", level=Level.REFERENCE)
def trigger_without_eventfd(bench: Bench) -> None:
    """TRIGGER of vectors that nobody listens to succeeds, of the last as of all that a type has."""
    bench.irq()
    for irq in bench.irqs:
        if irq.nr_vectors:
            bench.client.trigger_irqs(irq.irq, count=irq.nr_vectors)
            bench.client.trigger_irqs(irq.irq, start=irq.nr_vectors - 1)


@set_irqs.check("reply-is-header", dialects=CURRENT_FAMILY, rule="spec: VFIO_USER_DEVICE_SET_IRQS, Reply")
def reply_is_header(bench: Bench) -> None:
    """The reply is a header and nothing else."""
    reply = bench.good(bench.ask(Command.SET_IRQS, _set(bench, NONE | TRIGGER)), "TRIGGER with NONE")
    require(reply.size == 16, f"the reply has {reply.size} bytes instead of 16")


@set_irqs.check("eventfd-range", rule="spec: VFIO IRQ set, start and count")
def eventfd_range(bench: Bench) -> None:
    """Eventfds are set for the vectors of their range, and no others lose theirs."""
    irq, (first, second) = _armed(bench, 2)
    third = bench.eventfd()
    bench.client.enable_irqs(irq, [third], start=1)
    bench.client.trigger_irqs(irq, count=2)
    _require_fired(
        bench, irq, [first, second, third], [1, 0, 1], "an eventfd for vector 1 did not take the place of its alone"
    )


@set_irqs.check("disable", rule="spec: VFIO IRQ set, count 0 with DATA_NONE disables the index")
def disable(bench: Bench) -> None:
    """TRIGGER with NONE and count 0 takes every eventfd of the index away."""
    count = min(2, bench.irq().nr_vectors)
    irq, eventfds = _armed(bench, count)
    bench.client.disable_irqs(irq)
    bench.client.trigger_irqs(irq, count=count)
    _require_fired(bench, irq, eventfds, [0] * count, "an eventfd was fired after its index was disabled")


@set_irqs.check("detach", level=Level.REFERENCE)
def detach(bench: Bench) -> None:
    """TRIGGER with EVENTFD and no descriptors takes the eventfds of the range away, as QEMU does it."""
    irq, eventfds = _armed(bench)
    bench.client.detach_irqs(irq, start=0, count=1)
    bench.client.trigger_irqs(irq)
    _require_fired(bench, irq, eventfds, [0], "an eventfd was fired after it was taken away")


@set_irqs.check("detach-range", level=Level.REFERENCE, rule="spec: VFIO IRQ set, DATA_EVENTFD without descriptors")
def detach_range(bench: Bench) -> None:
    """The vectors beside that range keep theirs."""
    irq, eventfds = _armed(bench, 2)
    bench.client.detach_irqs(irq, start=0, count=1)
    bench.client.trigger_irqs(irq, count=2)
    _require_fired(bench, irq, eventfds, [0, 1], "taking the eventfd of vector 0 away did not take it alone")


@set_irqs.check("replace", level=Level.REFERENCE)
def replace(bench: Bench) -> None:
    """An eventfd that is set again replaces the old one."""
    irq, old = _armed(bench)
    new = bench.eventfd()
    bench.client.enable_irqs(irq, [new])
    bench.client.trigger_irqs(irq)
    _require_fired(bench, irq, [*old, new], [0, 1], "not the new eventfd alone was fired")


@set_irqs.check("all-vectors", level=Level.REFERENCE, rule="protocol.md 9.3: QEMU sends chunks of at most max_msg_fds")
def all_vectors(bench: Bench) -> None:
    """Every vector has an eventfd of its own, set in messages of as many descriptors as were agreed."""
    bench.need_fds()
    irq = bench.irq()
    eventfds = [bench.eventfd() for _ in range(min(irq.nr_vectors, _TRIED_VECTORS))]
    bench.client.enable_irqs(irq.irq, eventfds)
    bench.client.trigger_irqs(irq.irq, count=len(eventfds))
    _require_fired(bench, irq.irq, eventfds, [1] * len(eventfds), "not every vector fired its own eventfd once")


@set_irqs.check("behind-others", rule="spec: the file descriptors of a message come with it; unix(7), SCM_RIGHTS")
def behind_others(bench: Bench) -> None:
    """Descriptors are those of the message that they came with, whatever comes just before it."""
    bench.need_fds()
    client, irq, eventfd = bench.client, bench.irq().irq, bench.eventfd()
    read = Message(_ID, bench.dialect.number(Command.REGION_READ), payload=_READ).encode()
    asked = _set(bench, EVENTFD | TRIGGER)
    wired = Message(_ID, bench.dialect.number(Command.SET_IRQS), payload=asked).encode()
    for _ in range(3):  # whether they come together is the chance of one send behind another
        requests = [client.channel.expect(_ID, "what comes together") for _ in range(_KEPT_BUSY + 2)]
        client.channel.send_bytes(read * _KEPT_BUSY)
        client.channel.send_bytes(read)
        client.channel.send_bytes(wired, [eventfd.fd])
        for request in requests:
            bench.good(client.wait(request), request.name)
        client.trigger_irqs(irq)
        wrong = "the eventfd of a SET_IRQS that comes with a read before it is not its own"
        _require_fired(bench, irq, [eventfd], [1], wrong)
        client.disable_irqs(irq)


@set_irqs.check("mask", level=Level.REFERENCE, rule="spec: VFIO IRQ info, MASKABLE")
def mask(bench: Bench) -> None:
    """A maskable type takes MASK and UNMASK."""
    for irq in bench.irqs:
        if irq.nr_vectors and irq.flags & IrqInfoFlags.MASKABLE:
            bench.client.mask_irqs(irq.irq)
            bench.client.unmask_irqs(irq.irq)
            return
    raise Skip("no interrupt type is maskable")


def _type_that_takes_no_mask(bench: Bench) -> int:
    for index in (IrqIndex.ERR, IrqIndex.REQ):
        if index < len(bench.irqs) and bench.irqs[index].nr_vectors:
            return index
    raise Skip("the device has neither ERR nor REQ")


def _set(bench: Bench, flags: int, *, start: int = 0, count: int = 1, tail: bytes = b"") -> bytes:
    return IRQ_SET.pack(IRQ_SET.size + len(tail), flags, bench.irq().irq, start, count, tail=tail)


def _row(
    name: str,
    what: str,
    flags: int,
    *,
    start: int | Callable[[Bench], int] = 0,
    count: int | Callable[[Bench], int] = 1,
    tail: bytes = b"",
    fds: int = 0,
    rule: str = "",
) -> Bad:
    def payload(bench: Bench) -> bytes:
        first, vectors = (each(bench) if callable(each) else each for each in (start, count))
        return _set(bench, flags, start=first, count=vectors, tail=tail)

    return Bad(name, what, payload, fds=fds, rule=rule)


_ONE_DATA = "spec: VFIO IRQ set, the flags are mutually exclusive in both sets"


def _vectors(bench: Bench) -> int:
    return bench.irq().nr_vectors


def _still_armed(bench: Bench) -> Callable[[], None]:
    if not bench.client.fds_per_message:
        return lambda: None
    irq, eventfds = _armed(bench)

    def check() -> None:
        _require_fired(bench, irq, eventfds, [0], "a request that was refused fired an interrupt")
        bench.client.trigger_irqs(irq)
        _require_fired(bench, irq, eventfds, [1], "a trigger behind a request that was refused is another")

    return check


enter(
    set_irqs,
    Command.SET_IRQS,
    [
        Bad("payload-too-short", "a request of 19 bytes", lambda b: _set(b, NONE | TRIGGER)[:-1]),
        Bad("argsz-too-small", "argsz 19", lambda b: IRQ_SET.pack(19, NONE | TRIGGER, b.irq().irq, 0, 1)),
        Bad(
            "index-behind-last",
            "the index behind the last interrupt type",
            lambda b: IRQ_SET.pack(20, NONE | TRIGGER, b.info.num_irqs, 0, 1),
            needs=DESCRIBED,
        ),
        Bad("index-huge", "interrupt type 0xffffffff", IRQ_SET.pack(20, NONE | TRIGGER, 0xFFFF_FFFF, 0, 1)),
        _row("no-action", "no action", NONE, rule=_ONE_DATA),
        _row("two-actions", "MASK and TRIGGER at once", NONE | MASK | TRIGGER, rule=_ONE_DATA),
        _row("no-data", "no kind of data", TRIGGER, rule=_ONE_DATA),
        _row("two-kinds-of-data", "NONE and BOOL at once", NONE | BOOL | TRIGGER, tail=b"\1", rule=_ONE_DATA),
        _row("bools-missing", "one boolean for two vectors", BOOL | TRIGGER, count=2, tail=b"\1"),
        _row("bools-too-many", "two booleans for one vector", BOOL | TRIGGER, count=1, tail=b"\1\1"),
        _row("start-behind-last", "a start behind the last vector", NONE | TRIGGER, start=_vectors),
        _row("start-huge", "start 0xffffffff", NONE | TRIGGER, start=0xFFFF_FFFF),
        _row("count-too-large", "one vector more than there are", NONE | TRIGGER, count=lambda b: _vectors(b) + 1),
        _row("over-the-last", "a range over the last vector", NONE | TRIGGER, start=lambda b: _vectors(b) - 1, count=2),
        _row("range-wraps", "a range that wraps", NONE | TRIGGER, start=lambda b: _vectors(b) - 1, count=0xFFFF_FFFF),
        _row("count-0-mask", "count 0 with MASK", NONE | MASK, count=0),
        _row("count-0-bool", "count 0 with BOOL", BOOL | TRIGGER, count=0),
        _row("count-0-eventfd", "count 0 with EVENTFD", EVENTFD | TRIGGER, count=0),
        _row("fds-with-none", "a descriptor with NONE", NONE | TRIGGER, fds=1),
        _row("fds-with-bool", "a descriptor with BOOL", BOOL | TRIGGER, tail=b"\0", fds=1),
        _row("fds-too-many", "two descriptors for one vector", EVENTFD | TRIGGER, count=1, fds=2),
    ],
    need=lambda bench: bench.irq(),
    keep=_still_armed,
)
enter(
    set_irqs,
    Command.SET_IRQS,
    [
        Bad(
            "count-0-start",
            "count 0 with a start",
            lambda b: IRQ_SET.pack(20, NONE | TRIGGER, b.irq(2).irq, 1, 0),
        ),
        Bad(
            "fds-too-few",
            "one descriptor for two vectors",
            lambda b: IRQ_SET.pack(20, EVENTFD | TRIGGER, b.irq(2).irq, 0, 2),
            fds=1,
        ),
    ],
    need=lambda bench: bench.irq(2),
    keep=_still_armed,
)
enter(
    set_irqs,
    Command.SET_IRQS,
    [
        Bad(
            "err-mask", "MASK of ERR or REQ", lambda b: IRQ_SET.pack(20, NONE | MASK, _type_that_takes_no_mask(b), 0, 1)
        ),
        Bad(
            "err-two-vectors",
            "two vectors of ERR or REQ",
            lambda b: IRQ_SET.pack(20, NONE | TRIGGER, _type_that_takes_no_mask(b), 0, 2),
        ),
    ],
    need=_type_that_takes_no_mask,
    keep=_still_armed,
)
