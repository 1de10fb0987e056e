"""One client's session with one device: receive, dispatch, reply, and the device's own requests to the client.

Order is the protocol's: commands take effect in the order of their arrival, and the replies of everything that one
receive brought leave in one send. Work that a handler deferred runs after that.

Register accesses of natural width go by a table from the 16 bytes that name an access (offset, region, count) straight
to the device's function: `vfio_user.server.registers`. Everything else is a `Message` for `vfio_user.server.commands`.

What the device asks of its client goes by `vfio_user.server.requests`, which serves further commands while it waits.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from userdev.busy_wait import BusyWait
from userdev.errors import AUTHORS_FAILURES, ProtocolError
from userdev.serving.wakeup import Wakeup
from userdev.serving.worker import Worker
from userdev.transport import Stream, close_all
from vfio_user.device import CURRENT_POLICY, DRAFT_V6_POLICY
from vfio_user.server import commands
from vfio_user.server.connection import ClientGone, ServerConnection
from vfio_user.server.gate import check_command
from vfio_user.server.negotiation import Agreement, Offer, negotiate
from vfio_user.server.owed import Owed
from vfio_user.server.regions import Regions
from vfio_user.server.registers import RegisterPath
from vfio_user.server.requests import ClientRequests
from vfio_user.wire import COMMAND, DRAFT_V6, NO_REPLY, Command, Dialect, Message, Sender

if TYPE_CHECKING:
    from userdev.trace import TraceWriter
    from vfio_user.device import Function
    from vfio_user.device.standstill import Hold
    from vfio_user.migration import Migration

log = logging.getLogger("vfio_user.server")

QUIESCE_SECONDS = 5.0
"""How long a device may take to stand still once its client is gone, as long as nobody waits for that; and after which
the log says that one does not while a client waits for it, as it may for ever."""

MAX_BACKLOG = 1024
"""Commands held while the device is getting quiet; beyond that the client is not read from."""

MAX_BACKLOG_SIZE = 8 << 20
"""Bytes of them, and what one receive brings: a thousand writes of 1 MiB would be a gigabyte."""

LOCK_SECONDS = 1.0
"""How long to wait for the session's lock before looking what keeps whoever has it."""


class Session:
    """Serves `device` to the client at the other end of `stream`; also the device's link to that client.

    Handlers run under `lock`; a device's own threads take it before they touch the device, and may wait for message
    DMA while they hold it (it is released meanwhile).
    """

    def __init__(
        self,
        function: Function,
        stream: Stream,
        dialect: Dialect,
        offer: Offer | None = None,
        *,
        version_seconds: float | None = None,
        trace: TraceWriter | None = None,
        busy_wait: BusyWait | None = None,
    ) -> None:
        """`version_seconds` is what the client has for its first message; None: as long as it likes.

        `trace` records all messages; there is no second socket then, which nobody would record. `busy_wait` is what was
        learnt with the clients before this one.
        """
        self.function = function
        self.dialect = dialect
        self.lock = threading.RLock()
        self._turnstile = threading.Lock()
        self._offer = offer or Offer()
        if trace is not None:
            self._offer = replace(self._offer, twin_socket=False)
        self._version_seconds = version_seconds
        self.connection = _connection(stream, self.max_data, busy_wait or BusyWait(), trace)
        self.owed = Owed()
        self._worker = Worker(self._locked)
        self._requests = ClientRequests(
            dialect, self.connection, self.lock, self.owed, self._answer_what_came, function.dma.check_mapped
        )
        self._backlog: deque[Message] = deque()  # commands that came while the device was getting quiet
        self._deferred: deque[Callable[[], None]] = deque()
        self._gone = False
        """The client is: nothing can be asked of it any more."""
        self._over = False
        """The device is detached: work for this client is dropped."""
        self._migration: Migration | None = function.migration
        self._registers = RegisterPath(dialect, self.connection, self.owed, self.failed)
        self.regions = Regions(function, dialect, carries_fds=self.connection.carries_fds)
        self._stop_following: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Negotiate, then serve until the client goes away or `stop` is called. Raises nothing a client can cause."""
        self._requests.serving_thread = threading.get_ident()
        attached = False
        try:
            if not self._negotiate():
                return
            with self.lock:
                attached = True
                if not self._attach():
                    return
                self._serve()  # what came in one receive with VERSION
            while self.connection.receive():
                self._take_turn()
                try:
                    self._serve()
                finally:
                    self.lock.release()
            if self.connection.is_cut_off:
                log.warning("the client went away in the middle of a message")
        except ClientGone:
            pass
        except OSError as error:
            log.info("connection lost: %s", error)
        finally:
            self._take_lock()
            try:
                self._end(attached=attached)
            finally:
                self.lock.release()
            self._worker.close()

    def stop(self) -> None:
        """End the session from any thread, whatever it waits for of its client."""
        self.connection.shutdown()
        if self.agreement.twin is not None:
            self.agreement.twin.shutdown()
        self.function.interrupts.unblock()

    def free(self) -> bool:
        """For whoever waits for this session in vain: end what only a client that means no good can make last.

        Returns whether the client has gone, so that the session ends. From any thread.
        """
        if self.connection.is_hung_up:
            self.stop()
            if self._gone:  # the device has had the time that the next client has
                self._worker.call_soon(self.function.give_up_waiting)
            return True
        self.function.interrupts.unblock()
        return False

    # The device's link to its client (vfio_user.device.Link)

    @property
    def in_band_interrupts(self) -> bool:
        """Whether the dialect has VM_INTERRUPT: an interrupt without eventfd goes as a message."""
        return Command.VM_INTERRUPT in self.dialect

    def dma_read(self, iova: int, count: int) -> bytes:
        """Read client memory by DMA_READ; raises as `Link.dma_read`."""
        return self._requests.dma_read(iova, count)

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        """Write client memory by DMA_WRITE; raises as `Link.dma_write`."""
        self._requests.dma_write(iova, data)

    def interrupt(self, index: int, vector: int) -> None:
        """Send VM_INTERRUPT for a vector of an index."""
        self._requests.interrupt(index, vector)

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` once the replies of what came together are sent."""
        self._deferred.append(work)

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` under the lock, soon; any thread may ask for it."""
        self._worker.call_soon(work)

    def call_later(self, seconds: float, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work` under the lock in so many seconds; what is returned cancels it."""
        return self._worker.call_later(seconds, work)

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` under the lock whenever `fd` is readable."""
        self._worker.watch(fd, ready)

    def unwatch(self, fd: int) -> None:
        """Stop watching, before the descriptor is closed."""
        self._worker.unwatch(fd)

    # What commands need of the session

    @property
    def agreement(self) -> Agreement:
        """The result of VERSION."""
        return self._requests.agreement

    @property
    def max_data(self) -> int:
        """Bytes of data that the client may put into one message or ask for."""
        return self._offer.max_data_xfer_size

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Have the device stand still inside, while its memory or state changes.

        Commands that come before it does are held; replies to the device's own requests are taken.

        Raises:
            ProtocolError: the device cannot, with its errno.
        """
        hold = self.function.hold_still()
        try:
            self._wait_settled(hold)
            hold.check()
            yield
        finally:
            hold.release()

    def _stop_device(self) -> None:
        """For migration."""
        with self.quiet():
            self.function.stop()

    def _wait_settled(self, hold: Hold, seconds: float | None = None) -> None:
        """Let the device's threads have the lock until the hold is settled, for so many seconds at most.

        It is this thread that reads meanwhile: the others may wait for message DMA.
        """
        if hold.settled:
            return
        self._flush()
        if self._deferred:  # by on_quiesce: the hold may wait for it
            self._worker.call_soon(self._do_deferred)
        deadline: float | None = monotonic() + (QUIESCE_SECONDS if seconds is None else seconds)
        with Wakeup() as settled:
            hold.then(settled.set)
            try:
                while not hold.settled:
                    if deadline is not None and monotonic() >= deadline:
                        if seconds is not None:
                            return
                        deadline = None
                        log.warning("%s does not stand still, and its client waits for it", self.function.name)
                    self.lock.release()
                    try:
                        readable = self._wait_readable(settled, deadline)
                    finally:
                        self._take_turn()
                    if readable:
                        self._hold_back()
            finally:
                hold.then(None)

    def _wait_readable(self, settled: Wakeup, deadline: float | None) -> bool:
        if self._gone:
            return settled.wait(deadline)
        events = select.POLLRDHUP if self._holds_enough() else select.POLLIN
        return settled.wait(deadline, self.connection.fileno(), events)

    def _hold_back(self) -> None:
        """Take what has come while the device is getting quiet."""
        if self._holds_enough() or not self.connection.receive():
            raise ClientGone("the client went away while the device was getting quiet")
        while (message := self.connection.next()) is not None:
            if not self._requests.settle(message):
                self._backlog.append(message)

    def _holds_enough(self) -> bool:
        held = self._backlog
        return len(held) >= MAX_BACKLOG or sum(message.size for message in held) >= MAX_BACKLOG_SIZE

    # Serving

    def _attach(self) -> bool:
        """Tell the device that its client has come; False if it fails at that, which ends the session."""
        self.function.dma.policy = DRAFT_V6_POLICY if self.dialect is DRAFT_V6 else CURRENT_POLICY
        try:
            self.function.attach(self)
            if self._migration is not None:
                self._migration.attach(self._stop_device)
        except AUTHORS_FAILURES:
            log.exception("the device failed when its client came: the session ends")
            return False
        self._follow_state()
        return True

    def _negotiate(self) -> bool:
        end = None if self._version_seconds is None else monotonic() + self._version_seconds
        try:
            while (message := self.connection.next()) is None:
                if not self.connection.receive(end):
                    return False
        except TimeoutError:
            log.warning("client refused: no VERSION within %g s", self._version_seconds)
            return False
        close_all(message.fds)
        pgsize = self._migration.page_size if self._migration is not None else None
        offer = self._offer if self.connection.carries_fds else replace(self._offer, max_msg_fds=0, twin_socket=False)
        agreement, reply = negotiate(message, self.dialect, offer, migration_pgsize=pgsize)
        if agreement is None:
            log.warning("client refused: %s", reply.reason)
        else:
            self._requests.agreement = agreement
            self.regions.carries_fds &= agreement.client.fds_per_message > 0
        if reply.message is not None:
            try:
                self.connection.send(reply.message)
                self.connection.flush()
            finally:
                close_all(reply.message.fds)
        return agreement is not None

    def _serve(self) -> None:
        """Handle what was received, send the replies, then do what was deferred."""
        self._answer_what_came()
        self._do_deferred()

    def _answer_what_came(self) -> None:
        self._drain()
        self.connection.flush()

    def _do_deferred(self) -> None:
        while self._deferred:
            self._guarded(self._deferred.popleft())
            self._flush()

    def _flush(self) -> None:
        if not self._gone:
            self.connection.flush()

    def _take_turn(self) -> None:
        """Get the lock, before a worker that is busy gets it again."""
        if not self.lock.acquire(blocking=False):
            with self._turnstile:
                self._take_lock()

    def _take_lock(self) -> None:
        """Get the lock; whoever has it for long may wait for a client that means no good."""
        while not self.lock.acquire(timeout=LOCK_SECONDS):
            self.free()

    def _drain(self) -> None:
        framer = self.connection.framer
        while True:
            if not framer.has_fds and not self._backlog:
                self._registers.serve()
                if framer.start == framer.end and not self._backlog:
                    return
            message = self._backlog.popleft() if self._backlog else self.connection.next()
            if message is None:
                return
            self._handle(message)

    def _handle(self, message: Message) -> None:
        if self._requests.settle(message):
            return
        self.owed.begin(wanted=not message.flags & NO_REPLY)
        try:
            command = self._command(message)
            payload, fds = self._run(command, message)
        except AUTHORS_FAILURES as error:
            self.failed(message, error)
        else:
            if self.owed.end():
                self.connection.send(message.reply(payload, fds))
        finally:
            close_all(message.fds)

    def _command(self, message: Message) -> Command:
        """Which command this is, if it is one that the client may send now."""
        if message.type != COMMAND:
            raise ProtocolError(f"message type {message.type} where a command is expected")
        command = self.dialect.command(message.command)
        if command is None or self.dialect.shapes[command].sender is Sender.SERVER:
            raise ProtocolError(f"command {message.command} is none of a client's in dialect {self.dialect.name}")
        if self._migration is not None:
            check_command(self._migration.state, command)
        return command

    def _named(self, message: Message) -> str:
        command = self.dialect.command(message.command)
        return command.name if command is not None else f"command {message.command}"

    def _run(self, command: Command, message: Message) -> tuple[bytes, list[int]]:
        """The effect of a command; the reply of one that may be answered early is ready before its effect."""
        if command is Command.REGION_WRITE and message.wants_reply:
            self.owed.promise(message.reply(commands.write_reply(self, message)).encode())
        return commands.HANDLERS[command](self, message)

    def failed(self, message: Message, error: BaseException) -> None:
        """Answer a command that raised: its errno where the protocol has one, EIO for a defect of the device."""
        owed = self.owed.end()
        if isinstance(error, ClientGone):
            raise error
        if isinstance(error, ProtocolError):
            number = error.errno or errno.EIO  # a client takes an error with errno 0 for success
            log.debug("%s: %s", self._named(message), error)
        elif isinstance(error, OSError) and error.errno:
            number = error.errno
            log.warning("%s: %s", self._named(message), error)
        else:
            number = errno.EIO
            log.error("%s: the device failed", self._named(message), exc_info=error)
        if owed:
            self.connection.out += message.error(number).encode()

    def _follow_state(self) -> None:
        """Have the device's register table in the hot path, and nothing while its migration state forbids access."""
        if self._migration is not None:
            self._stop_following = self._migration.watch(self._refresh_registers)
        self._refresh_registers()

    def _refresh_registers(self) -> None:
        self._registers.clear()
        if self.regions.accessible:
            self._registers.fill(self.function)

    def _end(self, *, attached: bool) -> None:
        """The client is gone. All of this happens, whatever the device's hooks raise."""
        self._gone = True
        self._requests.client_gone()
        steps = [self._do_deferred, self._leave_migration, self._detach] if attached else []
        for step in [*steps, self._close]:
            try:
                step()
            except AUTHORS_FAILURES:
                log.exception("the device failed at the end of a session")

    def _leave_migration(self) -> None:
        self._stop_following()
        if self._migration is not None:
            self._migration.detach()

    def _detach(self) -> None:
        """The device's threads get the lock, and a moment, to finish what they do for the client."""
        try:
            self._wait_settled(self.function.client_gone(), QUIESCE_SECONDS)
        except OSError as error:  # there is no descriptor to wait with: the client's are what will be given back
            log.warning("%s is not waited for: %s", self.function.name, error.strerror)
        finally:
            self.function.detach()

    def _close(self) -> None:
        self._over = True
        self._requests.close()
        self.regions.close()
        for message in self._backlog:
            close_all(message.fds)
        self.connection.close()

    def _locked(self, work: Callable[[], None]) -> None:
        """For the worker's thread; a broken connection is the session thread's to find and report."""
        if self._turnstile.locked():
            with self._turnstile:  # the client waits
                pass
        self._take_lock()
        try:
            if not self._over:
                self._guarded(work)
                self._flush()
                self._do_deferred()
        except OSError:
            pass
        finally:
            self.lock.release()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run deferred work, which has nobody to answer: what it raises is logged. Whose client has gone already is
        told so again and again, and what it does without it is done all the same.
        """
        try:
            work()
        except ClientGone as error:
            if not self._gone:
                raise
            log.info("deferred work: %s", error)
        except ProtocolError as error:
            log.warning("deferred work: %s", error)
        except AUTHORS_FAILURES:
            log.exception("deferred work failed")


def _connection(stream: Stream, max_data: int, busy_wait: BusyWait, trace: TraceWriter | None) -> ServerConnection:
    if trace is None:
        return ServerConnection(stream, max_data, busy_wait)
    from vfio_user.server.traced import TracedConnection  # which most servers do not need

    return TracedConnection(stream, max_data, busy_wait, trace)
