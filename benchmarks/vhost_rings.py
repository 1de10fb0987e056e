"""What a virtqueue costs a device: a request taken and given back, against the least that has to be done for it.

    python -m benchmarks.vhost_rings [--rounds 9] [--json FILE]

A request is a disk's: 16 bytes to read, 4 KiB to write, a status byte. The least is to unpack its three descriptors, to
slice its three buffers out of memory and to store one used entry, in Python as well. Both take turns in one run, with
32 requests a batch or one, and the best of each counts; what the driver does is not measured. Goals: at most 6 times
the least in a batch of 32, at most 10 times for one alone, where no extras are asked for. Memory is sealed against
shrinking, as QEMU's is, but where "unsealed" is said.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.build import of_this_process
from vhost_user.memory import DirtyLog, MemoryTable
from vhost_user.rings import PackedInflight, PackedRing, RingAddresses, SplitInflight, SplitRing, region_size
from vhost_user.wire import VirtioFeature
from vhost_user.wire.payloads import Log, Region

SIZE = 256
REQUESTS = 64
"""That are prepared, with four descriptors of the ring for each."""

TURNS = 200
"""Batches of one measurement, of which the fastest counts: on a busy machine most are interrupted."""

USED, AVAILABLE, BUFFERS = 0x2000, 0x1000, 0x10000
MEMORY = 16 << 20
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT, AVAIL, USED_FLAG = 1, 2, 4, 1 << 7, 1 << 15
GOALS = {32: 6.0, 1: 10.0}
"""Times the least, by the size of a batch."""


@dataclass
class Result:
    """Nanoseconds of one request on either side, the best of all rounds."""

    what: str
    ns: float
    least_ns: float
    met: bool | None

    @property
    def ratio(self) -> float:
        return self.ns / self.least_ns


def sealed_memfd(size: int) -> int:
    fd = os.memfd_create("benchmark", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


class Guest:
    """A guest's memory with the buffers of its requests; `advance` makes so many of them available."""

    features = VirtioFeature.VERSION_1 | VirtioFeature.EVENT_IDX | VirtioFeature.INDIRECT_DESC

    def __init__(
        self, *, packed: bool, indirect: bool = False, extras: bool = False, sealed: bool = True, halves: bool = False
    ) -> None:
        """`halves`: data is in another region than the ring and the headers, as with libblkio or in a large guest."""
        self.data = MEMORY // 2 if halves else 0x1000
        fd = sealed_memfd(MEMORY) if sealed else os.memfd_create("benchmark")
        os.ftruncate(fd, MEMORY)
        self.memory = mmap.mmap(fd, MEMORY)
        self.memory[:] = bytes(MEMORY)
        self.table = MemoryTable()
        sizes = [MEMORY // 2] * 2 if halves else [MEMORY]
        regions = [Region(place * size, size, place * size, place * size) for place, size in enumerate(sizes)]
        self.table.set(regions, [fd] * len(regions))
        self.packed, self.available, self.wrap, self.indirect = packed, 0, 1, indirect
        self.ring = self._ring(extras)
        self.requests = [self._request(number) for number in range(REQUESTS)]
        if not packed:
            self._prepare_split()

    def _ring(self, extras: bool) -> SplitRing | PackedRing:
        addresses = RingAddresses(0, USED, AVAILABLE)
        region = memoryview(mmap.mmap(-1, region_size(SIZE, packed=self.packed))) if extras else None
        ring: SplitRing | PackedRing
        if self.packed:
            held = PackedInflight(region, SIZE) if region else None
            ring = PackedRing(SIZE, addresses, self.table, self.features, inflight=held)
        else:
            kept = SplitInflight(region, SIZE) if region else None
            ring = SplitRing(SIZE, addresses, self.table, self.features, inflight=kept)
        if extras:
            ring.log, ring.used_log = DirtyLog(Log(4096, 0), sealed_memfd(4096)), USED
        return ring

    def _request(self, number: int) -> list[tuple[int, int, int]]:
        at = BUFFERS + number * 0x4000
        chain = [(at, 16, 0), (at + self.data, 4096, WRITE), (at + 0x2000, 1, WRITE)]
        if not self.indirect:
            return chain
        self.memory[at + 0x3000 : at + 0x3030] = b"".join(
            DESCRIPTOR.pack(address, length, *self._tail(flags, index, 3))
            for index, (address, length, flags) in enumerate(chain)
        )
        return [(at + 0x3000, 48, INDIRECT)]

    def _tail(self, flags: int, index: int, count: int) -> tuple[int, int]:
        if self.packed:
            return 0, flags
        return flags | (NEXT if index + 1 < count else 0), index + 1

    def _prepare_split(self) -> None:
        for number, chain in enumerate(self.requests):
            for index, (address, length, flags) in enumerate(chain):
                place = 4 * number + index
                flags |= NEXT if index + 1 < len(chain) else 0
                self.memory[16 * place : 16 * place + 16] = DESCRIPTOR.pack(address, length, flags, place + 1)
        for place in range(SIZE):
            self.memory[AVAILABLE + 4 + 2 * place : AVAILABLE + 6 + 2 * place] = struct.pack(
                "<H", 4 * (place % REQUESTS)
            )

    def advance(self, count: int) -> None:
        if not self.packed:
            self.available = self.available + count & 0xFFFF
            self.memory[AVAILABLE + 2 : AVAILABLE + 4] = struct.pack("<H", self.available)
            return
        for number in range(count):
            chain = self.requests[number]
            for index, (address, length, flags) in enumerate(chain):
                flags |= (AVAIL if self.wrap else USED_FLAG) | (NEXT if index + 1 < len(chain) else 0)
                at = 16 * self.available
                self.memory[at : at + 16] = DESCRIPTOR.pack(address, length, number, flags)
                self.available += 1
                if self.available == SIZE:
                    self.available, self.wrap = 0, 1 - self.wrap


def served(guest: Guest, batch: int) -> float:
    """Nanoseconds of a request: taken, given back, published."""
    ring, spent = guest.ring, []
    for _ in range(TURNS):
        guest.advance(batch)
        begin = time.perf_counter_ns()
        chains = []
        while (chain := ring.pop()) is not None:
            chains.append(chain)
        for chain in chains:
            ring.push(chain, 4097)
        ring.publish()
        spent.append(time.perf_counter_ns() - begin)
    assert len(chains) == batch
    return min(spent) / batch


def least(guest: Guest, batch: int) -> float:
    """The same for what nobody can do without."""
    descriptors = memoryview(DESCRIPTOR.pack(BUFFERS, 16, 1, 1) * 4)
    memory, used, spent = memoryview(guest.memory), memoryview(bytearray(8 * SIZE)).cast("Q"), []
    unpack = DESCRIPTOR.unpack_from
    for _ in range(TURNS):
        begin = time.perf_counter_ns()
        for place in range(batch):
            views = []
            for at in (0, 16, 32):
                address, length, _, _ = unpack(descriptors, at)
                views.append(memory[address : address + length])
            used[place] = place
        spent.append(time.perf_counter_ns() - begin)
    return min(spent) / batch


CASES: dict[str, Callable[[], Guest]] = {
    "split": lambda: Guest(packed=False),
    "split, indirect": lambda: Guest(packed=False, indirect=True),
    "split, in-flight region and dirty log": lambda: Guest(packed=False, extras=True),
    "split, unsealed": lambda: Guest(packed=False, sealed=False),
    "split, data in another region": lambda: Guest(packed=False, halves=True),
    "packed": lambda: Guest(packed=True),
    "packed, indirect": lambda: Guest(packed=True, indirect=True),
    "packed, in-flight region and dirty log": lambda: Guest(packed=True, extras=True),
}


def measure(what: str, guest: Guest, batch: int, rounds: int) -> Result:
    pairs = [(served(guest, batch), least(guest, batch)) for _ in range(rounds)]
    ns, least_ns = min(ours for ours, _ in pairs), min(theirs for _, theirs in pairs)
    met = None
    if what in ("split", "packed"):
        met = ns <= GOALS[batch] * least_ns
    return Result(f"{what}, {batch} a batch", ns, least_ns, met)


@click.command(help=(__doc__ or "").split("\n", 1)[0])
@click.option("--rounds", default=9, show_default=True, help="Rounds of each measurement; the best counts.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the results to this file.")
def main(rounds: int, json_file: Path | None) -> None:
    print(f"our rings: {of_this_process()}")
    results = []
    for what, make in CASES.items():
        guest = make()
        for batch in (32, 1):
            result = measure(what, guest, batch, rounds)
            results.append(result)
            verdict = "" if result.met is None else "  goal met" if result.met else "  goal MISSED"
            print(
                f"{result.what:52} {result.ns:7.0f} ns  least {result.least_ns:6.0f} ns  {result.ratio:5.2f}{verdict}"
            )
    if json_file is not None:
        json_file.write_text(json.dumps([{**asdict(result), "ratio": result.ratio} for result in results], indent=2))
    sys.exit(any(result.met is False for result in results))


if __name__ == "__main__":
    main()
