"""What the recorded values of a register say of the writes that move it.

Where no reference can be asked what a shorter session should read, the recording has to say it. Between two reads of a
register that differ something has moved it; what was also written between two that are the same is not suspected of
that. Writes that move it may then only be left out from one moment to another at which the register read the same, as
raising a flag and clearing it may be; a clearing alone may not, or the flag would be read as it should be without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from userdev.errors import ProtocolError
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import Place, is_doing, place_of
from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import Command, Message
from vfio_user.wire import layouts as at


class Evidence:
    """Of what `script` recorded before the request `target`, which reads a register."""

    def __init__(self, script: Script, target: int) -> None:
        self._dialect = script.dialect
        self._reads = self._dialect.number(Command.REGION_READ)
        self._replies = {step.pair: step.message for step in script.steps if isinstance(step, MessageRecord)}
        steps = list(self._until(script, target))
        self._place = place_of(self._dialect, steps[-1].message)
        self._movers = self._moving(steps)
        self.moves: list[int] = []
        """Requests that move the register, in order."""
        self._values: list[bytes | None] = []
        """What it read before the first of them, the second and so on, and after the last; None: nobody read it."""
        self._follow(steps)

    def closed(self, kept: Collection[int]) -> set[int]:
        """These requests, with those of the moving ones between them without which the register would not read as it
        did; or, where that were all that were left out, without the next that undo them.
        """
        found, moves, end = set(kept), self.moves, 0
        while end < len(moves):
            begin = end
            while end < len(moves) and moves[end] not in found:
                end += 1
            if end == begin:
                end += 1
                continue
            back = self._back(begin, end)
            if len(back) == end - begin and (more := self._further(begin, end)):
                found.difference_update(moves[each] for each in more)
                end = max(end, more.stop)
            else:
                found.update(moves[each] for each in back)
        return found

    def _further(self, begin: int, end: int) -> range:
        """The fewest moves behind or before these with which the register is where it was, if there are any."""
        before, after = self._values[begin], self._values[end]
        last = range(end + 1, len(self._values))
        behind = next((each for each in last if before is not None and self._values[each] == before), None)
        first = next(
            (each for each in reversed(range(begin)) if after is not None and self._values[each] == after), None
        )
        if behind is not None and (first is None or behind - end <= begin - first):
            return range(end, behind)
        return range(first, begin) if first is not None else range(0)

    def _until(self, script: Script, target: int) -> Iterator[MessageRecord]:
        """The client's requests as far as the one in question."""
        for step in script.steps:
            if is_doing(step) and isinstance(step, MessageRecord):
                yield step
            if step.number == target:
                return

    def _moving(self, steps: list[MessageRecord]) -> set[Place]:
        """The places whose writes move the register: its own, and those that alone can have made it differ."""
        changing: list[set[Place]] = []
        harmless: set[Place] = set()
        before: bytes | None = None
        between: set[Place] = set()
        for step in steps:
            place = place_of(self._dialect, step.message)
            if place == self._place:
                value = self._value(step)
                if before is not None and value is not None:
                    if value != before:
                        changing.append(between)
                    else:
                        harmless |= between
                before, between = value, set()
            elif step.message.command != self._reads:
                between.add(place)
        if any(not between for between in changing):
            return set()  # it moves by itself
        return {place for between in changing for place in (between - harmless or between)}

    def _follow(self, steps: list[MessageRecord]) -> None:
        self._values.append(None)
        for step in steps:
            place = place_of(self._dialect, step.message)
            if place == self._place:
                self._values[-1] = self._value(step)
            elif place in self._movers or (place.command != self._reads and place.touches(self._place)):
                self.moves.append(step.number)
                self._values.append(None)

    def _value(self, step: MessageRecord) -> bytes | None:
        reply: Message | None = self._replies.get(step.number)
        if reply is None or reply.failed:
            return None
        try:
            at.REGION_ACCESS.unpack(reply.payload)
        except ProtocolError:
            return None
        return reply.payload[at.REGION_ACCESS.size :]

    def _back(self, begin: int, end: int) -> range:
        """Of moves that were left out those that have to come back, the fewest."""
        before, after = self._values[begin], self._values[end]
        first = next((each for each in range(begin, end) if after is not None and self._values[each] == after), end)
        last = next(
            (each for each in range(end, begin, -1) if before is not None and self._values[each] == before), begin
        )
        return range(begin, first) if first - begin < end - last else range(last, end)
