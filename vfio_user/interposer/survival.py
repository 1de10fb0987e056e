"""The server dies, or is restarted on purpose, and the client never knows.

The client's requests are held, a new server is brought up and told what the old one knew (`restore`), what may have
been lost is sent again (`journal`), and the client goes on. A client waits for a reply only so long (QEMU's
x-msg-timeout, 5 s): a request that cannot be answered within 80 % of that is answered with an error rather than late,
for a reply that comes after the timeout makes QEMU's stream unusable.
"""

from __future__ import annotations

import errno as errnos
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from userdev.errors import UserdevError, UserError
from userdev.eventfd import signal_eventfd
from userdev.interposer.upstream import LINGER_SECONDS, Upstream
from userdev.relay.direction import Direction
from userdev.relay.loop import Task, Timer
from userdev.transport import close_all
from vfio_user.interposer import own_calls
from vfio_user.interposer.control.answers import Restarted, SurvivalStatus
from vfio_user.interposer.errors import IncompatibleServer
from vfio_user.interposer.journal import RequestJournal
from vfio_user.interposer.migration import migration_of, migration_support
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.restore import kick, restore, save_state
from vfio_user.interposer.session import ForwardedSession
from vfio_user.wire import Message
from vfio_user.wire.constants import IrqIndex, MigrationState, MigrationSupport

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
SHARE_OF_TIMEOUT = 0.8
_FAILURES = (UserdevError, TimeoutError, OSError)


@dataclass(frozen=True)
class Policy:
    """The rules of survival."""

    msg_timeout: float = 5.0
    """Seconds that the client waits for a reply (QEMU: x-msg-timeout)."""
    pending: Literal["replay", "fail"] = "replay"
    """What becomes of requests that were not answered when the server died, and of those that come until the new one
    is up: sent to the new one, or answered with `errno` at once."""
    errno: int = errnos.EIO
    give_up_after: float = 30.0
    """Seconds until a server that does not come back is given up, and the client's connection closed."""
    kick: bool = True
    """Trigger every interrupt after a crash, as one may have been lost."""
    signal_error: bool = False
    """Tell the guest of the reset by the ERR interrupt (AER). QEMU's vfio code answers that by stopping the guest."""
    hang_timeout: float | None = None
    """Kill a server that has not answered for so many seconds."""

    @property
    def budget(self) -> float:
        """Seconds from the end of a server until a new one has to answer: a share of what the client waits."""
        return self.msg_timeout * SHARE_OF_TIMEOUT


@dataclass
class SurvivalCounts:
    """Counts of what survival has done in this session."""

    crashes: int = 0
    restarts: int = 0
    """On purpose."""
    hangs: int = 0
    replayed: int = 0
    failed: int = 0
    kicked: int = 0
    last_seconds: float = 0.0
    """From losing the last server until the client's requests went on."""


class Survival:
    """Keeps one session alive."""

    def __init__(
        self, session: ForwardedSession, upstream: Upstream, policy: Policy, warn: Callable[[str], None]
    ) -> None:
        self.policy = policy
        self.record = SurvivalCounts()
        self._session = session
        self._upstream = upstream
        self._warn = warn
        self._journal = RequestJournal()
        self._recovery: Task[None] | None = None
        self._planned = False
        self._barrier: Task[None] | None = None
        self._timers: list[Timer] = []
        session.watch(self)
        if policy.hang_timeout is not None:
            self._watch_for_hangs(policy.hang_timeout)

    def status(self) -> SurvivalStatus:
        """The counts, and what it is doing now."""
        record = self.record
        return {
            "crashes": record.crashes,
            "restarts": record.restarts,
            "hangs": record.hangs,
            "replayed": record.replayed,
            "failed": record.failed,
            "kicked": record.kicked,
            "last_seconds": record.last_seconds,
            "recovering": self._recovery is not None,
            "unanswered": len(self._journal),
        }

    async def restart(self, *, hand_over: bool = True) -> Restarted:
        """Replace the server on purpose. With `hand_over` a server that can migrate gives its state to the next.

        Raises:
            UserError: it is being replaced already, or the client has mapped memory that ends with it.
            RequestRefused, PeerLost, TimeoutError: the old one does not take part; it goes on as before.
        """
        if self._recovery is not None or self._planned:
            raise UserError("the server is being replaced already")
        session = self._session
        for index, file in session.model.region_files.items():
            if file.nameless:
                raise UserError(
                    f"the client has mapped memory of region {index}, which ends with the server",
                    hint="have the server keep it in a file, which the next one opens again",
                )
        began = time.monotonic()
        self._planned = True
        session.holding.hold()
        guard = self._guard()
        state: int | None = None
        try:
            state = await self._state_to_hand_over() if hand_over else None
            session.lose_server()
            await self._upstream.stop()
            await self._bring_up(state)
            self.record.restarts += 1
            self.record.last_seconds = time.monotonic() - began
            session.note("restarted", seconds=self.record.last_seconds, state=state is not None)
        except _FAILURES as error:
            if session.server_lost and not session.closed:
                self._warn(f"no server takes over: {error}")
                session.close()
            raise
        finally:
            if state is not None:
                os.close(state)
            guard.cancel()
            self._planned = False
            if not session.closed:
                session.holding.resume()
        return {"seconds": self.record.last_seconds, "handed_over": state is not None}

    async def _state_to_hand_over(self) -> int | None:
        """The device's state, where it can be had; a server that dies over it leaves none."""
        session = self._session
        try:
            await self._quiet()
            support = await migration_support(session) or MigrationSupport(0)
            return await save_state(session) if support & MigrationSupport.STOP_COPY else None
        except _FAILURES:
            if session.server_lost:
                return None
            if session.model.migration_state == MigrationState.STOP_COPY:
                await (await migration_of(session)).set_state(MigrationState.RUNNING)
            raise

    # a crash

    def server_gone(self) -> bool:
        """The server's connection has ended; True: the session is to wait for another."""
        if self._planned or self._recovery is not None:
            self._session.lose_server()
            return True
        if self._session.model.version_reply is None:
            return False  # nothing has been agreed yet: there is nothing to restore
        if self._session.counters.unframed_by_client:
            return False  # its last word was no message: a server has to hang up then
        self._session.lose_server()
        self._session.holding.hold()
        self._recovery = Task(self._recover())
        if self._recovery.done:
            self._recovery = None
        return True

    async def _recover(self) -> None:
        session, began = self._session, time.monotonic()
        if not await self._upstream.died(LINGER_SECONDS):
            self._recovery = None
            self._give_up("it has ended the connection and runs on, so it meant to")
            return
        guard = self._guard()
        given_up = ""
        try:
            self.record.crashes += 1
            session.note("server-gone", fate=self._upstream.fate)
            self._warn(f"the server {self._upstream.fate}; bringing up another")
            await self._bring_up(None)
            if self.policy.kick:
                self.record.kicked += kick(session.model)
            if self.policy.signal_error:
                self._signal_error()
            self.record.last_seconds = time.monotonic() - began
            session.note("recovered", seconds=self.record.last_seconds)
            self._warn(f"recovered after {self.record.last_seconds * 1000:.0f} ms")
        except Exception as error:  # whatever it is: the client must not wait for a server that never comes
            given_up = str(error) or type(error).__name__
        finally:
            guard.cancel()
            self._recovery = None
        if given_up:
            self._give_up(given_up)
        else:
            session.holding.resume()

    def _give_up(self, why: str) -> None:
        """The client sees its connection end."""
        self._session.note("given-up", why=why)
        self._warn(f"no server takes over: {why}")
        self._session.close()

    async def _bring_up(self, state: int | None) -> None:
        """A server in the old one's place, up to date, with everything that may have been lost sent again."""
        deadline = time.monotonic() + self.policy.give_up_after
        while True:
            try:
                stream = await self._upstream.reconnect(deadline)
                self._session.replace_server(stream)
                await restore(self._session, state, deadline - time.monotonic())
                break
            except IncompatibleServer:
                raise
            except _FAILURES as error:
                self._session.note("attempt-failed", why=str(error))
                if time.monotonic() >= deadline:
                    raise
                self._session.lose_server()
                if state is not None:
                    os.lseek(state, 0, os.SEEK_SET)
                await self._session.loop.sleep(0.05)
        for entry in self._journal.take_all():
            self._session.send_on(Passing(TO_SERVER, entry.message, since=entry.since, answered=entry.answered))
            close_all(entry.message.fds)
            self.record.replayed += 1

    # what the client must not wait for

    def _guard(self) -> Task[None]:
        """Answer with an error what cannot be answered in time, for as long as the task runs."""
        return self._session.loop.spawn(self._fail_overdue())

    async def _fail_overdue(self) -> None:
        while True:
            limit = self.policy.budget if self.policy.pending == "replay" else 0.0
            due = time.monotonic() - limit
            for entry in self._journal.requests():
                if entry.since <= due:
                    self._journal.remove(entry)
                    refusal = self._fail(self._session.own[TO_SERVER].as_asked(entry.message))
                    for told in entry.answered:
                        told(refusal)
            for held in self._session.holding.take(due):
                if held.wants_reply:
                    self._fail(held)
                close_all(held.fds)
            await self._session.loop.sleep(0.02)

    def _fail(self, request: Message) -> Message:
        """Refuse a request, which has the id that the client gave it; returns the refusal."""
        self.record.failed += 1
        reply = request.error(self.policy.errno)
        self._session.send(TO_CLIENT, reply)
        return reply

    # what the server has been sent

    def passed(self, passing: Passing) -> None:
        """Keep what the server may not have dealt with yet."""
        try:
            self._journal.shown(passing)
        except OSError as error:
            self._session.model.miss(passing.message, error)
        if self._journal.wants_barrier and self._barrier is None:
            self._barrier = Task(self._confirm())
            if self._barrier.done:
                self._barrier = None

    async def _confirm(self) -> None:
        """Wait until the server has dealt with what was posted."""
        try:
            while self._journal.wants_barrier:  # more may have been posted meanwhile, and nothing after it
                number = self._journal.last
                await own_calls.barrier(self._session, timeout=self.policy.budget)
                self._journal.confirm(number)
        except _FAILURES:
            return
        finally:
            self._barrier = None

    async def _quiet(self) -> None:
        """Wait until the server has dealt with everything it was sent; the client is held."""
        await own_calls.barrier(self._session, timeout=self.policy.budget)
        deadline = time.monotonic() + self.policy.budget
        while self._journal.requests():
            if time.monotonic() > deadline:
                raise TimeoutError("the server does not answer what it was asked")
            await self._session.loop.sleep(0.001)
        self._journal.confirm(self._journal.last)

    def _signal_error(self) -> None:
        irqs = self._session.model.irqs.get(IrqIndex.ERR)
        for fd in irqs.eventfds.values() if irqs is not None else ():
            signal_eventfd(fd)

    def _watch_for_hangs(self, limit: float) -> None:
        oldest = min((entry.sent for entry in self._journal.requests()), default=None)
        hangs = oldest is not None and time.monotonic() - oldest > limit
        busy = self._recovery is not None or self._planned or self._session.model.version_reply is None
        if hangs and not busy:
            self.record.hangs += 1
            self._session.note("server-hangs", seconds=limit)
            try:
                self._upstream.signal(signal.SIGKILL)
            except UserError as error:
                self._warn(str(error))
        self._timers = [self._session.loop.after(limit / 4, lambda: self._watch_for_hangs(limit))]

    def closed(self) -> None:
        """The session has ended: nothing is to be kept alive."""
        for timer in self._timers:
            timer.cancel()
        for task in (self._recovery, self._barrier):
            if task is not None:
                task.cancel()
        self._journal.close()
