"""What of a session makes no sense without what else.

Which of the client's requests others of it need the protocol says: an unmap needs its map, a trigger the set-up of its
vector, migration data the state before. Which of them made the server do what it did by itself is written nowhere:
DMA and interrupts are taken to be caused by the last request before them, of the kind that was there before others of
the same too, and seldom elsewhere: a doorbell, say.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from userdev.errors import ProtocolError
from userdev.layout import Layout
from userdev.memory.intervals import IntervalMap
from vfio_user.interposer.replay.steps import (
    Place,
    ScriptStep,
    is_doing,
    is_interrupt,
    is_servers_request,
    place_of,
    vector_of,
)
from vfio_user.interposer.trace import MessageRecord, Note, Raw
from vfio_user.wire import Command, Dialect
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    FEATURE_MASK,
    MOST_VECTORS,
    DirtyPagesFlags,
    Feature,
    FeatureFlags,
    IrqSetFlags,
    UnmapFlags,
)

OFTEN = 3
"""What happened fewer times shows nothing of what was there each time: then it is the last request before."""
WINDOW = 256
"""Requests before an interrupt or DMA among which its cause is looked for."""
_EVENTFDS = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER


@dataclass(frozen=True)
class _Map:
    iova: int
    end: int
    number: int


class Causes:
    """Of one session, by numbers of records."""

    def __init__(self, steps: Iterable[ScriptStep], dialect: Dialect) -> None:
        self.needs: dict[int, set[int]] = {}
        """A request of the client's, or something that the server did by itself: the client's requests it needs."""
        self.cause: dict[int, int] = {}
        """What the server did by itself: the request that made it."""
        self._dialect = dialect
        self._maps = IntervalMap[_Map]()
        self._vectors: dict[tuple[int, int], int] = {}
        """(index, vector): the request that set it up."""
        self._state = self._logging = 0
        """The request that set the migration state, and the one that began to log writes."""
        self._attribution = _Attribution(dialect)
        self._rules: dict[int, Callable[[MessageRecord], set[int]]] = {
            dialect.shapes[command].number: rule
            for command, rule in {
                Command.DMA_MAP: self._map,
                Command.DMA_UNMAP: self._unmap,
                Command.SET_IRQS: self._set_irqs,
                Command.DEVICE_FEATURE: self._feature,
                Command.DIRTY_PAGES: self._dirty_pages,
                Command.MIG_DATA_READ: lambda _: {self._state},
                Command.MIG_DATA_WRITE: lambda _: {self._state},
            }.items()
            if command in dialect.shapes
        }
        for step in steps:
            self._look_at(step)
        self._attribute()

    def closure(self, numbers: Iterable[int]) -> set[int]:
        """These requests of the client's with all that they need."""
        found: set[int] = set()
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting.extend(self.needs.get(number, ()))
        return found

    def without_orphans(self, numbers: Collection[int], known: Collection[int]) -> set[int]:
        """Of these requests those that have all they need; in order, as one may need the one before.

        known: those that are there in any case.
        """
        found: set[int] = set(known)
        for number in sorted(numbers):
            if self.needs.get(number, found) <= found:
                found.add(number)
        return found

    def _look_at(self, step: ScriptStep) -> None:
        if is_interrupt(step):
            where = vector_of(step)
            self._attribution.happened(step, ("interrupt", *where))
            self._need(step.number, {self._vectors.get(where, 0)})
        elif is_servers_request(step):
            self._attribution.happened(step, (step.message.command,))
            self._need(step.number, self._mapped_for(step))
        elif is_doing(step):
            if isinstance(step, MessageRecord) and (rule := self._rules.get(step.message.command)):
                with contextlib.suppress(ProtocolError):  # a request that cannot be read stands for itself
                    self._need(step.number, rule(step))
            self._attribution.did(step)

    def _need(self, number: int, needed: set[int]) -> None:
        if wanted := needed - {0, number}:
            self.needs.setdefault(number, set()).update(wanted)

    def _attribute(self) -> None:
        """Who made the server do what it did needs what that needs, memory say."""
        self.cause = self._attribution.causes()
        for number, cause in self.cause.items():
            if number not in self._attribution.interrupts:
                self._need(cause, {each for each in self.needs.get(number, ()) if each < cause})
            self._need(number, {cause})

    # rules, by command: what a request needs

    def _map(self, step: MessageRecord) -> set[int]:
        for iova, size in self._ranges(step, Command.DMA_MAP):
            if size and not self._maps.within(iova, iova + size):
                self._maps.add(_Map(iova, iova + size, step.number))
        return set()

    def _unmap(self, step: MessageRecord) -> set[int]:
        is_table = self._dialect.shapes[Command.DMA_UNMAP].request is None
        if not is_table and at.DMA_UNMAP.unpack(step.message.payload).flags & UnmapFlags.ALL:
            self._maps.clear()
            return set()
        gone = [
            each
            for iova, size in self._ranges(step, Command.DMA_UNMAP)
            for each in self._maps.within(iova, iova + size)
        ]
        for each in gone:
            self._maps.remove(each.iova)
        return {each.number for each in gone}

    def _ranges(self, step: MessageRecord, command: Command) -> list[tuple[int, int]]:
        layout: Layout[Any] | None = self._dialect.shapes[command].request
        if layout is None:
            return [(entry.address, entry.size) for entry in at.DMA_ENTRY_V6.unpack_all(step.message.payload)]
        one = layout.unpack(step.message.payload)
        return [(one.addr, one.size)]

    def _mapped_for(self, step: MessageRecord) -> set[int]:
        command = self._dialect.command(step.message.command)
        if command not in (Command.DMA_READ, Command.DMA_WRITE):
            return set()
        layout = self._dialect.shapes[command].request
        assert layout is not None
        try:
            found = self._maps.find(layout.unpack(step.message.payload).address)
        except ProtocolError:
            return set()
        return {found.number} if found is not None else set()

    def _set_irqs(self, step: MessageRecord) -> set[int]:
        asked = at.IRQ_SET.unpack(step.message.payload)
        count = max(min(asked.nr_vectors, MOST_VECTORS), len(step.fds))
        vectors = [(asked.irq, asked.start + place) for place in range(count)]
        if asked.flags & _EVENTFDS == _EVENTFDS and step.fds:
            self._vectors.update(dict.fromkeys(vectors, step.number))
            return set()
        of_index = [number for (index, _), number in self._vectors.items() if index == asked.irq]
        return {self._vectors.get(vector, 0) for vector in vectors} or set(of_index[-1:])

    def _feature(self, step: MessageRecord) -> set[int]:
        flags = at.FEATURE.unpack(step.message.payload).flags
        setting = bool(flags & FeatureFlags.SET)
        match flags & FEATURE_MASK:
            case Feature.MIG_DEVICE_STATE if setting:
                before, self._state = self._state, step.number
                return {before}
            case Feature.DMA_LOGGING_START if setting:
                self._logging = step.number
            case Feature.DMA_LOGGING_STOP | Feature.DMA_LOGGING_REPORT:
                return {self._logging}
        return set()

    def _dirty_pages(self, step: MessageRecord) -> set[int]:
        if at.DIRTY_PAGES.unpack(step.message.payload).flags & DirtyPagesFlags.START:
            self._logging = step.number
            return set()
        return {self._logging}


class _Attribution:
    """Finds out which requests make a server do things by itself."""

    def __init__(self, dialect: Dialect) -> None:
        self.interrupts: set[int] = set()
        self._reads = dialect.number(Command.REGION_READ)
        self._dialect = dialect
        self._doings: list[tuple[int, Place]] = []
        self._begin: dict[tuple[Any, ...], int] = {}
        self._happened: dict[tuple[Any, ...], list[tuple[int, int, int]]] = {}
        """What: (its record, the first request that can have caused it, the last but one)."""

    def did(self, step: MessageRecord | Raw) -> None:
        """The client does something."""
        place = place_of(self._dialect, step.message) if isinstance(step, MessageRecord) else Place(-1)
        self._doings.append((step.number, place))

    def happened(self, step: MessageRecord | Note, what: tuple[Any, ...]) -> None:
        """The server does something."""
        if isinstance(step, Note):
            self.interrupts.add(step.number)
        end = len(self._doings)
        begin = max(self._begin.get(what, 0), end - WINDOW)
        self._happened.setdefault(what, []).append((step.number, begin, end))
        self._begin[what] = end

    def causes(self) -> dict[int, int]:
        """The cause of each thing that happened, as far as the client did anything before."""
        found: dict[int, int] = {}
        total = Counter(place for _, place in self._doings)
        for happened in self._happened.values():
            often = Counter(place for _, begin, end in happened for place in {*self._places(begin, end)})
            cause = 0
            for number, begin, end in happened:
                candidates = self._candidates(begin, end)
                if candidates:
                    # in as many of these windows as can be, and seldom anywhere else
                    score = {place: often[place] ** 2 / total[place] for _, place in candidates}
                    most = max(score.values())
                    likely = [doing for doing, place in candidates if score[place] == most or len(happened) < OFTEN]
                    cause = likely[-1]
                if cause:
                    found[number] = cause
        return found

    def _places(self, begin: int, end: int) -> list[Place]:
        return [place for _, place in self._candidates(begin, end)]

    def _candidates(self, begin: int, end: int) -> list[tuple[int, Place]]:
        """What may be the cause: reads only where there is nothing else."""
        all_of_them = self._doings[begin:end]
        return [one for one in all_of_them if one[1].command != self._reads] or all_of_them
