"""Carries plans out in a session: what is sent when, in which order, and what happens beside it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic

from userdev.errors import UserError
from userdev.interposer.faults.engine import FaultEngine, FaultPlan
from userdev.interposer.faults.scenario import Signal
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
    is_late: bool = False
    """Whether others have been let past it."""

    @property
    def message(self) -> M:
        return self.passing.message


@dataclass
class _Line(Generic[M]):
    """What waits in one direction. All that is sent goes through the queue: nothing comes within another message."""

    direction: Direction
    queue: deque[_Item[M]] = field(default_factory=deque)
    task: Task[None] | None = None
    """Sends what is in the queue, where that takes time."""
    runs: bool = False
    """Whether something of the queue is being sent, or waits to be."""
    sleeps: bool = False
    """Whether it is only the time of the first in the queue that is waited for."""
    behind: list[tuple[int, _Item[M]]] = field(default_factory=list)
    """Reordered messages, and how many others each still lets pass."""
    flying: list[_Item[M]] = field(default_factory=list)
    """Delayed ones, which others overtake meanwhile."""
    dead: bool = False
    """Nothing is ever sent in this direction again."""

    def stop(self) -> None:
        """End what waits for a time: what is out in part is sent whole, the rest stays in the queue."""
        task, self.task = self.task, None
        if task is not None:
            task.cancel()


class _Silence(Generic[M]):
    """A stage that nothing gets through."""

    def __call__(self, passing: Passing[M]) -> M | None:
        passing.afterwards(lambda: close_all(passing.message.fds))
        passing.afterwards(passing.never_sent)
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
        self._lines: dict[Direction, _Line[M]] = {direction: _Line(direction) for direction in Direction}
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
        for line in self._lines.values():
            line.stop()
            items = [*line.queue, *(item for _, item in line.behind), *line.flying]
            for waiting in (line.queue, line.behind, line.flying):
                waiting.clear()
            for item in items:
                self._session.backlog.let_go(line.direction, item.message.size)
                self._send(line, item)
                self._answer(line, item)
        while self._left_held:
            self._left_held -= 1
            self._session.holding.resume()

    def __call__(self, passing: Passing[M]) -> M | None:
        """Let a message through that no rule is about, or take it and do what the rules plan once it is recorded."""
        direction, message = passing.direction, passing.message
        line = self._lines[direction]
        plan = self._engine.plan(direction, message, self._session.state, time.monotonic() - self._began)
        if plan is None and not line.runs and not line.dead:
            if line.behind:
                passing.afterwards(lambda: self._passed(line))
            return message
        item = _Item(passing, plan)
        passing.afterwards(lambda: self._act(line, item))
        return None

    def _act(self, line: _Line[M], item: _Item[M]) -> None:
        """The message is recorded as received: now do what the plan says."""
        plan = item.plan
        self._session.backlog.keep(line.direction, item.message.size)
        if plan is not None:
            self._session.counters.faults += 1
            self._session.note("fault", rules=plan.rules, acts=plan.acts, direction=line.direction.label)
            for why in plan.left_out:
                self._session.note("fault-failed", why=why)
            for act in plan.signals:
                self._signal(act)
            if plan.only_closes:
                self._close(plan)
            if plan.reorder is not None:
                line.behind.append((plan.reorder.after, item))
                self._session.loop.after(plan.reorder.within, partial(self._release, line, item))
                return
        self._delay(line, item)

    def _delay(self, line: _Line[M], *items: _Item[M]) -> None:
        """Have them be sent in this order, after their delays where they have one."""
        due = []
        for item in items:
            plan = item.plan
            if plan is not None and plan.delay and plan.overtake:
                line.flying.append(item)
                self._session.loop.after(plan.delay, partial(self._land, line, item))
            else:
                item.due = time.monotonic() + (plan.delay if plan is not None else 0.0)
                due.append(item)
        self._put_in(line, *due)

    def _put_in(self, line: _Line[M], *items: _Item[M]) -> None:
        """Have them be sent when they are due: before all that wait, if others have been let past them already."""
        late = [item for item in items if item.is_late]
        line.queue.extendleft(reversed(late))
        line.queue.extend(item for item in items if not item.is_late)
        if late and line.sleeps:  # for the time of the one that was the first
            line.stop()
        if line.queue and not line.runs:
            task = self._session.loop.spawn(self._run(line))
            line.task = None if task.done else task

    async def _run(self, line: _Line[M]) -> None:
        """Send what waits, one after the other, each when it is due."""
        line.runs = True
        try:
            while line.queue:
                wait = line.queue[0].due - time.monotonic()
                if wait > 0:
                    line.sleeps = True
                    await self._session.loop.sleep(wait)
                    line.sleeps = False
                if self._is_kept_back(line):
                    await self._session.holding.until_free()
                    continue
                item = line.queue.popleft()
                if item.plan is not None and item.plan.hold:
                    await self._hold(line, item)
                try:
                    if item.plan is not None and len(item.plan.pieces) > 1:
                        await self._send_in_pieces(line, item, item.plan)
                    else:
                        self._send(line, item)
                finally:
                    self._session.backlog.let_go(line.direction, item.message.size)
                self._answer(line, item)
                if item.plan is not None and not item.plan.only_closes:
                    self._close(item.plan)
                if not item.is_late:
                    self._passed(line)
        finally:
            line.runs = line.sleeps = False

    def _is_kept_back(self, line: _Line[M]) -> bool:
        """Whether the first in the queue is a request while these are held, or the server is being replaced."""
        first = line.queue[0]
        holds_itself = first.plan is not None and first.plan.hold
        is_request = line.direction is Direction.TO_SERVER and not first.message.is_reply
        return is_request and self._session.holding.active and not holds_itself

    async def _hold(self, line: _Line[M], item: _Item[M]) -> None:
        """Have the session stand still until it is let go."""
        holding = self._session.holding
        holding.hold()
        self._session.note("held", rules=item.plan.rules if item.plan is not None else [])
        try:
            await holding.until_free()
        except GeneratorExit:  # its rule is taken away, or the session ends: first goes on what came first
            self._left_held += 1
            line.queue.appendleft(item)
            raise

    async def _send_in_pieces(self, line: _Line[M], item: _Item[M], plan: FaultPlan[M]) -> None:
        """Send one message with the pauses that its plan has, as often as that says."""
        copies = plan.copies if plan.data and not line.dead else 0
        if not copies:
            item.passing.never_sent()
        try:
            while copies and not self._session.closed:
                copies -= 1
                await self._send_copy(line, item, plan)
        except GeneratorExit:  # its rule is taken away
            for _ in range(copies if not self._session.closed else 0):
                self._send_whole(line, item, plan)
            raise
        finally:
            line.dead = line.dead or plan.is_endless
            close_all(item.message.fds)

    async def _send_copy(self, line: _Line[M], item: _Item[M], plan: FaultPlan[M]) -> None:
        fds, made = self._descriptors(item, plan)
        left = deque(plan.pieces)
        try:
            while left:
                if left[0][0]:
                    await self._session.loop.sleep(left[0][0])
                if self._session.closed:
                    return
                if data := left.popleft()[1]:
                    self._session.send_bytes(line.direction, data, fds)
                fds = []
        except GeneratorExit:
            if not self._session.closed and (data := b"".join(data for _, data in left)):
                self._session.send_bytes(line.direction, data, fds)
            raise
        finally:
            close_all(made)
            self._is_sent(item, self._engine.as_message(plan.data) if not plan.is_endless else None)

    def _is_sent(self, item: _Item[M], message: M | None) -> None:
        """It has gone as bytes: who waits for its reply hears of that, if they were a message."""
        if message is None:
            item.passing.never_sent()
        elif not self._session.closed:
            self._session.expect_reply(replace(item.passing, message=message))

    def _send(self, line: _Line[M], item: _Item[M]) -> None:
        """Send one message as its plan has it, at one go."""
        plan = item.plan
        if self._session.closed or line.dead or (plan is not None and not plan.data):
            if plan is None or plan.reply is None:
                item.passing.never_sent()
        elif plan is None:
            self._session.send_on(item.passing)
        else:
            for _ in range(plan.copies):
                self._send_whole(line, item, plan)
            line.dead = plan.is_endless
        close_all(item.message.fds)

    def _send_whole(self, line: _Line[M], item: _Item[M], plan: FaultPlan[M]) -> None:
        fds, made = self._descriptors(item, plan)
        data = b"".join(data for _, data in plan.pieces)
        sent = self._engine.as_message(data)
        if sent is not None:
            sent.fds = fds
            self._session.send_on(replace(item.passing, message=sent))
        else:
            self._session.send_bytes(line.direction, data, fds)
            item.passing.never_sent()
        close_all(made)

    def _answer(self, line: _Line[M], item: _Item[M]) -> None:
        """Answer it, where it is we who are to."""
        if item.plan is not None and (reply := item.plan.reply) is not None and not self._session.closed:
            for told in item.passing.answered:
                told(reply)
            self._session.send(line.direction.opposite, reply)

    def _descriptors(self, item: _Item[M], plan: FaultPlan[M]) -> tuple[list[int], list[int]]:
        """Those to send, and those among them that were made for it."""
        fds = item.message.fds
        if plan.keep_fds is not None:
            fds = [fds[index] for index in plan.keep_fds]
        made = [os.memfd_create("extra") for _ in range(plan.extra_fds)]
        return fds + made, made

    def _passed(self, line: _Line[M]) -> None:
        """A message of this direction has been sent: reordered ones behind it come nearer."""
        nearer = [(count - 1, item) for count, item in line.behind]
        line.behind = [(count, item) for count, item in nearer if count > 0]
        self._let_go(line, *(item for count, item in nearer if count <= 0))

    def _release(self, line: _Line[M], item: _Item[M]) -> None:
        """No more are let past it."""
        left = [(count, other) for count, other in line.behind if other is not item]
        if len(left) < len(line.behind):
            line.behind = left
            self._let_go(line, item)

    def _let_go(self, line: _Line[M], *items: _Item[M]) -> None:
        for item in items:
            item.is_late = True
        self._delay(line, *items)

    def _land(self, line: _Line[M], item: _Item[M]) -> None:
        if item in line.flying:
            line.flying.remove(item)
            item.is_late = True
            self._put_in(line, item)

    def _close(self, plan: FaultPlan[M]) -> None:
        for close in plan.closes:
            for side in ("client", "server") if close.side == "both" else (close.side,):
                self._session.close_side(side, _HOW[close.how])

    def _signal(self, act: Signal) -> None:
        self._signal_now(signal.Signals[act.signal])
        if act.seconds is not None:
            self._session.loop.after(act.seconds, lambda: self._signal_now(signal.SIGCONT))

    def _signal_now(self, number: signal.Signals) -> None:
        try:
            self._signal_server(number)
        except UserError as error:
            self._session.note("fault-failed", why=str(error))
