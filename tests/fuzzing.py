"""Bad input for a real session: messages that are nearly right, rubbish, and any cutting of the stream.

A session runs in the calling thread on a `Script`, a stream that plays a client without sockets, so that a campaign
does tens of thousands of messages a second and what a seed does is always the same.
"""

from __future__ import annotations

import errno
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.everything_device import Everything
from userdev.layout import Layout
from userdev.transport import Framer, Stream, close_all
from vfio_user.device import function_of
from vfio_user.server import Offer
from vfio_user.server.session import Session
from vfio_user.wire import (
    COMMAND,
    ERROR,
    HEADER,
    NO_REPLY,
    REPLY,
    Capabilities,
    Command,
    Dialect,
    Message,
    encode_version,
)
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import Feature, FeatureFlags

PER_SESSION = 500
"""Messages of one session."""


class Script(Stream):
    """A client that has made up its mind: what it sends is given, and what it answers is decided by `answer`.

    Bytes come in the pieces that were given; answers to the server's requests are put between two messages.
    """

    def __init__(self, answer: Callable[[Message], Message | None], *, carries_fds: bool = True) -> None:
        self.carries_fds = carries_fds
        self.replies: list[Message] = []
        self._answer = answer
        self._incoming: deque[tuple[memoryview, list[int], bool]] = deque()  # bytes, fds, whether a message starts
        self._framer = Framer(Message, max_message=1 << 30)
        self._here, self._there = os.pipe()  # a descriptor to watch that says nothing

    def add(self, message: bytes, fds: Sequence[int] = (), cuts: Iterable[int] = ()) -> None:
        """Let the server receive this message, in pieces that end at `cuts`; owns the descriptors."""
        last = 0
        view = memoryview(message)
        for cut in [*sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]:
            self._incoming.append((view[last:cut], list(fds) if last == 0 else [], last == 0))
            last = cut

    # what a session uses of a stream

    def fileno(self) -> int:
        return self._here

    @property
    def is_hung_up(self) -> bool:
        return False

    def limit_sends(self, seconds: float) -> None:
        del seconds

    def limit_receives(self, seconds: float) -> None:
        del seconds

    def receive(self, room: memoryview, flags: int = 0) -> tuple[int, list[int]]:
        del flags
        if not self._incoming:
            return 0, []
        data, fds, _ = self._incoming.popleft()
        count = min(len(data), len(room))
        room[:count] = data[:count]
        if count < len(data):
            self._incoming.appendleft((data[count:], [], False))
        return count, fds

    def poll(self, room: memoryview, attempts: int) -> tuple[int, list[int]] | None:
        del attempts
        return self.receive(room)

    def send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        del fds  # they stay the server's
        self._framer.feed(bytes(data))
        for message in self._framer.messages():
            if message.is_reply:
                self.replies.append(message)
            elif (reply := self._answer(message)) is not None:
                self._insert(reply.encode())

    def _insert(self, data: bytes) -> None:
        place = next((i for i, (_, _, starts) in enumerate(self._incoming) if starts), len(self._incoming))
        self._incoming.insert(place, (memoryview(data), [], True))

    def shutdown(self, how: int = 0) -> None:
        del how
        self._incoming.clear()

    def close(self) -> None:
        for _, fds, _ in self._incoming:
            close_all(fds)
        self._incoming.clear()
        close_all([self._here, self._there])


# messages that are nearly right

_SIZES = (0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 64, 0xFFF, 0x1000, 0x1001, 0x8000, 0x10000)
_EDGES = (1 << 20, (1 << 20) + 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_IOVAS = tuple(0x10_0000 + 0x1000 * page for page in range(8))
_OFFSETS = (0, 1, 2, 3, 4, 6, 8, 0x10, 0x18, 0x1C, 0x20, 0x34, 0x3C, 0x3D, 0x40, 0x50, 0xA4, 0xFC, 0xFF, 0x100, 0xFFE)

_FIELDS: dict[str, tuple[int, ...]] = {
    "argsz": (0, 8, 15, 16, 20, 23, 24, 31, 32, 40, 48, 56, 64, 80, 128, 4096, 1 << 20),
    "flags": (*range(64), 0x10001, 0x10002, 0x20002, 0x40001, 0x20006, 0x20007, 0x10008, 0x80001),
    "region": tuple(range(12)),
    "irq": tuple(range(6)),
    "offset": _OFFSETS,
    "length": _SIZES,
    "size": _SIZES,
    "nr_vectors": (0, 1, 2, 4, 8, 9),
    "start": (0, 1, 7, 8),
    "nr_writes": (0, 1, 2, 3),
    "nr_entries": (0, 0, 0, 1),
    "addr": _IOVAS,
    "address": _IOVAS,
    "iova": _IOVAS,
    "state": tuple(range(9)),
    "page_size": (0, 1, 0x1000, 0x2000, 4095),
    "pgsize": (0, 1, 0x1000, 0x2000, 4095),
    "bitmap_size": (0, 7, 8, 16),
    "protections": (0, 1, 2, 3, 4),
}


# For each command, values with which it can succeed; the rest of a structure is zero.
_SENSIBLE: dict[Command, dict[str, tuple[int, ...]]] = {
    Command.DMA_MAP: {"argsz": (32,), "flags": (3, 3, 1, 7), "addr": _IOVAS, "size": (0x1000, 0x2000)},
    Command.DMA_UNMAP: {"argsz": (24, 48), "flags": (0, 0, 1, 2), "addr": (*_IOVAS, 0), "size": (0x1000, 0x2000, 0)},
    Command.GET_INFO: {"argsz": (16,)},
    Command.GET_REGION_INFO: {"argsz": (32, 80), "region": tuple(range(11))},
    Command.GET_REGION_IO_FDS: {"argsz": (16, 64), "region": (0, 2, 7)},
    Command.GET_IRQ_INFO: {"argsz": (16,), "irq": tuple(range(5))},
    Command.SET_IRQS: {
        "argsz": (20, 24),
        "flags": (0x21, 0x22, 0x24, 0x09, 0x11),
        "irq": (0, 1, 2, 2),
        "start": (0, 0, 1),
        "nr_vectors": (0, 1, 1, 2),
    },
    Command.REGION_READ: {"offset": _OFFSETS, "region": (0, 2, 4, 7, 9), "length": (1, 2, 4, 8)},
    Command.REGION_WRITE: {"offset": _OFFSETS, "region": (0, 2, 4, 7, 9), "length": (1, 2, 4, 8)},
    Command.REGION_WRITE_MULTI: {"nr_writes": (1, 2)},
    Command.DIRTY_PAGES: {"argsz": (8, 48), "flags": (1, 2, 4)},
    Command.MIG_DATA_READ: {"argsz": (4096,), "size": (16, 1000)},
    Command.MIG_DATA_WRITE: {"argsz": (4096,), "size": (16, 1000)},
}
_SENSIBLE_FEATURE: dict[int, dict[str, tuple[int, ...]]] = {
    Feature.MIGRATION: {},
    Feature.MIG_DEVICE_STATE: {"state": (1, 2, 2, 2, 2, 3, 4, 6)},
    Feature.DMA_LOGGING_START: {"page_size": (0x1000,)},
    Feature.DMA_LOGGING_STOP: {},
    Feature.DMA_LOGGING_REPORT: {"iova": _IOVAS, "length": (0x1000, 0x2000), "page_size": (0x1000,)},
}
_FEATURE_LAYOUTS: dict[int, Layout[Any]] = {
    Feature.MIGRATION: at.MIGRATION_FLAGS,
    Feature.MIG_DEVICE_STATE: at.DEVICE_STATE,
    Feature.DMA_LOGGING_REPORT: at.LOGGING_REPORT,
}
_MASKS = {"H": 0xFFFF, "I": 0xFFFF_FFFF, "Q": (1 << 64) - 1}
_SENSIBLE_ENTRY = {"address": _IOVAS, "size": (0x1000, 0x2000), "protections": (3, 3, 1), "flags": (0, 0, 0, 1)}
_SENSIBLE_BITMAP = {
    "pgsize": (0x1000,),
    "bitmap_size": (8,),
    "iova": _IOVAS,
    "size": (0x1000, 8),
}


class Generator:
    """Makes messages of one dialect out of a seed."""

    def __init__(self, dialect: Dialect, seed: int | random.Random) -> None:
        self.random = seed if isinstance(seed, random.Random) else random.Random(seed)
        self.dialect = dialect
        self._commands = [c for c in dialect.shapes if c in _SENSIBLE or c is Command.DEVICE_FEATURE] * 4
        self._commands += dialect.shapes

    def message(self, id: int) -> tuple[bytes, bool]:
        """One message, and whether it is to be answered."""
        chance = self.random
        command = chance.choice(self._commands)
        number = self.dialect.number(command)
        wild = chance.random() < 0.3
        payload = self._payload(command, wild=wild)
        if wild and chance.random() < 0.3:
            payload = payload[: chance.randrange(len(payload) + 1)]
        if wild and chance.random() < 0.2:
            payload += chance.randbytes(chance.randrange(1, 40))
        if chance.random() < 0.02:
            number = chance.choice((0, 14, 19, chance.randrange(1 << 16)))
        flags = COMMAND
        if chance.random() < 0.15:
            flags = chance.choice((NO_REPLY, NO_REPLY, NO_REPLY, ERROR, 2, 15, 0x40, 0xFFFF_FFC0, NO_REPLY | 2))
        header = HEADER.pack(id, number, HEADER.size + len(payload), flags, chance.choice((0, 0, 0, 99)))
        return header + payload, not flags & NO_REPLY

    def _payload(self, command: Command, *, wild: bool) -> bytes:
        shape = self.dialect.shapes[command]
        if command is Command.VERSION:
            return at.VERSION.pack(0, 0, tail=self.random.choice((b"", b"{}\0", b"{}", self.random.randbytes(9))))
        if command is Command.DEVICE_FEATURE:
            return self._feature(wild=wild)
        if shape.request is None:
            return self._table(command, wild=wild)
        sensible = None if wild else _SENSIBLE.get(command, {})
        values = self._values(shape.request, sensible)
        return self._packed(shape.request, values) + self._tail(command, values, wild=wild)

    def _feature(self, *, wild: bool) -> bytes:
        chance = self.random
        number = chance.choice((*Feature, 0, 3, 9)) if wild else chance.choice((*Feature, Feature.MIG_DEVICE_STATE))
        operation = chance.choice((*FeatureFlags, 0, FeatureFlags.GET | FeatureFlags.SET))
        if not wild:
            gets = number in (Feature.MIGRATION, Feature.DMA_LOGGING_REPORT)
            operation = FeatureFlags.GET if gets else FeatureFlags.SET
        layout: Layout[Any] = at.LOGGING_CONTROL
        if number in _FEATURE_LAYOUTS:
            layout = _FEATURE_LAYOUTS[number]
        data = self._packed(layout, self._values(layout, None if wild else _SENSIBLE_FEATURE[number]))
        room = chance.choice((len(data), 64, 0)) if wild else 64
        return at.FEATURE.pack(at.FEATURE.size + room, number | operation, tail=data)

    def _table(self, command: Command, *, wild: bool) -> bytes:
        """The draft's tables; other commands without a structure have no payload."""
        if command not in (Command.DMA_MAP, Command.DMA_UNMAP):
            return b""
        entries = b""
        for _ in range(self.random.choice((0, 1, 2, 3) if wild else (1, 1, 1, 2))):
            values = self._values(at.DMA_ENTRY_V6, None if wild else _SENSIBLE_ENTRY)
            entries += self._packed(at.DMA_ENTRY_V6, values)
            if command is Command.DMA_UNMAP and values["flags"] & 1:
                entries += self._packed(at.BITMAP_V6, self._values(at.BITMAP_V6, None if wild else _SENSIBLE_BITMAP))
        return entries

    def _tail(self, command: Command, values: dict[str, int], *, wild: bool) -> bytes:
        chance = self.random
        length = min(values.get("length", 0), 0x1100)
        match command:
            case Command.REGION_WRITE | Command.DMA_WRITE:
                return self._data(values, length)
            case Command.MIG_DATA_WRITE:
                return chance.randbytes(min(values["size"], 0x1100))
            case Command.SET_IRQS if values["flags"] & 2:
                return bytes(chance.choice((0, 1, 1, 2)) for _ in range(min(values["nr_vectors"], 16)))
            case Command.DMA_UNMAP:
                one_word: dict[str, tuple[int, ...]] = {"pgsize": (0x1000,), "size": (8,)}
                return self._packed(at.BITMAP, self._values(at.BITMAP, None if wild else one_word))
            case Command.DIRTY_PAGES:
                layout: Layout[Any] = at.DIRTY_RANGE_V6 if self.dialect.name == "draft-v6" else at.DIRTY_RANGE
                return self._packed(layout, self._values(layout, None if wild else _SENSIBLE_BITMAP))
            case Command.REGION_WRITE_MULTI:
                return b"".join(self._write_entry(wild=wild) for _ in range(min(values["nr_writes"], 8)))
        return b""

    def _data(self, values: dict[str, int], length: int) -> bytes:
        """What to write: an address where the device takes one, small numbers elsewhere in its registers."""
        if values.get("region") != 0 or self.random.random() < 0.1:
            return self.random.randbytes(length)
        value = self.random.choice(_IOVAS) if values.get("offset") == 8 else self.random.randrange(64)
        return value.to_bytes(16, "little")[:length].ljust(length, b"\0")

    def _write_entry(self, *, wild: bool) -> bytes:
        chance = self.random
        offset, region = chance.choice(_OFFSETS), chance.choice((0, 2, 7))
        length = chance.randrange(10) if wild else chance.choice((1, 2, 4, 8))
        return at.WRITE_MULTI_ENTRY.struct.pack(offset, region, length, self._data({"region": region}, 8))

    def _values(self, layout: Layout[Any], sensible: dict[str, tuple[int, ...]] | None) -> dict[str, int]:
        """A value for each field; `sensible` None means anything."""
        names = layout.record._fields
        if sensible is None:
            return {name: self._value(name) for name in names}
        return {name: self.random.choice(sensible.get(name, (0,))) for name in names}

    def _value(self, name: str) -> int:
        chance = self.random
        if chance.random() < 0.08:
            return chance.choice(_EDGES)
        return chance.choice(_FIELDS.get(name, _SIZES))

    @staticmethod
    def _packed(layout: Layout[Any], values: dict[str, int]) -> bytes:
        """Pack, each value cut to its field."""
        fields = layout.struct.format.removeprefix("<")
        return layout.struct.pack(*(value & _MASKS[f] for value, f in zip(values.values(), fields, strict=True)))

    def fds(self) -> list[int]:
        """Descriptors to attach: none as a rule."""
        chance = self.random
        if chance.random() > 0.15:
            return []
        return [self._fd() for _ in range(chance.choice((1, 1, 1, 2, 3, 8)))]

    def _fd(self) -> int:
        kind = self.random.randrange(4)
        if kind == 0:
            return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if kind == 1:
            return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        fd = os.memfd_create("fuzz", os.MFD_CLOEXEC)
        os.ftruncate(fd, self.random.choice((0, 0x800, 0x1000, 0x10000)))
        return fd

    def cuts(self, size: int) -> list[int]:
        """Where to cut a message of `size` bytes: whole as a rule, sometimes byte by byte."""
        chance = self.random.random()
        if chance < 0.9 or size > 4096:
            return []
        if chance < 0.93 and size < 128:
            return list(range(1, size))
        return [self.random.randrange(size + 1) for _ in range(3)]

    def answer(self, request: Message) -> Message | None:
        """What the client says to a request of the server: good as a rule, and wrong in every way."""
        command = self.dialect.command(request.command)
        layout = self.dialect.shapes[Command.DMA_READ].request
        assert layout is not None
        if not request.wants_reply:
            return None
        address, length = layout.unpack(request.payload) if len(request.payload) >= layout.size else (0, 0)
        good = layout.pack(address, length, tail=bytes(length) if command is Command.DMA_READ else b"")
        match self.random.randrange(12):
            case 0:
                return request.error(self.random.choice((errno.EFAULT, errno.EPERM, 0, 0xBEEF)))
            case 1:
                return request.reply(good[:-1])
            case 2:
                return request.reply(layout.pack(address + 1, length, tail=bytes(length)))
            case 3:
                return request.reply()
            case 4:
                return request.reply(good + bytes(4))
        return request.reply(good)


# campaigns


@dataclass
class Outcome:
    """What a campaign saw. `wrong` is empty in a good one."""

    messages: int = 0
    sessions: int = 0
    refused: int = 0
    whole: int = 0
    """Sessions that lasted until the client had said everything."""
    wrong: list[str] = field(default_factory=list)


class Defects(logging.Handler):
    """Gathers what a package logs with a traceback: a defect of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    @classmethod
    @contextmanager
    def of(cls, package: str) -> Iterator[Defects]:
        """Gather those of a package within the block, where nothing else of it is logged."""
        logger, defects = logging.getLogger(package), cls()
        level, propagate = logger.level, logger.propagate
        logger.addHandler(defects)
        logger.propagate = False
        logger.setLevel(logging.ERROR)
        try:
            yield defects
        finally:
            logger.removeHandler(defects)
            logger.setLevel(level)
            logger.propagate = propagate

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def proposal(dialect: Dialect) -> bytes:
    """A good first message."""
    capabilities = Capabilities(max_msg_fds=16, max_data_xfer_size=1 << 20, migration_pgsize=4096)
    if dialect.fds_capability == "max_fds":
        capabilities = Capabilities(max_msg_fds=16, migration_pgsize=4096)
    payload = encode_version(dialect, 0, capabilities)
    return Message(0xFFFF, dialect.number(Command.VERSION), payload=payload).encode()


def campaign(dialect: Dialect, messages: int, seed: int) -> Outcome:
    """Send so many messages in sessions of `PER_SESSION` to one device after another; always the same for a seed."""
    outcome = Outcome()
    generator = Generator(dialect, seed)
    device = Everything()
    with Defects.of("vfio_user") as defects:
        try:
            while outcome.messages < messages and len(outcome.wrong) < 10:
                one = _noisy_session if outcome.sessions % 10 == 9 else _one_session
                one(device, generator, min(PER_SESSION, messages - outcome.messages), outcome)
                if outcome.sessions % 5 == 0:
                    device.close()
                    device = Everything()
        finally:
            device.close()
    outcome.wrong += defects.found
    return outcome


def _one_session(device: Everything, generator: Generator, count: int, outcome: Outcome) -> None:
    script = Script(generator.answer)
    script.add(proposal(generator.dialect))
    expected = [0xFFFF]
    for id in range(count):
        message, answered = generator.message(id)
        script.add(message, generator.fds(), generator.cuts(len(message)))
        if answered:
            expected.append(id)
    run_session(device, script, generator.dialect)
    outcome.sessions += 1
    outcome.messages += count
    outcome.refused += sum(reply.failed for reply in script.replies)
    where = f"session {outcome.sessions} of {generator.dialect.name}"
    got = [reply.id for reply in script.replies]
    if got != expected:
        outcome.wrong.append(f"{where}: {_difference(expected, got)}")
    for reply in script.replies:
        if reply.flags not in (REPLY, REPLY | ERROR) or bool(reply.errno) != reply.failed:
            outcome.wrong.append(f"{where}: reply {reply.id} has flags {reply.flags:#x} and errno {reply.errno}")
        if reply.errno == errno.EIO:
            outcome.wrong.append(f"{where}: command {reply.command} was answered with EIO")


def _noisy_session(device: Everything, generator: Generator, count: int, outcome: Outcome) -> None:
    """Rubbish behind a good VERSION; what it is answered with is the server's choice, as long as it is an error."""
    script = Script(generator.answer)
    script.add(proposal(generator.dialect))
    for data in noise(generator.random, count):
        script.add(data, generator.fds(), generator.cuts(len(data)))
    run_session(device, script, generator.dialect)
    outcome.sessions += 1
    outcome.messages += count
    outcome.refused += len(script.replies)
    if any(reply.errno == errno.EIO for reply in script.replies):
        outcome.wrong.append(f"session {outcome.sessions}: rubbish was answered with EIO")


def _difference(expected: list[int], got: list[int]) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got)))
    return f"{len(got)} replies to {len(expected)} requests; the first that differs answers {expected[at : at + 1]}"


def run_session(device: Everything, stream: Stream, dialect: Dialect) -> None:
    """Serve one client to its end, in this thread."""
    Session(function_of(device), stream, dialect, Offer(write_multiple=True)).run()


def noise(chance: random.Random, count: int) -> Iterator[bytes]:
    """So many pieces of rubbish, some of which begin like a message."""
    for _ in range(count):
        size = chance.choice((1, 15, 16, 17, 40, 300))
        data = chance.randbytes(size)
        if chance.random() < 0.8:
            data = HEADER.pack(chance.randrange(1 << 16), chance.randrange(20), 16 + size, 0, 0) + data
        yield data


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
