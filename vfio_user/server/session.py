"""One client's session with one device: receive, dispatch, reply, and the device's own requests to the client.

Order is the protocol's: commands take effect in the order of their arrival, and the replies of everything that one
receive brought leave in one send. Work that a handler deferred runs after that.

Register accesses of natural width go by a table from the 16 bytes that name an access (offset, region, count) straight
to the device's function: `vfio_user.server.registers`. Everything else is a `Message` for `vfio_user.server.commands`.

Message DMA needs the client's answer, and QEMU cannot give one while a vCPU waits for a register's reply under the big
lock (hw/vfio-user/proxy.c: requests are served by a bottom half). So whoever waits for DMA goes on serving commands,
an outstanding register write is answered before its effect is complete, and a register read that would have to wait
is refused with EDEADLK.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from vfio_user.device import CURRENT_POLICY, DRAFT_V6_POLICY
from vfio_user.device.device import QUIESCE_SECONDS
from vfio_user.errors import ProtocolError
from vfio_user.server import commands
from vfio_user.server.connection import Connection, Disconnected
from vfio_user.server.negotiation import Agreement, Offer, negotiate
from vfio_user.server.regions import Regions
from vfio_user.server.registers import RegisterPath
from vfio_user.server.worker import Worker
from vfio_user.transport import Stream, close_all
from vfio_user.wire import (
    COMMAND,
    DRAFT_V6,
    NO_REPLY,
    BadFrame,
    Command,
    Dialect,
    Message,
    Sender,
)
from vfio_user.wire.constants import MigrationState

if TYPE_CHECKING:
    from vfio_user.device import PciDevice
    from vfio_user.migration import Migration

log = logging.getLogger("vfio_user.server")

_MOVING = frozenset({MigrationState.RUNNING, MigrationState.PRE_COPY})

MAX_BACKLOG = 1024
"""Commands held while the device is getting quiet; beyond that the client is not read from."""

LOCK_SECONDS = 1.0
"""How long to wait for the session's lock before looking what keeps whoever has it."""

MAX_DEPTH = 8
"""How deep handlers may wait for DMA within commands served while others wait for DMA."""


class Session:
    """Serves `device` to the client at the other end of `stream`; also the device's link to that client.

    Handlers run under `lock`; a device's own threads take it before they touch the device, and may wait for message
    DMA while they hold it (it is released meanwhile).
    """

    def __init__(
        self,
        device: PciDevice,
        stream: Stream,
        dialect: Dialect,
        offer: Offer | None = None,
        *,
        version_seconds: float | None = None,
    ) -> None:
        """`version_seconds` is what the client has for its first message; None: as long as it likes."""
        self.device = device
        self.dialect = dialect
        self.agreement = Agreement()
        self.lock = threading.RLock()
        self._turnstile = threading.Lock()
        self._offer = offer or Offer()
        self._version_seconds = version_seconds
        self.connection = Connection(stream, self.max_data)
        self.owed: bytes | None = None
        """The reply of the command under way; None once it is sent, or if none is wanted."""
        self.reading = False
        """Whether a handler runs that cannot be answered before it ends."""
        self._worker = Worker(self._locked)
        self.call_soon, self.call_later = self._worker.call_soon, self._worker.call_later
        self.watch, self.unwatch = self._worker.watch, self._worker.unwatch
        self._backlog: deque[Message] = deque()  # commands that came while the device was getting quiet
        self._deferred: deque[Callable[[], None]] = deque()
        self._answered = threading.Condition(self.lock)
        self._answers: dict[int, Message | None] = {}
        self._unasked = 0  # replies that nobody waited for
        self._next_id = 0
        self._thread: int | None = None
        self._depth = 0
        self._gone = False
        self._migration: Migration | None = device.migration
        self._registers = RegisterPath(dialect)
        self.regions = Regions(
            device, dialect, carries_fds=self.connection.carries_fds, state_changed=self.refresh_registers
        )

    def run(self) -> None:
        """Negotiate, then serve until the client goes away or `stop` is called. Raises nothing a client can cause."""
        self._thread = threading.get_ident()
        attached = False
        try:
            if not self._negotiate():
                return
            with self.lock:
                attached = True
                self._attach()
                self._serve()  # what came in one receive with VERSION
            while self.connection.receive():
                self._take_turn()
                try:
                    self._serve()
                finally:
                    self.lock.release()
            if self.connection.is_cut_off:
                log.warning("the client went away in the middle of a message")
        except Disconnected:
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
        self.device.interrupts.unblock()

    def free(self) -> bool:
        """For whoever waits for this session in vain: end what only a client that means no good can make last.

        Returns whether the client has gone, so that the session ends. From any thread.
        """
        if self.connection.is_hung_up:
            self.stop()
            return True
        self.device.interrupts.unblock()
        return False

    # What the device asks of its client (vfio_user.device.Link)

    def dma_read(self, iova: int, count: int) -> bytes:
        """Read guest memory by message.

        Raises:
            ProtocolError: the client refused (its errno), or a register read would wait for it (EDEADLK).
        """
        chunks = [
            self._request(Command.DMA_READ, iova + at, min(self._chunk, count - at), b"")
            for at in range(0, count, self._chunk)
        ]
        return b"".join(chunks)

    def dma_write(self, iova: int, data: bytes | memoryview) -> None:
        """Write guest memory by message; raises as `dma_read`."""
        for at in range(0, len(data), self._chunk):
            part = bytes(data[at : at + self._chunk])
            self._request(Command.DMA_WRITE, iova + at, len(part), part)

    def interrupt(self, index: int, vector: int) -> None:
        """Interrupt the client by message, where the dialect has one; the index is the enabled type's."""
        if Command.VM_INTERRUPT not in self.dialect:
            log.warning(
                "interrupt %d of index %d is lost: dialect %s has no message for it", vector, index, self.dialect
            )
            return
        shape = self.dialect.shapes[Command.VM_INTERRUPT]
        assert shape.request is not None
        with self.lock:
            message = Message(self._new_id(), shape.number, COMMAND | NO_REPLY, 0, shape.request.pack(vector))
            self.connection.out += message.encode()
            if threading.get_ident() != self._thread:
                self.connection.flush()

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` on the session's thread once the replies of the current batch are sent."""
        self._deferred.append(work)

    @property
    def in_band_interrupts(self) -> bool:
        """Whether the client can be interrupted by message."""
        return Command.VM_INTERRUPT in self.dialect

    # What commands need of the session

    @property
    def max_data(self) -> int:
        """Bytes of data that the client may put into one message or ask for."""
        return self._offer.max_data_xfer_size

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """The device stands still inside, and goes on afterwards unless migration has stopped it."""
        self.quiesce()
        try:
            yield
        finally:
            if self._migration is None or self._migration.state in _MOVING:
                self.device.resume()

    def quiesce(self) -> None:
        """Have the device stand still before memory or state changes under it.

        Commands that come meanwhile are held; replies to the device's own requests are taken.

        Raises:
            ProtocolError: the device cannot, with its errno.
        """
        waiting = self.device.quiesce()
        if waiting is not None and not waiting.finished:
            self._worker.watch(self.connection.fileno(), self._receive_while_quiescing)
            try:
                waiting.then(lambda: self._worker.call_soon(self._answered.notify_all))
                self._answered.wait_for(lambda: waiting.finished or self._gone)
            finally:
                self._worker.unwatch(self.connection.fileno())
            if self._gone:
                raise Disconnected("the client went away")
        if waiting is not None and waiting.errno:
            raise ProtocolError("the device cannot stand still", waiting.errno)

    # Serving

    def _attach(self) -> None:
        self.device.dma.policy = DRAFT_V6_POLICY if self.dialect is DRAFT_V6 else CURRENT_POLICY
        self.device.attach(self)
        if self._migration is not None:
            self._migration.attach(self.quiesce)
        self.refresh_registers()

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
            self.agreement = agreement
        if reply.message is not None:
            try:
                self.connection.send(reply.message)
                self.connection.flush()
            finally:
                close_all(reply.message.fds)
        return agreement is not None

    def _serve(self) -> None:
        """Handle what was received, send the replies, then do what was deferred."""
        self._drain()
        self.connection.flush()
        self._do_deferred()

    def _do_deferred(self) -> None:
        while self._deferred:
            self._guarded(self._deferred.popleft())
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

    def _receive_while_quiescing(self) -> None:
        try:
            self._gone = not self.connection.receive()
            while (message := self.connection.framer.next()) is not None:
                if not self._settle(message):
                    self._backlog.append(message)
        except (OSError, BadFrame) as error:
            log.warning("while the device was getting quiet: %s", error)
            self._gone = True
        if self._gone or len(self._backlog) >= MAX_BACKLOG:
            self._worker.unwatch(self.connection.fileno())
        self._answered.notify_all()

    def _settle(self, message: Message) -> bool:
        """Take a reply. One that nobody waits for is dropped, since nothing answers a reply.

        libvfio-user's clients of 2021 answer VM_INTERRUPT, although it says No_reply.
        """
        if not message.is_reply:
            return False
        close_all(message.fds)
        if self._answers.get(message.id, message) is None:
            self._answers[message.id] = message
            self._answered.notify_all()
        else:
            log.log(
                logging.DEBUG if self._unasked else logging.WARNING,
                "dropped: a reply to id %d, command %d, which nobody asked; more of them are said at level DEBUG",
                message.id,
                message.command,
            )
            self._unasked += 1
        return True

    def _drain(self) -> None:
        while True:
            if not self.connection.framer.has_fds and not self._backlog:
                self._registers.serve(self)
            message = self._backlog.popleft() if self._backlog else self.connection.next()
            if message is None:
                return
            self._handle(message)

    def _handle(self, message: Message) -> None:
        if self._settle(message):
            return
        self.owed = None if message.flags & NO_REPLY else b""
        try:
            command = self._command(message)
            payload, fds = self._run(command, message)
        except Exception as error:
            self.failed(message, error)
        else:
            if self.owed is not None:
                self.connection.send(message.reply(payload, fds))
            self.owed = None
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
            self._migration.gate(command)
        return command

    def _run(self, command: Command, message: Message) -> tuple[bytes, list[int]]:
        """The effect of a command; the reply of one that may be answered early is ready before its effect."""
        if command is Command.REGION_WRITE and self.owed is not None:
            self.owed = message.reply(commands.write_reply(self, message)).encode()
        self.reading = command is not Command.REGION_WRITE and self.owed is not None
        reply = commands.HANDLERS[command](self, message)
        self.reading = False
        return reply

    def failed(self, message: Message, error: Exception) -> None:
        """Answer a command that raised: its errno where the protocol has one, EIO for a defect of the device."""
        owed = self.owed is not None
        self.owed, self.reading = None, False
        if isinstance(error, Disconnected):
            raise error
        if isinstance(error, ProtocolError):
            number = error.errno
            log.debug("command %d: %s", message.command, error)
        elif isinstance(error, OSError) and error.errno:
            number = error.errno
            log.warning("command %d: %s", message.command, error)
        else:
            number = errno.EIO
            log.error("command %d: the device failed", message.command, exc_info=error)
        if owed:
            self.connection.out += message.error(number).encode()

    def refresh_registers(self) -> None:
        """Take the device's register table into the hot path, or nothing while its state forbids access."""
        self._registers.clear()
        if self.regions.accessible:
            self._registers.fill(self.device)

    # Requests of the device

    @property
    def _chunk(self) -> int:
        return self.agreement.data_per_message

    def _request(self, command: Command, address: int, count: int, data: bytes) -> bytes:
        shape = self.dialect.shapes[command]
        assert shape.request is not None
        with self.lock:
            message = Message(self._new_id(), shape.number, payload=shape.request.pack(address, count, tail=data))
            answer = self._exchange(message)
        if answer.failed:
            raise ProtocolError(f"the client refused {command.value} of {count} bytes at {address:#x}", answer.errno)
        if command is Command.DMA_WRITE:
            return b""
        assert shape.reply is not None
        found = shape.reply.unpack(answer.payload)
        # QEMU before 11.1 sends the 4 bytes that pad its C structure behind the data.
        body = answer.payload[shape.reply.size : shape.reply.size + count]
        # Whose address it is nobody but this request says: no text wants it echoed.
        if found.length != count or len(body) != count:
            raise ProtocolError(f"the reply to {command.value} at {address:#x} has {len(body)} of {count} bytes")
        return body

    def _exchange(self, message: Message) -> Message:
        """Send a request and wait for its reply, while commands go on being served. Holds the lock."""
        if self.agreement.twin is not None:
            return self.agreement.twin.exchange(message)
        on_session_thread = threading.get_ident() == self._thread
        if on_session_thread and self.reading:
            raise ProtocolError("a register read would have to wait for message DMA: defer the DMA", errno.EDEADLK)
        if self._depth >= MAX_DEPTH:
            raise ProtocolError(f"{MAX_DEPTH} handlers wait for message DMA already", errno.EDEADLK)
        self._answers[message.id] = None
        try:
            if on_session_thread:
                self._wait_serving(message)
            else:
                self.connection.out += message.encode()
                self.connection.flush()
                self._answered.wait_for(lambda: self._answers[message.id] is not None or self._gone)
            answer = self._answers[message.id]
        finally:
            del self._answers[message.id]
        if answer is None:
            raise Disconnected("the client went away")
        return answer

    def _wait_serving(self, message: Message) -> None:
        if self.owed:
            self.connection.out += self.owed
        self.owed = None
        self.connection.out += message.encode()
        self.connection.flush()
        self._depth += 1
        try:
            self._drain()
            self.connection.flush()
            while self._answers[message.id] is None:
                if not self.connection.receive():
                    raise Disconnected("the client went away")
                self._drain()
                self.connection.flush()
        finally:
            self._depth -= 1

    def _new_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF
        while self._next_id in self._answers:
            self._next_id = (self._next_id + 1) & 0xFFFF
        return self._next_id

    def _stand_still(self) -> None:
        """The client is gone; the device's threads get the lock, and a moment, to finish what they do for it."""
        with contextlib.suppress(ProtocolError):
            waiting = self.device.quiesce()
            if waiting is not None and not waiting.finished:
                waiting.then(lambda: self._worker.call_soon(self._answered.notify_all))
                self._answered.wait_for(lambda: waiting.finished, QUIESCE_SECONDS)

    def _end(self, *, attached: bool) -> None:
        if attached:
            self._stand_still()
        self._gone = True
        self._answered.notify_all()
        if attached:
            if self._migration is not None:
                self._migration.detach()
            self.device.detach()
        if self.agreement.twin is not None:
            self.agreement.twin.close()
        self.connection.close()

    def _locked(self, work: Callable[[], None]) -> None:
        """For the worker's thread; a broken connection is the session thread's to find and report."""
        if self._turnstile.locked():
            with self._turnstile:  # the client waits
                pass
        self._take_lock()
        try:
            if not self._gone:
                self._guarded(work)
                self.connection.flush()
                self._do_deferred()
        except OSError:
            pass
        finally:
            self.lock.release()

    def _guarded(self, work: Callable[[], None]) -> None:
        """Deferred work has nobody to answer: what it raises is logged."""
        try:
            work()
        except Disconnected:
            raise
        except ProtocolError as error:
            log.warning("deferred work: %s", error)
        except Exception:
            log.exception("deferred work failed")
