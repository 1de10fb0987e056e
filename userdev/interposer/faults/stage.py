"""Carries plans out in a session: what is sent when, in which order, and what happens beside it."""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from userdev.errors import UserError
from userdev.interposer.faults.engine import FaultEngine, FaultPlan
from userdev.interposer.faults.scenario import Close
from userdev.interposer.passing import M, Passing
from userdev.interposer.session import BaseSession
from userdev.relay.direction import Direction
from userdev.relay.loop import Task
from userdev.transport import close_all

_HOW = {"full": socket.SHUT_RDWR, "read": socket.SHUT_RD, "write": socket.SHUT_WR}


@dataclass(eq=False)
class _Item(Generic[M]):
    """A message that is to be sent later, with what is to be done to it."""

    passing: Passing[M]
    plan: FaultPlan[M] | None
    due: float = 0.0

    @property
    def message(self) -> M:
        return self.passing.message


@dataclass
class _Line(Generic[M]):
    """What waits in one direction."""

    queue: deque[_Item[M]] = field(default_factory=deque)
    task: Task[None] | None = None
    behind: list[tuple[int, _Item[M]]] = field(default_factory=list)
    """Reordered messages, and how many others each still lets pass."""
    dead: bool = False
    """Nothing is ever sent in this direction again."""


class _Silence(Generic[M]):
    """A stage that nothing gets through."""

    def __call__(self, passing: Passing[M]) -> M | None:
        passing.afterwards(lambda: close_all(passing.message.fds))
        return None

    def closed(self) -> None:
        """Nothing was kept."""


class Faults(Generic[M]):
    """A scenario at work in one session. Both directions' stage is the object itself."""

    def __init__(
        self,
        session: BaseSession[M, Any],
        engine: FaultEngine[M],
        signal_server: Callable[[int], int],
        began: float | None = None,
    ) -> None:
        """Begin; `began` is when the session did (monotonic seconds), where that is not now."""
        self._session = session
        self._engine = engine
        self._signal_server = signal_server
        self._began = began if began is not None else time.monotonic()
        self._lines: dict[Direction, _Line[M]] = {direction: _Line() for direction in Direction}
        self._flying: list[tuple[Direction, _Item[M]]] = []  # delayed, and overtaken by others meanwhile
        self._left_held = 0
        """Holds of rules that are no more."""
        session.add_stage(self, *Direction)

    def remove(self) -> None:
        """Stop interfering; what waits is sent now, also the rest of a message that is out in part.

        Behind half a message that nothing was ever to follow nothing does: it would be taken for the other half.
        """
        self._session.remove_stage(self)
        self.closed()
        dead = [direction for direction, line in self._lines.items() if line.dead]
        self._session.add_stage(_Silence(), *dead)

    def closed(self) -> None:
        """Send what waits, or let go of it where nobody is there any more."""
        for direction, line in self._lines.items():
            if line.task is not None:
                line.task.cancel()
                line.task = None
            items = [*line.queue, *(item for _, item in line.behind)]
            line.queue.clear()
            line.behind.clear()
            for item in items:
                self._session.backlog.let_go(direction, item.message.size)
                self._send(direction, item)
        flying, self._flying = self._flying, []
        for direction, item in flying:
            self._session.backlog.let_go(direction, item.message.size)
            self._send(direction, item)
        while self._left_held:
            self._left_held -= 1
            self._session.holding.resume()

    def __call__(self, passing: Passing[M]) -> M | None:
        """Let a message through that no rule is about, or take it and do what the rules plan once it is recorded."""
        direction, message = passing.direction, passing.message
        line = self._lines[direction]
        plan = self._engine.plan(direction, message, self._session.state, time.monotonic() - self._began)
        if plan is None and line.task is None and not line.dead:
            if line.behind:
                passing.afterwards(lambda: self._passed(direction))
            return message
        item = _Item(passing, plan)
        passing.afterwards(lambda: self._act(direction, item))
        return None

    def _act(self, direction: Direction, item: _Item[M]) -> None:
        """The message is recorded as received: now do what the plan says."""
        plan, line = item.plan, self._lines[direction]
        if plan is not None:
            self._session.counters.faults += 1
            self._session.note("fault", rules=plan.rules, acts=plan.acts, direction=direction.label)
            self._act_beside(direction, item, plan)
            if plan.reorder is not None:
                self._put_behind(direction, item, plan.reorder.after, plan.reorder.within)
                return
            if plan.delay and plan.overtake:
                self._session.backlog.keep(direction, item.message.size)
                self._flying.append((direction, item))
                self._session.loop.after(plan.delay, lambda: self._land(direction, item))
                return
            item.due = time.monotonic() + plan.delay
        if line.dead:
            close_all(item.message.fds)
            return
        self._session.backlog.keep(direction, item.message.size)
        line.queue.append(item)
        if line.task is None:
            line.task = self._session.loop.spawn(self._run_line(direction, line))
            if line.task.done:
                line.task = None

    def _act_beside(self, direction: Direction, item: _Item[M], plan: FaultPlan[M]) -> None:
        if plan.reply is not None:
            self._session.send(direction.opposite, plan.reply)
        for act in plan.signals:
            self._signal(signal.Signals[act.signal])
            if act.seconds is not None:
                self._session.loop.after(act.seconds, lambda: self._signal(signal.SIGCONT))
        for close in plan.closes:
            self._close(close)

    async def _run_line(self, direction: Direction, line: _Line[M]) -> None:
        """Send what waits, one after the other, each when it is due."""
        while line.queue:
            wait = line.queue[0].due - time.monotonic()
            if wait > 0:
                await self._session.loop.sleep(wait)
            if (plan := line.queue[0].plan) is not None and plan.hold:
                await self._hold(plan)
            item = line.queue.popleft()
            self._session.backlog.let_go(direction, item.message.size)
            if item.plan is not None and len(item.plan.pieces) > 1:
                await self._send_in_pieces(direction, item, item.plan)
            else:
                self._send(direction, item)
            if item.plan is not None and item.plan.stall == math.inf:
                line.dead = True
                break
            self._passed(direction)
        while line.queue:
            item = line.queue.popleft()
            self._session.backlog.let_go(direction, item.message.size)
            close_all(item.message.fds)
        line.task = None

    async def _hold(self, plan: FaultPlan[M]) -> None:
        """Have the session stand still until it is let go."""
        holding = self._session.holding
        holding.hold()
        self._session.note("held", rules=plan.rules)
        try:
            await holding.until_free()
        except GeneratorExit:  # its rule is taken away, or the session ends: first goes on what came first
            self._left_held += 1
            raise

    async def _send_in_pieces(self, direction: Direction, item: _Item[M], plan: FaultPlan[M]) -> None:
        fds, made = self._descriptors(item, plan)
        left = deque(plan.pieces)
        try:
            while left:
                if left[0].pause:
                    await self._session.loop.sleep(left[0].pause)
                if self._session.closed:
                    return
                self._session.send_bytes(direction, left.popleft().data, fds)
                fds = []
            self._session.expect_reply(item.passing)
        except GeneratorExit:  # its rule is taken away
            if not self._session.closed:
                self._session.send_bytes(direction, b"".join(piece.data for piece in left), fds)
                self._session.expect_reply(item.passing)
            raise
        finally:
            close_all(made)
            close_all(item.message.fds)

    def _send(self, direction: Direction, item: _Item[M]) -> None:
        """Send one message as its plan has it, at one go."""
        plan = item.plan
        if self._session.closed or (plan is not None and not plan.pieces):
            close_all(item.message.fds)
            return
        if plan is None:
            self._session.send_on(item.passing)
            close_all(item.message.fds)
            return
        fds, made = self._descriptors(item, plan)
        sent = self._engine.as_message(plan.data)
        for _ in range(plan.copies):
            if sent is not None:
                sent.fds = fds
                self._session.send_on(replace(item.passing, message=sent))
            else:
                self._session.send_bytes(direction, plan.data, fds)
        close_all(made)
        close_all(item.message.fds)

    def _descriptors(self, item: _Item[M], plan: FaultPlan[M]) -> tuple[list[int], list[int]]:
        """Those to send, and those among them that were made for it."""
        fds = item.message.fds
        if plan.keep_fds is not None:
            fds = [fds[index] for index in plan.keep_fds]
        made = [os.memfd_create("extra") for _ in range(plan.extra_fds)]
        return fds + made, made

    def _put_behind(self, direction: Direction, item: _Item[M], count: int, within: float) -> None:
        line = self._lines[direction]
        self._session.backlog.keep(direction, item.message.size)
        line.behind.append((count, item))
        self._session.loop.after(within, lambda: self._release(direction, item))

    def _passed(self, direction: Direction) -> None:
        """A message of this direction has been sent: reordered ones behind it come nearer."""
        line = self._lines[direction]
        line.behind = [(count - 1, item) for count, item in line.behind]
        for count, item in list(line.behind):
            if count <= 0:
                self._release(direction, item)

    def _release(self, direction: Direction, item: _Item[M]) -> None:
        line = self._lines[direction]
        left = [(count, other) for count, other in line.behind if other is not item]
        if len(left) < len(line.behind):
            line.behind = left
            self._session.backlog.let_go(direction, item.message.size)
            self._send(direction, item)

    def _land(self, direction: Direction, item: _Item[M]) -> None:
        if (direction, item) in self._flying:
            self._flying.remove((direction, item))
            self._session.backlog.let_go(direction, item.message.size)
            self._send(direction, item)

    def _close(self, close: Close) -> None:
        for side in ("client", "server") if close.side == "both" else (close.side,):
            self._session.close_side(side, _HOW[close.how])

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._signal_server(number)
        except UserError as error:
            self._session.note("fault-failed", why=str(error))
