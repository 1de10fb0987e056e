"""Large device memory: it streams in pieces, while the device runs, in bounded memory and bounded time per read."""

from __future__ import annotations

import mmap
import os
import random
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.migration_device import Adder, load, read_all, read_data, save, set_state, write_data
from vfio_user.migration import Migration
from vfio_user.migration.memory import PIECE, Memfd, MemfdMemory, Memory
from vfio_user.migration.saving import PAGE, SCAN
from vfio_user.migration.stream import FrameKind, FrameReader
from vfio_user.wire.constants import MigrationState

MIB = 1 << 20


def large(size: int) -> Adder:
    """A device whose memory is outside of Python's allocator, as a BAR's is."""
    device = Adder(0)
    device.ram = mmap.mmap(-1, size)  # type: ignore[assignment]
    device.digests = lambda known=None: {}  # type: ignore[method-assign]
    return device


def fill(device: Adder, seed: int = 1) -> None:
    random_bytes = random.Random(seed)
    for at in range(0, len(device.ram), MIB):
        device.ram[at : at + MIB] = random_bytes.randbytes(MIB)


def move(source: Adder, target: Adder) -> int:
    """Move a state transfer by transfer, as a VMM that keeps none of it. Bytes moved."""
    sending, receiving = Migration(source), Migration(target)
    set_state(receiving, MigrationState.RESUMING)
    moved = 0
    for state in (MigrationState.PRE_COPY, MigrationState.STOP_COPY):
        set_state(sending, state)
        while data := read_data(sending):
            write_data(receiving, data)
            moved += len(data)
    set_state(receiving, MigrationState.STOP)
    return moved


def same_memory(one: Adder, other: Adder) -> bool:
    """Not written out in an assertion: to print how megabytes differ takes pytest longer than a test may run."""
    return bytes(one.ram) == bytes(other.ram)


def test_memory_streams_without_being_copied_as_a_whole() -> None:
    source, target = large(24 * MIB), large(24 * MIB)
    fill(source)
    tracemalloc.start()
    try:
        moved = move(source, target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert moved > 24 * MIB
    assert peak < 8 * MIB
    assert same_memory(target, source)


def test_zeros_are_not_sent_and_replace_what_was_there() -> None:
    source, target = large(24 * MIB), large(24 * MIB)
    fill(target)
    source.ram[10 * MIB] = 1
    assert move(source, target) < 100_000
    assert same_memory(target, source)


@for_each_row(
    [
        (b"\1" * (3 * PIECE + 1), "MEMORY MEMORY MEMORY MEMORY"),
        (b"\1" * PIECE + bytes(2 * PIECE) + b"\1", "MEMORY ZERO MEMORY"),
        (bytes(PIECE) + b"\1" * PIECE + bytes(1), "ZERO MEMORY ZERO"),
    ]
)
def test_there_is_a_frame_of_zeros_where_there_are_some_and_nowhere_else(content: bytes, frames: str) -> None:
    source = Adder(len(content))
    source.ram[:] = content
    kinds = [
        frame.kind for frame in FrameReader().feed(save(source)) if frame.kind in (FrameKind.MEMORY, FrameKind.ZERO)
    ]
    assert [kind.name for kind in kinds] == frames.split()


@for_each([1, 4095, 4096, 4097, 65535, 65536, 65537, 200_001])
def test_memory_of_any_size_arrives(size: int) -> None:
    source, target = Adder(size), Adder(size)
    source.ram[:] = random.Random(size).randbytes(size)
    load(target, save(source))
    assert target.ram == source.ram


@given(
    st.lists(st.tuples(st.integers(0, 0x2FFFF), st.binary(min_size=1, max_size=5000)), max_size=5),
    st.lists(
        st.lists(st.tuples(st.integers(0, 0x2FFFF), st.binary(min_size=1, max_size=5000)), max_size=3), max_size=4
    ),
    st.integers(100, 100_000),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_during_pre_copy_arrives(
    before: list[tuple[int, bytes]], rounds: list[list[tuple[int, bytes]]], transfer: int
) -> None:
    source, target = Adder(0x30000), Adder(0x30000)

    def write(writes: list[tuple[int, bytes]]) -> None:
        for at, data in writes:
            source.ram[at : at + len(data)] = data[: len(source.ram) - at]

    write(before)
    migration = Migration(source)
    set_state(migration, MigrationState.PRE_COPY)
    stream = b""
    for writes in rounds:
        stream += read_data(migration, transfer)
        write(writes)
    set_state(migration, MigrationState.STOP_COPY)
    load(target, stream + read_all(migration, transfer))
    assert target.ram == source.ram


def test_a_page_is_sent_as_often_as_it_changes() -> None:
    source, target = Adder(4 * PAGE), Adder(4 * PAGE)
    migration = Migration(source)
    set_state(migration, MigrationState.PRE_COPY)
    stream = read_all(migration)
    for change in range(1, 5):
        source.ram[PAGE] = change
        sent = read_all(migration)
        assert len(sent) > PAGE
        stream += sent
    set_state(migration, MigrationState.STOP_COPY)
    load(target, stream + read_all(migration))
    assert target.ram == source.ram


def test_only_changed_pages_are_sent_again() -> None:
    source = Adder(64 * PAGE)
    source.ram[:] = b"\x5a" * len(source.ram)
    migration = Migration(source)
    set_state(migration, MigrationState.PRE_COPY)
    read_all(migration)
    for page in (3, 4, 40):
        source.ram[page * PAGE + 100] ^= 1
    assert 3 * PAGE < len(read_all(migration)) < 3 * PAGE + 200


def test_a_read_in_pre_copy_looks_at_no_more_memory_than_it_may() -> None:
    source = large(4 * SCAN)
    migration = Migration(source)
    set_state(migration, MigrationState.PRE_COPY)
    read_data(migration, 1 << 20)
    source.ram[4 * SCAN - 100 : 4 * SCAN - 95] = b"found"
    found = [b"found" in read_data(migration) for _ in range(12)]
    assert True not in found[:2]
    assert True in found


def in_a_file(size: int) -> tuple[Memory, memoryview]:
    """A memory in a file, and all that is in the file: neighbours of a page on either side, which are no zeros."""
    file = Memfd("test", 2 * mmap.PAGESIZE + -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    file.view[: mmap.PAGESIZE] = file.view[-mmap.PAGESIZE :] = b"n" * mmap.PAGESIZE
    return MemfdMemory("in a file", file, mmap.PAGESIZE, size), file.view


def elsewhere(size: int) -> tuple[Memory, memoryview]:
    view = memoryview(bytearray(2 * mmap.PAGESIZE + size))
    view[: mmap.PAGESIZE] = view[-mmap.PAGESIZE :] = b"n" * mmap.PAGESIZE
    return Memory("elsewhere", view[mmap.PAGESIZE : mmap.PAGESIZE + size]), view


@for_each([in_a_file, elsewhere])
def test_a_memory_is_bytes_whatever_is_written_and_cleared_in_it(
    make: Callable[[int], tuple[Memory, memoryview]],
) -> None:
    """At random, at and beside the borders of pages and pieces; what lies beside the memory stays as it is."""
    size = PIECE + 2 * mmap.PAGESIZE + 100
    memory, around = make(size)
    there = bytearray(size)
    at_random = random.Random(14)
    borders = [0, mmap.PAGESIZE, 2 * mmap.PAGESIZE, PIECE, PIECE + mmap.PAGESIZE, size]
    for _ in range(300):
        ends = [min(max(at_random.choice(borders) + at_random.randint(-1, 1), 0), size) for _ in range(2)]
        start, end = min(ends), min(max(ends), min(ends) + PIECE)
        match at_random.randrange(3):
            case 0:
                memory.clear(start, max(ends) - start)
                there[start : max(ends)] = bytes(max(ends) - start)
            case 1:
                memory.write(start, bytes(end - start))
                there[start:end] = bytes(end - start)
            case 2:
                data = at_random.randbytes(end - start)
                memory.write(start, data)
                there[start:end] = data
        assert memory.view == there
        assert memory.read(start, end - start) == there[start:end]
        data_at = memory.next_data(start)
        assert start <= data_at <= size
        assert not any(there[start:data_at])
    assert around[: mmap.PAGESIZE] == around[-mmap.PAGESIZE :] == b"n" * mmap.PAGESIZE
    assert memory.read(size - 10, 100) == there[-10:]


@for_each([lambda memory, at, size: memory.clear(at, size), lambda memory, at, size: memory.write(at, bytes(size))])
def test_whole_pages_that_are_cleared_are_holes_again(clear: Callable[[Memory, int, int], None]) -> None:
    page = mmap.PAGESIZE
    memory, _ = in_a_file(5 * page + 100)
    assert memory.next_data(0) == memory.size
    memory.write(0, b"x" * memory.size)
    assert memory.next_data(page) == page
    clear(memory, page - 1, 2 * page + 2)  # pages 1 and 2, and a byte on either side
    assert [memory.next_data(at) for at in (0, page, 2 * page, 3 * page)] == [0, 3 * page, 3 * page, 3 * page]
    clear(memory, 5 * page, 100)  # the rest of the last page is nobody's
    assert memory.next_data(5 * page) == memory.size


def test_memory_in_a_file_is_shut_with_it_and_cannot_be_shrunk_by_others() -> None:
    file = Memfd("test", 8192)
    with pytest.raises(PermissionError):
        os.ftruncate(file.fd, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(file.fd, 16384)
    assert not os.get_inheritable(file.fd)
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)
