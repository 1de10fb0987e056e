"""Declared memory costs what was used of it: reset, digest and migration look at data, and leave holes alone."""

from __future__ import annotations

import gc
import io
import mmap
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device_kit import open_fds
from tests.migration_device import read_all, read_data, set_state, write_data
from vfio_user import Bar, PciDevice, PciIds, ProtocolError, ResetKind, memory
from vfio_user.device import function_of
from vfio_user.migration import Memfd, MemfdMemory, Memory, Migration, memory_digest
from vfio_user.migration.memory import PIECE
from vfio_user.migration.memory_digest import MemoryDigest
from vfio_user.migration.stream import digests_in
from vfio_user.wire.constants import MigrationState

GIB = 1 << 30
PAGE = 4096
LARGE = 8 * GIB
FOLIO = 2 << 20
"""More than the kernel puts in for one byte that is written."""


class Gpu(PciDevice):
    """More memory than this machine may have: mapped by the client, reached by messages, and its own."""

    ids = PciIds(vendor=0x1002, device=0x75C8)
    bars = (Bar(0, size=LARGE, bits=64, prefetchable=True), Bar(2, size=LARGE, bits=64))
    vram: memoryview = memory(LARGE, bar=0, mmap=True)
    shown: memoryview = memory(LARGE, bar=2)
    own: memoryview = memory(LARGE + 1)
    flash: memoryview = memory(PAGE, keep=True)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    device = Gpu()
    yield device
    device.close()


def used() -> int:
    """Bytes that there are in this process's memory files, holes aside."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]  # not the listing's own
    return sum(512 * link.stat().st_blocks for link in links if "memfd:vfio-user" in str(link.readlink()))


def scribble(device: Gpu) -> None:
    for view in (device.vram, device.shown, device.own):
        view[5 * GIB + 123] = view[0] = view[len(view) - 1] = 7
    device.flash[1] = 9


def test_untouched_memory_costs_nothing_whatever_is_done_with_it(gpu: Gpu) -> None:
    before = used()
    gpu.digest()
    function_of(gpu).reset(ResetKind.DEVICE)
    move(gpu, gpu)
    assert used() == before


def test_a_reset_gives_back_what_was_used_and_keeps_what_is_kept(gpu: Gpu) -> None:
    fresh, before = gpu.digest(), used()
    scribble(gpu)
    assert gpu.digest() != fresh
    assert before < used() < before + 10 * FOLIO
    function_of(gpu).reset(ResetKind.DEVICE)
    assert used() < before + FOLIO
    assert gpu.flash[1] == 9
    gpu.flash[1] = 0
    assert gpu.digest() == fresh


def test_a_client_that_has_memory_mapped_sees_it_cleared(gpu: Gpu) -> None:
    fd = function_of(gpu).regions[0].fd
    assert fd is not None
    with mmap.mmap(fd, PAGE) as mapped:
        mapped[:4] = b"left"
        assert bytes(gpu.vram[:4]) == b"left"
        function_of(gpu).reset(ResetKind.FLR)
        assert mapped[:] == bytes(PAGE)
        mapped[:4] = b"more"
        assert bytes(gpu.vram[:4]) == b"more"


def move(source: PciDevice, target: PciDevice) -> int:
    """Bytes of the stream."""
    sending, receiving = Migration(function_of(source)), Migration(function_of(target))
    set_state(sending, MigrationState.STOP_COPY)
    data = read_all(sending)
    set_state(sending, MigrationState.RUNNING)
    set_state(receiving, MigrationState.RESUMING)
    write_data(receiving, data)
    set_state(receiving, MigrationState.RUNNING)
    return len(data)


def test_what_was_used_moves_and_takes_the_place_of_what_was_there(gpu: Gpu) -> None:
    target = Gpu()
    scribble(gpu)
    target.vram[6 * GIB] = target.own[PAGE] = 1
    before = used()
    assert move(gpu, target) < 1 << 20
    assert target.digest() == gpu.digest()
    assert (target.vram[5 * GIB + 123], target.vram[6 * GIB], target.own[PAGE], target.own[LARGE]) == (7, 0, 0, 7)
    assert used() < before + 12 * FOLIO
    target.close()


def test_memory_that_is_reset_while_it_is_copied_arrives_as_zeros(gpu: Gpu) -> None:
    target = Gpu()
    scribble(gpu)
    sending, receiving = Migration(function_of(gpu)), Migration(function_of(target))
    set_state(receiving, MigrationState.RESUMING)
    set_state(sending, MigrationState.PRE_COPY)
    while data := read_data(sending):
        write_data(receiving, data)
    function_of(gpu).reset(ResetKind.DEVICE)
    gpu.own[17 * PAGE] = 3
    set_state(sending, MigrationState.STOP_COPY)
    write_data(receiving, read_all(sending))
    set_state(receiving, MigrationState.RUNNING)
    assert target.digest() == gpu.digest()
    assert (target.vram[0], target.own[17 * PAGE], target.flash[1]) == (0, 3, 9)
    target.close()


@pytest.mark.parametrize(("changed", "again"), [(None, 0), (3 * FOLIO, 4), (LARGE - 1, 0)])
def test_what_was_sent_is_looked_at_once_more_and_hashed_again_from_what_has_changed(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, changed: int | None, again: int
) -> None:
    """After the device has stopped: to read and to hash 256 MiB once more takes a fifth of a second of downtime."""
    gpu.vram[: 4 * FOLIO] = b"\xa5" * (4 * FOLIO)
    sizes: list[int] = []
    read = MemfdMemory.read

    def count(memory: MemfdMemory, offset: int, size: int) -> bytes:
        sizes.append(size)
        return read(memory, offset, size)

    migration = Migration(function_of(gpu))
    set_state(migration, MigrationState.PRE_COPY)
    stream = bytearray()
    while data := read_data(migration):
        stream += data
    if changed is not None:
        gpu.vram[changed] = 1
    monkeypatch.setattr(MemfdMemory, "read", count)
    set_state(migration, MigrationState.STOP_COPY)
    stream += read_all(migration)
    assert sum(sizes) // FOLIO == 4 + again
    assert digests_in(io.BytesIO(stream)) == function_of(gpu).digests()


ENDS = [at for piece in range(6) for at in (piece * PIECE, (piece + 1) * PIECE - 1)]
"""The first byte and the last of each piece."""


@pytest.mark.parametrize("size", [1, PIECE, 5 * PIECE + 1])
@settings(max_examples=30)
@given(steps=st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 2), st.booleans()), max_size=20))
def test_a_digest_that_goes_on_is_that_of_all(size: int, steps: list[tuple[int, int, bool]]) -> None:
    """Whatever changes between two of its pieces, or behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_digest, "STEP", 2 * PIECE)
        one = Memory("one", memoryview(bytearray(size)))
        digest = MemoryDigest(one)
        for place, value, finished in steps:
            place %= size
            one.view[place] = value
            digest.changed(place - place % PIECE)
            if finished:
                assert digest.finish() == MemoryDigest(one).finish()
        assert digest.finish() == MemoryDigest(Memory("other", memoryview(bytearray(one.view)))).finish()


def test_digest_and_stream_tell_the_content_and_not_how_it_came_about(gpu: Gpu) -> None:
    """A page of zeros that was written is a hole to whoever asks what is in it."""
    other = Gpu()
    for device in (gpu, other):
        scribble(device)
    other.vram[7 * GIB] = other.shown[0x12345] = 1
    other.vram[7 * GIB] = other.shown[0x12345] = 0
    assert used() > 0
    assert function_of(other).digests() == function_of(gpu).digests()
    streams = []
    for device in (gpu, other):
        migration = Migration(function_of(device))
        set_state(migration, MigrationState.STOP_COPY)
        streams.append(read_all(migration))
    assert streams[0] == streams[1]
    other.close()


def test_a_device_that_nobody_closed_takes_its_files_along() -> None:
    gc.collect()
    before = open_fds()
    Gpu()
    gc.collect()
    assert open_fds() == before


def test_memory_that_was_replaced_is_said_before_a_migration(gpu: Gpu) -> None:
    gpu.own = memoryview(bytearray(16))
    with pytest.raises(ProtocolError, match=r"Gpu cannot be saved: own is not the declared memory.*own\[:\] ="):
        function_of(gpu).check_savable()


SIZE = 0x31234
RANGES = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


@given(st.lists(st.tuples(st.sampled_from(["write", "zeros", "clear"]), RANGES), max_size=12))
@settings(max_examples=100, deadline=None)
def test_memory_with_holes_has_the_content_of_plain_memory(changes: list[tuple[str, list[int]]]) -> None:
    file = Memfd("vfio-user-test", 0x40000)
    found, model = MemfdMemory("model", file, 2 * PAGE, SIZE), bytearray(SIZE)
    beside = [file.view[: 2 * PAGE], file.view[0x34000:]]
    for view in beside:
        view[:] = b"\xee" * len(view)
    for change, (start, end) in changes:
        size = end - start
        data = random.Random(start).randbytes(size) if change == "write" else bytes(size)
        model[start:end] = data
        if change == "clear":
            found.clear(start, size)
        else:
            found.write(start, data)
    assert found.read(0, SIZE + 1) == model
    zeros = SIZE - len(model.lstrip(b"\0"))
    assert zeros == SIZE or found.next_data(0) <= zeros
    assert found.next_data(SIZE - 1) in (SIZE - 1, SIZE)
    assert all(bytes(view) == b"\xee" * len(view) for view in beside)
    for view in (*beside, found.view):
        view.release()
    file.close()
