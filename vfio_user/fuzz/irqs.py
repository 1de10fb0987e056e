"""Steps that wire interrupts, let the server trigger them, mask them, and take them away."""

from __future__ import annotations

from userdev.fuzz import Found, Kind, Number, Pick, Several
from vfio_user.client.description import IrqFacts
from vfio_user.client.eventfd import EventFd
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.oracles import INTERRUPTS
from vfio_user.wire import Command
from vfio_user.wire.constants import IrqSetFlags
from vfio_user.wire.layouts import DEVICE_INFO, IRQ_SET

NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
MASK, UNMASK, TRIGGER = IrqSetFlags.MASK, IrqSetFlags.UNMASK, IrqSetFlags.TRIGGER
MOST = 8
"""Vectors of one request: more than that has a message of QEMU's seldom."""


def wire(encounter: Encounter, irq: int, start: int, count: int, spare: int) -> None:
    """As many eventfds as vectors are taken, and other numbers refused."""
    facts, start, count = _range(encounter, irq, start, count)
    if facts is None or not encounter.client.channel.carries_fds:
        return
    eventfds = [encounter.eventfd() for _ in range(count + spare)]
    request = IRQ_SET.pack(IRQ_SET.size, EVENTFD | TRIGGER, facts.index, start, count)
    _drain(encounter)
    reply = encounter.ask(Command.SET_IRQS, request, [eventfd.fd for eventfd in eventfds])
    if spare and eventfds:
        encounter.refused(reply, f"{len(eventfds)} descriptors for {count} vectors")
    elif _possible(facts, start, count):
        if reply.failed and not encounter.accessible:
            return
        encounter.good(reply, "wiring vectors")
        for vector, eventfd in enumerate(eventfds, start):
            encounter.wired[facts.index, vector] = eventfd
        if encounter.touched:
            encounter.fired()  # what the device had sent by itself to those that are replaced
    else:
        encounter.refused(reply, "wiring vectors that the device has not got")
    _silent(encounter)


def trigger(encounter: Encounter, irq: int, start: int, count: int, chosen: tuple[int, ...]) -> None:
    """Vectors that are triggered fire their own eventfds, once, and no others."""
    facts, start, count = _range(encounter, irq, start, count)
    if facts is None:
        return
    bools = bytes(chosen[:count])
    if bools and len(bools) < count:
        count = len(bools)
    flags = (BOOL if bools else NONE) | TRIGGER
    request = IRQ_SET.pack(IRQ_SET.size + len(bools), flags, facts.index, start, count, tail=bools)
    if not count:
        return
    _drain(encounter)
    reply = encounter.ask(Command.SET_IRQS, request)
    if not _possible(facts, start, count):
        encounter.refused(reply, "triggering vectors that the device has not got")
        return
    if reply.failed and not encounter.accessible:
        return
    encounter.good(reply, "triggering vectors")
    wanted = {start + at for at in range(count) if not bools or bools[at]}
    _compare(encounter, facts, wanted)


def _compare(encounter: Encounter, facts: IrqFacts, wanted: set[int]) -> None:
    """Compare what has fired with the vectors that were triggered."""
    fired = encounter.fired()
    by_eventfd = {eventfd: place for place, eventfd in encounter.wired.items()}
    for eventfd, times in fired.items():
        place = by_eventfd.get(eventfd)
        if place is None:
            raise Found(INTERRUPTS, "taken away", "an eventfd was fired that had been taken away")
        if encounter.touched or not encounter.accessible:
            continue
        if place[0] != facts.index or place[1] not in wanted:
            raise Found(INTERRUPTS, "other vector", f"vector {place[1]} fired, and {sorted(wanted)} were triggered")
        if times != 1:
            raise Found(INTERRUPTS, "times", f"vector {place[1]} fired {times} times for one trigger")
    if encounter.masking or not encounter.accessible or "automasked" in facts.flags:
        return
    for vector in wanted:
        own = encounter.wired.get((facts.index, vector))
        if own is not None and own not in fired:
            raise Found(INTERRUPTS, "lost", f"vector {vector} was triggered, and its eventfd not fired")


def hold_back(encounter: Encounter, irq: int, vector: int) -> None:
    """An interrupt that comes while its vector is masked has come when it is unmasked."""
    facts, vector, _ = _range(encounter, irq, vector, 1)
    if facts is None or not _possible(facts, vector, 1) or not encounter.accessible:
        return
    eventfd = encounter.wired.get((facts.index, vector))
    if eventfd is None or "maskable" not in facts.flags or "automasked" in facts.flags or encounter.masking:
        return
    _drain(encounter)
    for flags in (MASK, TRIGGER, UNMASK):
        request = IRQ_SET.pack(IRQ_SET.size, NONE | flags, facts.index, vector, 1)
        encounter.good(encounter.ask(Command.SET_IRQS, request), f"{flags.name} of a vector")
    fired = encounter.fired()
    if not fired.get(eventfd) or (not encounter.touched and (fired[eventfd] != 1 or len(fired) != 1)):
        times = fired.get(eventfd, 0)
        raise Found(INTERRUPTS, "masked", f"vector {vector} fired {times} times when it was masked meanwhile, not once")


def take_away(encounter: Encounter, irq: int, start: int, count: int) -> None:
    """Vectors lose their eventfds, as QEMU does it; count 0 is the whole type."""
    facts, start, count = _range(encounter, irq, start, count)
    if facts is None or (count and not _possible(facts, start, count)):
        return
    flags, start = (EVENTFD | TRIGGER, start) if count else (NONE | TRIGGER, 0)
    reply = encounter.ask(Command.SET_IRQS, IRQ_SET.pack(IRQ_SET.size, flags, facts.index, start, count))
    if reply.failed and not encounter.accessible:
        return
    encounter.good(reply, "taking eventfds away")
    for index, vector in list(encounter.wired):
        if index == facts.index and (not count or start <= vector < start + count):
            del encounter.wired[index, vector]
    encounter.fired()


def set_wrong(encounter: Encounter, irq: int, flags: int) -> None:
    """Flags that say no data, two kinds of it, no action or two of them are refused, and nothing fires."""
    facts, _, _ = _range(encounter, irq, 0, 1)
    data, action = flags & (NONE | BOOL | EVENTFD), flags & (MASK | UNMASK | TRIGGER)
    if facts is None or (data.bit_count() == 1 and action.bit_count() == 1):
        return
    _drain(encounter)
    reply = encounter.ask(Command.SET_IRQS, IRQ_SET.pack(IRQ_SET.size, flags, facts.index, 0, 1))
    encounter.refused(reply, "SET_IRQS with flags that contradict each other")
    if not encounter.touched and encounter.fired():
        raise Found(INTERRUPTS, "refused", "a request that was refused has fired an interrupt")


def _range(encounter: Encounter, irq: int, start: int, count: int) -> tuple[IrqFacts | None, int, int]:
    irqs = encounter.ground.irqs
    if not irqs:
        return None, 0, 0
    return irqs[irq % len(irqs)], start, min(count, MOST)


def _possible(facts: IrqFacts, start: int, count: int) -> bool:
    return count > 0 and start + count <= facts.vectors


def _drain(encounter: Encounter) -> None:
    """Let what the device has sent by itself come first."""
    if encounter.accessible:
        request = DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0)
        encounter.ask(Command.GET_INFO, request)
    encounter.fired()


def _silent(encounter: Encounter) -> None:
    """No eventfd that was replaced, or came with what was refused, may be fired."""
    known = set(encounter.wired.values())
    stray: list[EventFd] = [eventfd for eventfd in encounter.fired() if eventfd not in known]
    if stray:
        raise Found(INTERRUPTS, "taken away", "an eventfd was fired that had been taken away")


def still_wired(encounter: Encounter) -> None:
    """Every vector that has an eventfd still fires it: what was refused meanwhile has taken none away."""
    if encounter.masking or not encounter.accessible:
        return
    by_index: dict[int, set[int]] = {}
    for index, vector in encounter.wired:
        by_index.setdefault(index, set()).add(vector)
    facts = {irq.index: irq for irq in encounter.ground.irqs}
    for index, vectors in by_index.items():
        for vector in sorted(vectors):
            _drain(encounter)
            request = IRQ_SET.pack(IRQ_SET.size, NONE | TRIGGER, index, vector, 1)
            encounter.good(encounter.ask(Command.SET_IRQS, request), "triggering a vector")
            _compare(encounter, facts[index], {vector})


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """The steps of this module, where the device has interrupts."""
    if not ground.irqs:
        return []
    irq, start = Number(0, len(ground.irqs) - 1), Pick((0, 0, 0, 1, 2, 3, 7))
    edges = tuple(irq.vectors + by for irq in ground.irqs for by in (-1, 0))
    anywhere = Pick((0, 0, 0, 1, 1, 2, 3, *edges))
    count = Pick((1, 1, 2, 3))
    return [
        Kind("wire", wire, {"irq": irq, "start": anywhere, "count": count, "spare": Pick((0, 0, 0, 0, 1))}),
        Kind(
            "trigger",
            trigger,
            {"irq": irq, "start": anywhere, "count": count, "chosen": Several(Number(0, 1), 0, 3)},
        ),
        Kind("hold_back", hold_back, {"irq": irq, "vector": start}),
        Kind("take_away", take_away, {"irq": irq, "start": start, "count": Pick((0, 1, 2))}),
        Kind("set_wrong", set_wrong, {"irq": irq, "flags": Number(0, 63)}),
    ]
