"""Traces of vfio-user as an interposer would have written them, from a list of what happened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.interposer_bench import read, request, write
from userdev.relay.direction import Direction
from userdev.trace import TraceWriter, View
from vfio_user.interposer.trace.files import NAME
from vfio_user.interposer.trace.registers import HEADER_KEY
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at

BOTH = View.RECEIVED | View.SENT
REGISTERS = [
    {"region": 0, "offset": 0x60, "name": "up"},
    {"region": 0, "offset": 0x64, "name": "down"},
    {"region": 0, "offset": 0x24, "name": "causes"},
]
"""Of a device whose status is the bits that were raised and not acknowledged."""
UP, DOWN, CAUSES = 0x60, 0x64, 0x24


class Written:
    """A trace being written, message by message; each returns the number of the request's record."""

    def __init__(self, path: Path, registers: list[dict[str, Any]] | None = None) -> None:
        named = {HEADER_KEY: registers} if registers is not None else {}
        self.path = path
        self.writer = TraceWriter(path, NAME, {"dialect": CURRENT.name, **named})
        self._ids = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    def ask(
        self,
        asked: Message,
        answered: bytes | int | None = b"",
        *,
        direction: Direction = Direction.TO_SERVER,
        view: View = BOTH,
        replied: View = BOTH,
        reply_fds: Sequence[int] = (),
    ) -> int:
        """A request and its reply: a payload, an errno, or None where none comes, with `reply_fds`."""
        self._ids = (self._ids + 1) & 0xFFFF
        asked.id = self._ids
        number = self.writer.message(direction, view, asked)
        if answered is not None:
            reply = asked.error(answered) if isinstance(answered, int) else asked.reply(answered)
            reply.fds = list(reply_fds)
            self.writer.message(direction.opposite, replied, reply, number)
        return number

    def read(self, offset: int, value: int | None, *, region: int = 0, width: int = 4, errno: int = 0) -> int:
        """A register's read, answered with a value, an errno, or not at all."""
        if errno or value is None:
            return self.ask(read(region, offset, width), errno or None)
        return self.ask(
            read(region, offset, width),
            at.REGION_ACCESS.pack(offset, region, width, tail=value.to_bytes(width, "little")),
        )

    def write(
        self, offset: int, value: int, *, region: int = 0, width: int = 4, interrupt: bool = False, posted: bool = False
    ) -> int:
        """A register's write, with an interrupt of MSI-X vector 0 before it is answered."""
        self._ids = (self._ids + 1) & 0xFFFF
        asked = write(region, offset, value.to_bytes(width, "little"), id=self._ids, posted=posted)
        number = self.writer.message(Direction.TO_SERVER, BOTH, asked)
        if interrupt:
            self.interrupt()
        if not posted:
            answer = asked.reply(at.REGION_ACCESS.pack(offset, region, width))
            self.writer.message(Direction.TO_CLIENT, BOTH, answer, number)
        return number

    def interrupt(self, vector: int = 0) -> None:
        """An interrupt, as capture notes it."""
        self.writer.note("interrupt", index=2, vector=vector, count=1)

    def dma_read(self, address: int, data: bytes) -> int:
        """A read of guest memory by the server."""
        asked = request(Command.DMA_READ, at.DMA_ACCESS.pack(address, len(data)))
        return self.ask(asked, at.DMA_ACCESS.pack(address, len(data), tail=data), direction=Direction.TO_CLIENT)


def flag_at_work(path: Path, rounds: int, *, stale: int = -1, lost: int = -1, polls: int = 1) -> dict[str, int]:
    """Raise, read, acknowledge, read: in round `stale` the last read is stale, in round `lost` no interrupt comes.

    Returns the numbers of those records by those words.
    """
    found = {}
    with Written(path, REGISTERS) as trace:
        for number in range(rounds):
            up = trace.write(UP, 0x5A, interrupt=number != lost)
            for _ in range(polls):
                trace.read(CAUSES, 0x5A)
            trace.write(DOWN, 0x5A)
            last = trace.read(CAUSES, 0x5A if number == stale else 0)
            if number == lost:
                found["lost"] = up
            if number == stale:
                found["stale"] = last
    return found
