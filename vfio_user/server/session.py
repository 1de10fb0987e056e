"""One client's session with one device: receive, dispatch, reply, and the device's own requests to the client.

Order is the protocol's: commands take effect in the order of their arrival, and the replies of everything that one
receive brought leave in one send. Work that a handler deferred runs after that.

Register accesses of natural width go by a table from the 16 bytes that name an access (offset, region, count) straight
to the device's function: `_registers`. Everything else is a `Message` for `vfio_user.server.commands`.

Message DMA needs the client's answer, and QEMU cannot give one while a vCPU waits for a register's reply under the big
lock (hw/vfio-user/proxy.c: requests are served by a bottom half). So whoever waits for DMA goes on serving commands,
an outstanding register write is answered before its effect is complete, and a register read that would have to wait
is refused with EDEADLK.
"""

from __future__ import annotations

import errno
import logging
import struct
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from vfio_user.errors import ProtocolError
from vfio_user.server import commands
from vfio_user.server.negotiation import Agreement, Offer, negotiate
from vfio_user.transport import Stream, close_all
from vfio_user.wire import (
    COMMAND,
    NO_REPLY,
    REPLY,
    BadFrame,
    Command,
    Dialect,
    Framer,
    Message,
    Sender,
)

if TYPE_CHECKING:
    from vfio_user.device import PciDevice

log = logging.getLogger("vfio_user.server")

_ACCESS = struct.Struct("<HHII4x16s")  # id, command, size, flags, then offset, region and count as they came
_KEY = struct.Struct("<QII")
_VALUE = {width: struct.Struct("<" + code) for width, code in {1: "B", 2: "H", 4: "I", 8: "Q"}.items()}
_READ_REPLY = {width: struct.Struct("<HHIII16s" + code) for width, code in {1: "B", 2: "H", 4: "I", 8: "Q"}.items()}
_WRITE_REPLY = struct.Struct("<HHIII12sI")
_REGISTER = 32
"""Bytes of a register access before its data."""

MAX_DEPTH = 8
"""How deep handlers may wait for DMA within commands served while others wait for DMA."""


POLLS = 40
"""Looks at an empty socket before the session sleeps, about 1 us each."""

POLL_NS = 80_000
"""A sleep that was shorter than this would have been better spent polling."""

POLL_AGAIN = 16
"""Short sleeps in a row that it takes to poll again after a long one."""


class Disconnected(ConnectionError):
    """The client went away while its answer was awaited."""


class Session:
    """Serves `device` to the client at the other end of `stream`; also the device's link to that client.

    Handlers run under `lock`; a device's own threads take it before they touch the device, and may wait for message
    DMA while they hold it (it is released meanwhile).
    """

    def __init__(self, device: PciDevice, stream: Stream, dialect: Dialect, offer: Offer | None = None) -> None:
        self.device = device
        self.dialect = dialect
        self.agreement = Agreement()
        self.lock = threading.RLock()
        self._offer = offer or Offer()
        self._stream = stream
        self._framer = Framer()
        self._out = bytearray()
        self._out_fds: list[int] = []
        self._deferred: deque[Callable[[], None]] = deque()
        self._answered = threading.Condition(self.lock)
        self._answers: dict[int, Message | None] = {}
        self._next_id = 0
        self._thread: int | None = None
        self._owed: bytes | None = None  # the reply of the register write under way
        self._reading = False
        self._depth = 0
        self._polling = -POLL_AGAIN
        self._read = dialect.number(Command.REGION_READ)
        self._write = dialect.number(Command.REGION_WRITE)
        self._readers: dict[bytes, tuple[Any, int, Callable[[], int]]] = {}
        self._writers: dict[bytes, tuple[int, Any, Callable[[int], None]]] = {}

    def run(self) -> None:
        """Negotiate, then serve until the client goes away or `stop` is called. Raises nothing a client can cause."""
        self._thread = threading.get_ident()
        attached = False
        try:
            if not self._negotiate():
                return
            with self.lock:
                self.device.attach(self)
                attached = True
                self.refresh_registers()
            while self._receive():
                with self.lock:
                    self._serve()
        except Disconnected:
            pass
        except OSError as error:
            log.info("connection lost: %s", error)
        finally:
            with self.lock:
                self._end(attached=attached)

    def stop(self) -> None:
        """End the session from any thread."""
        self._stream.shutdown()

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
            log.warning("interrupt %d of index %d is lost: dialect %s has no message for it", vector, index, self.dialect)
            return
        shape = self.dialect.shapes[Command.VM_INTERRUPT]
        assert shape.request is not None
        with self.lock:
            message = Message(self._new_id(), shape.number, COMMAND | NO_REPLY, 0, shape.request.pack(vector))
            self._out += message.encode()
            if threading.get_ident() != self._thread:
                self._flush()

    def defer(self, work: Callable[[], None]) -> None:
        """Run `work` on the session's thread once the replies of the current batch are sent."""
        self._deferred.append(work)

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` under the session's lock, on a thread of its own."""
        threading.Thread(target=self._locked, args=(work,), daemon=True).start()

    # Serving

    def _negotiate(self) -> bool:
        while (message := self._next()) is None:
            if not self._receive():
                return False
        close_all(message.fds)
        pgsize = self.device.migration.page_size if self.device.migration is not None else None
        agreement, reply = negotiate(message, self.dialect, self._offer, migration_pgsize=pgsize)
        if agreement is None:
            log.warning("client refused: %s", reply.reason)
            if reply.message is not None:
                self._stream.send(reply.message.encode())
            return False
        self.agreement = agreement
        assert reply.message is not None
        self._stream.send(reply.message.encode(), reply.message.fds)
        close_all(reply.message.fds)
        return True

    def _receive(self) -> bool:
        """Take in what comes next; False at the end of the stream.

        A client that answers at once is polled for a moment rather than slept for: waking a thread takes longer
        than the whole handling of a register access. Polling that was in vain is not tried again until several
        waits in a row would have been worth it.
        """
        room = self._framer.room()
        received = self._stream.poll(room, POLLS) if self._polling > 0 else None
        if received is None:
            begin = perf_counter_ns()
            received = self._stream.receive(room)
            short = perf_counter_ns() - begin < POLL_NS
            self._polling = min(self._polling + 1, 1) if short else -POLL_AGAIN
        count, fds = received
        self._framer.received(count, fds)
        return count > 0

    def _serve(self) -> None:
        """Handle what was received, send the replies, then do what was deferred."""
        self._drain()
        self._flush()
        while self._deferred:
            self._guarded(self._deferred.popleft())
            self._flush()

    def _drain(self) -> None:
        while True:
            if not self._framer.has_fds:
                self._registers()
            message = self._next()
            if message is None:
                return
            self._handle(message)

    def _next(self) -> Message | None:
        """The next whole message; a header that cannot be right is answered here."""
        while True:
            try:
                return self._framer.next()
            except BadFrame as error:
                log.warning("%s", error)
                if error.message.wants_reply:
                    self._out += error.message.error(error.errno).encode()
                if error.fatal:
                    self._flush()
                    raise Disconnected from None

    def _registers(self) -> None:
        """The hot path: register accesses of natural width, until the buffer holds something else."""
        framer = self._framer
        unpack = _ACCESS.unpack_from
        readers, writers = self._readers, self._writers
        reading, writing = self._read, self._write
        id = flags = 0
        while framer.end - (start := framer.start) >= _REGISTER:
            id, command, size, flags, access = unpack(framer.buffer, start)
            try:
                if command == writing:
                    entry = writers.get(access)
                    if entry is None or size != entry[0] or flags & ~NO_REPLY or start + size > framer.end:
                        return
                    (value,) = entry[1](framer.buffer, start + _REGISTER)
                    framer.start = start + size
                    if flags:
                        entry[2](value)
                    else:
                        self._owed = reply = self._write_reply(id, access)
                        entry[2](value)
                        if self._owed is reply:
                            self._out += reply
                            self._owed = None
                elif command == reading:
                    found = readers.get(access)
                    if found is None or size != _REGISTER or flags:
                        return
                    framer.start = start + _REGISTER
                    self._reading = True
                    self._out += found[0](id, command, found[1], REPLY, 0, access, found[2]())
                    self._reading = False
                else:
                    return
            except Exception as error:
                self._failed(Message(id, command, flags), error)

    def _write_reply(self, id: int, access: bytes) -> bytes:
        count = access[12] if self.dialect.write_reply_counts else 0
        return _WRITE_REPLY.pack(id, self._write, _REGISTER, REPLY, 0, access[:12], count)

    def _handle(self, message: Message) -> None:
        if message.is_reply and message.id in self._answers:
            self._answers[message.id] = message
            self._answered.notify_all()
            return
        self._owed = None if message.flags & NO_REPLY else b""
        try:
            command = self.dialect.command(message.command)
            if message.type != COMMAND:
                raise ProtocolError(f"message type {message.type} where a command is expected")
            if command is None or self.dialect.shapes[command].sender is Sender.SERVER:
                raise ProtocolError(f"command {message.command} is none of a client's in dialect {self.dialect.name}")
            if self.device.migration is not None:
                self.device.migration.gate(command)
            payload, fds = self._run(command, message)
        except Exception as error:
            self._failed(message, error)
        else:
            if self._owed is not None:
                self._reply(message.reply(payload, fds))
            self._owed = None
        finally:
            close_all(message.fds)

    def _run(self, command: Command, message: Message) -> tuple[bytes, list[int]]:
        """The effect of a command; the reply of one that may be answered early is ready before its effect."""
        if command is Command.REGION_WRITE and self._owed is not None:
            self._owed = message.reply(commands.write_reply(self, message)).encode()
        self._reading = command is not Command.REGION_WRITE and self._owed is not None
        reply = commands.HANDLERS[command](self, message)
        self._reading = False
        return reply

    def _failed(self, message: Message, error: Exception) -> None:
        """Answer a command that raised: its errno where the protocol has one, EIO for a defect of the device."""
        owed = self._owed is not None or self._reading
        self._owed, self._reading = None, False
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
            self._out += message.error(number).encode()

    def _reply(self, reply: Message) -> None:
        if reply.fds:
            self._flush()
            self._stream.send(reply.encode(), reply.fds)
        else:
            self._out += reply.encode()

    def _flush(self) -> None:
        if self._out:
            out, self._out = self._out, bytearray()
            self._stream.send(out)

    def refresh_registers(self) -> None:
        """Take the device's register table into the hot path, or nothing while its state forbids access."""
        self._readers.clear()
        self._writers.clear()
        if self.device.migration is not None and not self.device.migration.registers_allowed:
            return
        for (region, offset, width), read in self.device.readers.items():
            reply = _READ_REPLY[width]
            self._readers[_KEY.pack(offset, region, width)] = (reply.pack, reply.size, read)
        for (region, offset, width), write in self.device.writers.items():
            self._writers[_KEY.pack(offset, region, width)] = (_REGISTER + width, _VALUE[width].unpack_from, write)

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
        body = answer.payload[shape.reply.size :]
        if found.address != address or found.length != count or len(body) != count:
            raise ProtocolError(f"the reply to {command.value} at {address:#x} has {len(body)} of {count} bytes")
        return body

    def _exchange(self, message: Message) -> Message:
        """Send a request and wait for its reply, while commands go on being served. Holds the lock."""
        if self.agreement.twin is not None:
            return self.agreement.twin.exchange(message)
        on_session_thread = threading.get_ident() == self._thread
        if on_session_thread and self._reading:
            raise ProtocolError("a register read would have to wait for message DMA: defer the DMA", errno.EDEADLK)
        if self._depth >= MAX_DEPTH:
            raise ProtocolError(f"{MAX_DEPTH} handlers wait for message DMA already", errno.EDEADLK)
        self._answers[message.id] = None
        try:
            if on_session_thread:
                self._wait_serving(message)
            else:
                self._out += message.encode()
                self._flush()
                self._answered.wait_for(lambda: self._answers[message.id] is not None or self._ended)
            answer = self._answers[message.id]
        finally:
            del self._answers[message.id]
        if answer is None:
            raise Disconnected("the client went away")
        return answer

    def _wait_serving(self, message: Message) -> None:
        if self._owed:
            self._out += self._owed
        self._owed = None
        self._out += message.encode()
        self._flush()
        self._depth += 1
        try:
            self._drain()
            self._flush()
            while self._answers[message.id] is None:
                if not self._receive():
                    raise Disconnected("the client went away")
                self._drain()
                self._flush()
        finally:
            self._depth -= 1

    def _new_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF
        while self._next_id in self._answers:
            self._next_id = (self._next_id + 1) & 0xFFFF
        return self._next_id

    _ended = False

    def _end(self, *, attached: bool) -> None:
        self._ended = True
        self._answered.notify_all()
        if attached:
            self.device.detach()
        self._framer.close()
        if self.agreement.twin is not None:
            self.agreement.twin.close()
        self._stream.close()

    def _locked(self, work: Callable[[], None]) -> None:
        with self.lock:
            self._guarded(work)
            self._flush()

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
