"""What is remembered of memory that was unmapped while a server logs its writes: each byte, or that it is not all; and
how what the server wrote is written again.
"""

from __future__ import annotations

import errno
import os
import random

import pytest

from tests.cases import for_each, for_each_row
from tests.interposer_bench import Bench, dma_map, request
from userdev.errors import UserError
from userdev.relay.loop import Task, TaskCancelled
from vfio_user.interposer import resending, unmapped
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.resending import resend, unmapped_pages
from vfio_user.interposer.unmapped import FileRange, UnmappedMemory
from vfio_user.wire import Command
from vfio_user.wire import layouts as at

PAGE = 4096


def bytes_of(memory: UnmappedMemory) -> set[tuple[int, int]]:
    return {(gone.inode, place) for gone in memory for place in range(gone.offset, gone.end)}


@for_each(range(5))
def test_joined_or_not_they_are_the_same_bytes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmapped, "MAX_RANGES", 40)
    choose, memory, expected = random.Random(seed), UnmappedMemory(), set[tuple[int, int]]()
    for _ in range(300):
        gone = FileRange(choose.randrange(2), choose.randrange(50), choose.randrange(1, 9))
        memory.add(gone)
        expected |= {(gone.inode, place) for place in range(gone.offset, gone.end)}
        assert len(memory) <= 40
    assert memory.is_whole
    assert bytes_of(memory) == expected


def test_of_more_than_is_kept_it_is_known_that_it_is_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unmapped, "MAX_RANGES", 40)
    memory = UnmappedMemory()
    for place in range(0, 400, 2):
        memory.add(FileRange(1, place, 1))
        assert len(memory) <= 40
    assert not memory.is_whole


@for_each_row([([1], True), ([1, 3], True), ([4], True), ([5], False), ([1, 4], False), ([1, 1, 1, 1], False)])
def test_what_cannot_be_written_again_is_refused_and_not_left_out(
    pages: list[int], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths of what was unmapped, one range after the other with a page between them."""
    monkeypatch.setattr(resending, "MAX_PAGES", 4)
    monkeypatch.setattr(unmapped, "MAX_RANGES", 3)
    memory, places = os.memfd_create("guest"), list[int]()
    os.ftruncate(memory, 100 * PAGE)
    with Bench() as bench:
        bench.negotiate()
        bench.session.model.unmapped = UnmappedMemory()
        place = 0
        for count in pages:
            bench.exchange(dma_map(place, count * PAGE, memory, offset=place))
            bench.exchange(request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(at.DMA_UNMAP.size, 0, place, count * PAGE)))
            places += range(place, place + count * PAGE, PAGE)
            place += (count + 1) * PAGE
        if kept:
            assert unmapped_pages(bench.session) == (set(), set(places))
        else:
            with pytest.raises(UserError):
                unmapped_pages(bench.session)
    os.close(memory)


def test_of_memory_that_begins_or_ends_within_a_page_every_page_is_named() -> None:
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 16 * PAGE)
    with Bench() as bench:
        bench.negotiate()
        bench.session.model.unmapped = UnmappedMemory()
        for place, size in ((0x800, PAGE), (4 * PAGE, PAGE + 1), (9 * PAGE - 1, 2)):
            bench.exchange(dma_map(place, size, memory, offset=place))
            bench.exchange(request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(at.DMA_UNMAP.size, 0, place, size)))
        assert unmapped_pages(bench.session) == (set(), {page * PAGE for page in (0, 1, 4, 5, 8, 9)})
        bench.exchange(dma_map(0x70800, 2 * PAGE, memory, offset=0x800))
        mapped_now = {0x70800, 0x71000}
        assert unmapped_pages(bench.session) == (mapped_now, {page * PAGE for page in (4, 5, 8, 9)})
    os.close(memory)


@for_each(("refused", "unreadable", "cancelled"))
def test_nothing_is_on_its_way_any_more_when_writing_again_has_failed(how: str) -> None:
    """The guest may run then, and a byte that comes late would be written over what it has."""
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 4 * PAGE)
    with pytest.MonkeyPatch.context() as monkeypatch, Bench() as bench:
        monkeypatch.setattr(resending, "AT_ONCE", 2)
        bench.negotiate()
        bench.exchange(dma_map(0, 4 * PAGE, memory))
        pages = [0, PAGE, 2 * PAGE, 3 * PAGE, *([8 * PAGE] if how == "unreadable" else [])]
        again = Task(resend(bench.session, pages))
        _, first, _, second = [bench.client.receive() for _ in range(4)]
        if how == "cancelled":
            again.cancel()
            assert bench.loop._timeout() is None, "nobody waits for an answer any more"
            with pytest.raises(TaskCancelled):
                again.result()
        else:
            bench.client.send(first.error(errno.EPERM) if how == "refused" else first.reply())
            bench.settle()
            assert not again.done, "the second batch is on its way"
            bench.client.send(second.reply())
            bench.until(lambda: again.done or None)
            with pytest.raises(RequestRefused) as refusal:
                again.result()
            assert refusal.value.errno == (errno.EPERM if how == "refused" else errno.EFAULT)
        assert bench.client.is_silent()
    os.close(memory)
