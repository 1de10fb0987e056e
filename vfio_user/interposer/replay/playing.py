"""A session as it is played, kept as a script: the same requests, with what another server made of them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace

from userdev.descriptors import FdInfo
from userdev.relay.direction import Direction
from userdev.trace.format import BOTH
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import ScriptStep, is_interrupt, vector_of
from vfio_user.interposer.trace import MessageRecord, Note, Raw
from vfio_user.wire import Message


class Played:
    """What happens, in order. Records keep their numbers; what was not recorded gets numbers behind all others."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._steps: list[ScriptStep] = []
        self._next = max((step.number for step in script.steps), default=1)
        self._interrupts: dict[tuple[int, int], deque[int]] = {}
        """(index, vector): the numbers of those that were recorded and have not come."""
        for step in script.steps:
            if is_interrupt(step):
                self._interrupts.setdefault(vector_of(step), deque()).append(step.number)

    def happened(self, step: MessageRecord | Raw) -> None:
        """The client has done this."""
        self._steps.append(replace(step, time=time.monotonic_ns()))

    def replied(self, reply: Message, fds: tuple[FdInfo, ...], recorded: MessageRecord | None, request: int) -> None:
        """The server has answered the request of this number, with such descriptors; `recorded`: what was answered to
        it before.
        """
        number = recorded.number if recorded is not None else self._new()
        self._message(number, Direction.TO_CLIENT, reply, request, fds)

    def asked(self, request: Message, recorded: MessageRecord | None, channel: str) -> int:
        """The server has asked this on a channel; the number that it has."""
        number = recorded.number if recorded is not None else self._new()
        self._message(number, Direction.TO_CLIENT, request, 0, channel=channel)
        return number

    def answered(self, reply: Message, request: int, channel: str) -> None:
        """The client has answered the server's request of this number, which came on that channel."""
        self._message(self._new(), Direction.TO_SERVER, reply, request, channel=channel)

    def interrupt(self, where: tuple[int, int], count: int) -> None:
        """An interrupt has come."""
        details = {"index": where[0], "vector": where[1], "count": count}
        now = time.monotonic_ns()
        recorded = self._interrupts.get(where)
        number = recorded.popleft() if recorded else self._new()
        self._steps.append(Note(number, now, Direction.TO_SERVER, BOTH, "interrupt", details))

    def script(self) -> Script:
        """All of it."""
        return Script(self._script.header, tuple(self._steps), all_interrupts=True)

    def _new(self) -> int:
        self._next += 1
        return self._next

    def _message(
        self,
        number: int,
        direction: Direction,
        message: Message,
        pair: int,
        fds: tuple[FdInfo, ...] = (),
        channel: str = "",
    ) -> None:
        kept = replace(message, fds=[])
        now = time.monotonic_ns()
        self._steps.append(MessageRecord(number, now, direction, BOTH, kept, fds, pair, channel=channel))
