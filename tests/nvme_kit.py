"""A driver of NVMe controllers for tests, over the Python client: queues and buffers in one piece of guest memory."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct, pack, pack_into, unpack_from
from typing import Any, NamedTuple

import pytest

from userdev_servers.nvme import Nvme
from vfio_user.client import Client, EventFd, GuestMemory
from vfio_user.server import Server
from vfio_user.wire.constants import IrqIndex, MigrationState

PAGE = 4096
BASE = 0x100000
"""Where guest memory begins; below it nothing is mapped."""
CC, CSTS, NSSR, AQA, ASQ, ACQ = 0x14, 0x1C, 0x20, 0x24, 0x28, 0x30
ENABLE = 0x00460001
"""CC: entries of 64 and 16 bytes, pages of 4 KiB."""
READY = 1
DEADLINE = 60.0

_COMMAND = Struct("<BBHIQQQQ6I")
_COMPLETION = Struct("<IIHHHH")


class Completion(NamedTuple):
    result: int
    reserved: int
    sq_head: int
    sq_id: int
    cid: int
    field: int

    @property
    def status(self) -> int:
        """Status code type and status code."""
        return self.field >> 1 & 0x7FF

    @property
    def do_not_retry(self) -> bool:
        return bool(self.field >> 15)


class QueuePair:
    """A submission and a completion queue of one number, driven through their doorbells."""

    def __init__(self, host: Host, number: int, entries: int, vector: int, cq_entries: int = 0) -> None:
        self.host = host
        self.number = number
        self.entries = entries
        self.cq_entries = cq_entries or entries
        self.vector = vector
        self.sq = host.allocate(64 * entries)
        self.cq = host.allocate(16 * self.cq_entries)
        self.tail = self.head = 0
        self.phase = 1
        self.next_cid = 0
        self.arrived: dict[int, Completion] = {}

    def put(self, opcode: int, *, ring: bool = True, cid: int | None = None, **fields: int) -> int:
        """Put a command into the queue; its identifier."""
        if cid is None:
            self.next_cid = cid = self.next_cid + 1 & 0xFFFF
        names = ("flags", "nsid", "mptr", "prp1", "prp2", "cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")
        assert fields.keys() <= set(names)
        flags, nsid, mptr, prp1, prp2, *dwords = (fields.get(name, 0) for name in names)
        entry = _COMMAND.pack(opcode, flags, cid, nsid, 0, mptr, prp1, prp2, *dwords)
        self.host.write(self.sq + 64 * self.tail, entry)
        self.tail = (self.tail + 1) % self.entries
        if ring:
            self.ring()
        return cid

    def ring(self) -> None:
        self.host.ring(2 * self.number, self.tail)

    def take(self, *, acknowledge: bool = True) -> list[Completion]:
        """The completions that are there."""
        found = []
        while True:
            entry = Completion(*_COMPLETION.unpack(self.host.read(self.cq + 16 * self.head, 16)))
            if entry.field & 1 != self.phase:
                break
            found.append(entry)
            self.arrived[entry.cid] = entry
            self.head += 1
            if self.head == self.cq_entries:
                self.head, self.phase = 0, self.phase ^ 1
        if found and acknowledge:
            self.acknowledge()
        return found

    def acknowledge(self) -> None:
        self.host.ring(2 * self.number + 1, self.head)

    def wait(self, cid: int) -> Completion:
        """The completion of a command, waited for by interrupts."""
        self.take()
        while cid not in self.arrived:
            self.host.client.wait_interrupt(self.host.vectors[self.vector], timeout=DEADLINE)
            self.take()
        return self.arrived.pop(cid)

    def do(self, opcode: int, **fields: int) -> Completion:
        return self.wait(self.put(opcode, ring=True, cid=None, **fields))


_ELSE = b"\xee"


class Host:
    """A client with memory, and the controller brought up by the book."""

    def __init__(self, client: Client, *, size: int = 16 << 20, shared: bool = True, vectors: int = 9) -> None:
        self.client = client
        self.memory = GuestMemory(size, shared=shared)
        self.vectors = [EventFd() for _ in range(vectors)]
        self.queues: dict[int, QueuePair] = {}
        self.doorbells: mmap.mmap | None = None
        """The page of doorbells, once it is mapped."""
        self._free = BASE
        client.dma_map(BASE, self.memory)
        client.enable_irqs(IrqIndex.MSIX, self.vectors)

    def close(self) -> None:
        self.client.close()
        if self.doorbells is not None:
            self.doorbells.close()
        for vector in self.vectors:
            vector.close()
        self.memory.close()

    # memory and registers

    def allocate(self, size: int) -> int:
        """Whole pages of zeros."""
        at = self._free
        self._free += -(-size // PAGE) * PAGE
        assert self._free <= BASE + self.memory.size
        return at

    def allocate_used(self, size: int) -> int:
        """Whole pages of something else, as most of a guest's are."""
        at = self.allocate(size)
        self.write(at, _ELSE * (self._free - at))
        return at

    def taken(self, at: int, size: int) -> bytes:
        """What a command has put there, and nothing behind it."""
        behind = self.read(at + size, -size % PAGE)
        assert behind == _ELSE * len(behind), "more was written than was asked for"
        return self.read(at, size)

    def goes_on_at(self, other: Host) -> None:
        """Migrated: the guest's memory and its driver are behind that controller, which runs from now on."""
        used = slice(self._free - BASE)
        other.memory.view[used] = self.memory.view[used]
        other.client.set_migration_state(MigrationState.RUNNING)
        for number, queue in self.queues.items():
            moved = QueuePair.__new__(QueuePair)
            moved.__dict__.update(queue.__dict__, host=other)
            other.queues[number] = moved
        other._free = self._free

    def read(self, at: int, size: int) -> bytes:
        return bytes(self.memory.view[at - BASE : at - BASE + size])

    def write(self, at: int, data: bytes) -> None:
        self.memory.view[at - BASE : at - BASE + len(data)] = data

    def load(self, offset: int, width: int = 4) -> int:
        return self.client.load(0, offset, width)

    def store(self, offset: int, width: int, value: int) -> None:
        self.client.store(0, offset, width, value)

    def map_doorbells(self) -> None:
        """Ring in memory from now on."""
        self.doorbells = self.client.map_region(self.client.region_info(0))

    def ring(self, index: int, value: int) -> None:
        if self.doorbells is None:
            self.store(0x1000 + 4 * index, 4, value)
        else:
            pack_into("<I", self.doorbells, 4 * index, value)

    def rung(self, number: int) -> tuple[int, int]:
        """What is in the page for a queue pair: tail of submissions, head of completions."""
        assert self.doorbells is not None
        tail, head = unpack_from("<II", self.doorbells, 8 * number)
        return tail, head

    def until(self, condition: Callable[[], bool]) -> None:
        """Look again until it is so; every look is a round trip to the server."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, "the controller did not get there in time"
            time.sleep(0.0005)  # or the controller, which is in this process, gets half of the processor

    # bringing up

    @property
    def admin(self) -> QueuePair:
        return self.queues[0]

    def enable(self, *, entries: int = 32, cq_entries: int = 0) -> None:
        self.queues = {0: QueuePair(self, 0, entries, 0, cq_entries)}
        self.store(AQA, 4, (self.admin.cq_entries - 1) << 16 | entries - 1)
        self.store(ASQ, 8, self.admin.sq)
        self.store(ACQ, 8, self.admin.cq)
        self.store(CC, 4, ENABLE)
        self.until(lambda: self.load(CSTS) & READY == READY)

    def disable(self) -> None:
        self.store(CC, 4, 0)
        self.until(lambda: not self.load(CSTS) & READY)

    def create_queues(self, number: int = 1, *, entries: int = 64, vector: int = 1, cq_entries: int = 0) -> QueuePair:
        pair = QueuePair(self, number, entries, vector, cq_entries)
        sizes = ((pair.cq_entries - 1) << 16 | number, (entries - 1) << 16 | number)
        done = self.admin.do(0x05, prp1=pair.cq, cdw10=sizes[0], cdw11=vector << 16 | 3)
        assert done.status == 0
        done = self.admin.do(0x01, prp1=pair.sq, cdw10=sizes[1], cdw11=number << 16 | 1)
        assert done.status == 0
        self.queues[number] = pair
        return pair

    # commands

    def identify(self, cns: int, nsid: int = 0) -> bytes:
        page = self.allocate_used(PAGE)
        assert self.admin.do(0x06, prp1=page, nsid=nsid, cdw10=cns).status == 0
        return self.taken(page, PAGE)

    def log_page(self, number: int, size: int = 512, *, nsid: int = 0xFFFFFFFF, retain: bool = False) -> bytes:
        page = self.allocate_used(size)
        words = size // 4 - 1
        done = self.admin.do(0x02, prp1=page, nsid=nsid, cdw10=words << 16 | retain << 15 | number)
        assert done.status == 0
        return self.taken(page, size)

    def write_blocks(self, first: int, data: bytes, *, shift: int = 9, **fields: int) -> Completion:
        """Write from a buffer of one or two pages' length."""
        at = self.allocate(len(data))
        self.write(at, data)
        return self.transfer(0x01, first, at, len(data), shift=shift, **fields)

    def read_blocks(self, first: int, size: int, *, shift: int = 9, **fields: int) -> bytes:
        at = self.allocate_used(size)
        assert self.transfer(0x02, first, at, size, shift=shift, **fields).status == 0
        return self.taken(at, size)

    def transfer(self, opcode: int, first: int, at: int, size: int, *, shift: int = 9, **fields: int) -> Completion:
        """A command that moves `size` bytes at `at`, by PRPs."""
        queue, nsid = self.queues[1], fields.pop("nsid", 1)
        blocks = (size >> shift) - 1 | fields.pop("control", 0)
        return queue.do(
            opcode,
            **{
                "nsid": nsid,
                "prp1": at,
                "prp2": self.second_pointer(at, size),
                "cdw10": first & 0xFFFFFFFF,
                "cdw11": first >> 32,
                "cdw12": blocks,
                **fields,
            },
        )

    def second_pointer(self, at: int, size: int) -> int:
        """PRP 2 for a contiguous buffer: nothing, a page, or a list."""
        first = PAGE - at % PAGE
        if size <= first:
            return 0
        if size - first <= PAGE:
            return at + first
        pages = range(at + first, at + size, PAGE)
        return self.put_list(list(pages))

    def put_list(self, entries: list[int]) -> int:
        at = self.allocate(8 * len(entries))
        self.write(at, pack(f"<{len(entries)}Q", *entries))
        return at


@contextmanager
def loop_device(file: Path, size: int = 0) -> Iterator[Path]:
    """A block device over a file, new if it has a size; it has a page cache of its own. Who may not make one skips."""
    if size:
        with file.open("wb") as new:
            new.truncate(size)
    if os.geteuid() != 0:
        pytest.skip("only root can make a loop device")
    made = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def controller(path: Path, image: str = "", **options: Any) -> Iterator[tuple[Nvme, Host]]:
    """A controller behind a socket in `path`, and a host that has not enabled it. `image` defaults to one of 4 MiB."""
    shared = options.pop("shared", True)
    vectors = options.pop("vectors", 9)
    device = Nvme(image=image or f"{path / 'disk.img'}:4M", **options)
    try:
        with Server(device, f"unix:{path / 'nvme.sock'}"):
            host = Host(Client.connect(f"unix:{path / 'nvme.sock'}"), shared=shared, vectors=vectors)
            try:
                yield device, host
            finally:
                host.close()
    finally:
        device.close()
