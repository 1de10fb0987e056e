"""What a disk has acknowledged is kept, or never again said to be."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import resource
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from userdev.errors import UserError
from userdev_servers.block import backing
from userdev_servers.block.backing import MAX_PIECES, Backing, WouldBlock
from userdev_servers.block.images import open_images
from userdev_servers.block.lost import Lost

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Backing]:
    (backing,) = open_images(f"{tmp_path / 'disk.img'}:2M", 512)
    yield backing
    backing.close()


class PageCache:
    """What fdatasync does: it tells of an error once for an open file, to whoever asks first."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)
        self.calls = 0

    def fdatasync(self, fd: int) -> None:
        self.calls += 1
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))


def write(backing: Backing, offset: int, data: bytes) -> None:
    backing.write([memoryview(data)], offset)


def write_from(backing: Backing, memory: mmap.mmap) -> None:
    """As a request does: its views are gone with it."""
    backing.write([memoryview(memory)], 0)


# A flush that failed


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_what_the_disk_has_not_kept_once_is_lost_for_ever(
    image: Backing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(os, "fdatasync", PageCache(number).fdatasync)
    write(image, 0, b"acknowledged")
    for _ in range(3):
        with pytest.raises(Lost) as told:
            image.sync()
        assert told.value.errno == number
    assert image.failure is not None
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "it is said once, not at every flush"
    assert str(image.path) in caplog.text


def test_an_image_that_is_opened_anew_can_be_trusted_again(image: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", PageCache(errno.EIO).fdatasync)
        with pytest.raises(Lost):
            image.sync()
    again = Backing(image.path)
    again.sync()
    assert again.failure is None
    again.close()


def test_an_error_that_the_page_cache_tells_one_thread_is_of_all_that_wait(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells the first; the others' data may be what was lost."""
    first_is_in, go_on = threading.Event(), threading.Event()
    cache = PageCache(errno.EIO)

    def fdatasync(fd: int) -> None:
        if first_is_in.is_set():
            go_on.set()  # a second one that does not wait gets its success while the first has not got its error
        first_is_in.set()
        if len(cache.errors) and threading.current_thread().name == "first":
            go_on.wait(0.2)
            cache.fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    outcomes: dict[str, bool] = {}

    def flush() -> None:
        try:
            image.sync()
            outcomes[threading.current_thread().name] = True
        except Lost:
            outcomes[threading.current_thread().name] = False

    threads = [threading.Thread(target=flush, name=name) for name in ("first", "second", "third")]
    threads[0].start()
    assert first_is_in.wait(60)
    for each in threads[1:]:
        each.start()
    for each in threads:
        each.join(60)
    assert outcomes == {"first": False, "second": False, "third": False}


@pytest.mark.pure
def test_flushes_that_wait_share_the_next_turn_of_the_disk(image: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of them the turn that was under way: it may have passed by what they wrote."""
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        begun.set()
        go_on.wait(5)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    first = threading.Thread(target=image.sync)
    first.start()
    assert begun.wait(60)
    waiting, asked = [], threading.Semaphore(0)

    class Counted:
        """The backing's lock, which tells of those that come to it."""

        def __init__(self, lock: threading.Lock) -> None:
            self._lock = lock

        def __enter__(self) -> None:
            asked.release()
            self._lock.acquire()

        def __exit__(self, *_: object) -> None:
            self._lock.release()

    monkeypatch.setattr(image, "_syncing", Counted(image._syncing))
    for _ in range(5):
        waiting.append(threading.Thread(target=image.sync))
        waiting[-1].start()
        assert asked.acquire(timeout=60)
    go_on.set()
    for each in (first, *waiting):
        each.join(60)
    assert len(calls) == 2


# An image that somebody else changes


def test_an_image_that_was_cut_is_not_filled_up_with_zeros(image: Backing, caplog: pytest.LogCaptureFixture) -> None:
    write(image, MIB, b"lost")
    os.truncate(image.path, MIB // 2)
    for _ in range(2):
        with pytest.raises(Lost):
            write(image, 2 * MIB - 512, bytes(512))
    assert image.path.stat().st_size == MIB // 2
    with pytest.raises(Lost):
        image.zero(MIB, 512)
    with pytest.raises(Lost):
        image.extend(4 * MIB)
    with pytest.raises(Lost):
        image.sync()
    assert len(caplog.records) == 1
    assert str(MIB // 2) in caplog.text


def test_an_image_that_was_cut_while_another_had_it_is_as_large_as_it_was_and_what_was_there_is_lost(
    image: Backing,
) -> None:
    size = image.size
    os.truncate(image.path, size // 2)
    image.measure()
    assert image.size == size
    with pytest.raises(Lost):
        image.read_bytes(512, size - 512)
    with pytest.raises(Lost):
        image.sync()


@pytest.fixture
def short_files() -> Iterator[int]:
    """What a file of this process may have in bytes, as there are file systems with such a bound, and others."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    yield MIB
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_image_that_cannot_be_used_is_not_kept_open(tmp_path: Path, short_files: int) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "small").write_bytes(bytes(512))
    before = fd_count()
    for name, size, how in (
        ("empty", None, {}),
        ("small", 1024, {"read_only": True}),
        ("memory", None, {"in_memory": True}),
        ("large", 2 * short_files, {}),
    ):
        with pytest.raises(UserError):
            Backing(tmp_path / name, size, **how)
    assert fd_count() == before


def test_why_an_image_failed_keeps_no_memory_of_the_request_that_has_found_it(image: Backing) -> None:
    """It is a guest's, which may want to unmap it, and the reason is there until the image is opened anew."""
    memory = mmap.mmap(-1, 512)
    os.truncate(image.path, 0)
    with suppress(Lost):
        write_from(image, memory)
    assert image.failure is not None
    memory.close()


def test_what_is_left_of_an_image_that_was_cut_can_be_read(image: Backing) -> None:
    write(image, 4096, b"kept" * 128)
    os.truncate(image.path, MIB)
    with pytest.raises(Lost):
        image.read_bytes(512, MIB)
    assert image.read_bytes(512, 4096) == b"kept" * 128


def test_what_was_cut_is_lost_even_if_the_image_is_made_as_long_as_before(image: Backing) -> None:
    write(image, MIB, b"lost" * 128)
    os.truncate(image.path, MIB)
    with pytest.raises(Lost):
        image.sync()
    os.truncate(image.path, 2 * MIB)
    with pytest.raises(Lost):
        image.read([memoryview(bytearray(512))], MIB)
    with pytest.raises(Lost):
        write(image, 0, bytes(512))


def test_where_data_is_next_is_told_of_holes_and_of_what_cannot_tell(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [image.next_data(at) for at in (0, MIB)] == [2 * MIB] * 2
    write(image, MIB, bytes(4096))
    assert [image.next_data(at) for at in (0, MIB, MIB + 4096)] == [MIB, MIB, 2 * MIB]

    assert image.next_data(3 * MIB) == 2 * MIB
    monkeypatch.setattr(os, "lseek", lambda fd, offset, whence: offset)  # a device, all of which is data
    assert [image.next_data(at) for at in (0, MIB, 3 * MIB)] == [0, MIB, 2 * MIB]

    def cannot(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", cannot)
    assert image.next_data(0) == 0


def test_a_flush_finds_that_an_image_was_unlinked(image: Backing, caplog: pytest.LogCaptureFixture) -> None:
    image.sync()
    image.path.unlink()
    for _ in range(2):
        with pytest.raises(Lost):
            image.sync()
    assert "unlinked" in caplog.text
    assert image.read_bytes(512, 0) == bytes(512)


def test_an_image_that_never_had_a_name_is_not_unlinked(tmp_path: Path) -> None:
    opened = os.memfd_create("image")
    os.truncate(opened, MIB)
    backing = Backing(Path(f"/proc/self/fd/{opened}"))
    backing.sync()
    backing.close()
    os.close(opened)
    (memory,) = open_images("memory:1M", 512)
    memory.sync()
    memory.close()


# Sizes


@for_each_row([("511", 512), ("100", 512), ("2048", 4096), ("513", 512), ("6K", 4096)])
def test_a_new_image_has_whole_blocks(size: str, block: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="block"):
        open_images(f"{tmp_path / 'new.img'}:{size}", block)
    assert not (tmp_path / "new.img").exists()


@for_each(["8388608T", "99999999T", "9223372036854775808", "9" * 5000, "1\N{SUPERSCRIPT TWO}K"], ["memory", "new.img"])
def test_a_size_that_no_file_has_is_none(size: str, image: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no size"):
        open_images(f"{image if image == 'memory' else tmp_path / image}:{size}", 512)
    assert not (tmp_path / "new.img").exists()


def test_an_image_without_a_whole_block_is_refused(tmp_path: Path) -> None:
    (tmp_path / "small.img").write_bytes(bytes(2048))
    with pytest.raises(UserError, match="2048"):
        open_images(str(tmp_path / "small.img"), 4096)


def test_an_odd_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(MIB + 100))
    (backing,) = open_images(str(tmp_path / "odd.img"), 512)
    backing.close()
    assert "100 bytes" in caplog.text


def test_an_image_that_cannot_grow_to_its_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ro.img").write_bytes(bytes(MIB))
    with pytest.raises(UserError, match=str(MIB)):
        open_images(f"{tmp_path / 'ro.img'}:2M:ro", 512)


def test_a_new_image_is_brought_to_the_disk_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = [], os.fsync

    def spy(fd: int) -> None:
        synced.append(os.stat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    (backing,) = open_images(f"{tmp_path / 'new.img'}:1M", 512)
    backing.close()
    assert synced == [(tmp_path / "new.img").stat().st_ino, tmp_path.stat().st_ino]


@pytest.mark.pure
def test_a_disk_on_a_block_device_shrinks_and_grows_again_as_far_as_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is one here: it has its length from where it ends, and cannot be made longer."""
    (tmp_path / "device").write_bytes(bytes(2 * MIB))
    monkeypatch.setattr(backing, "stat", SimpleNamespace(S_ISBLK=lambda mode: True, S_ISREG=lambda mode: False))
    (disk,) = open_images(str(tmp_path / "device"), 512)
    try:
        assert disk.size == 2 * MIB
        for size in (MIB, 2 * MIB):
            disk.resize(size)
            assert disk.size == size
        with pytest.raises(OSError, match="not that large"):
            disk.resize(2 * MIB + 512)
        assert disk.size == 2 * MIB
    finally:
        disk.close()


@pytest.mark.pure
@pytest.mark.parametrize("clear", [Backing.zero, Backing.discard], ids=lambda clear: clear.__name__)
def test_what_was_cleared_in_part_before_the_disk_refused_is_copied_again(
    image: Backing, clear: Callable[[Backing, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As what was written in part is: nobody knows how far it came."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "the disk refuses")

    image.log = deque()
    monkeypatch.setattr(Backing, "_fallocate", lambda *_: False)
    monkeypatch.setattr("userdev_servers.block.backing.write_whole", refuse)
    with pytest.raises(OSError, match="refuses"):
        clear(image, 4096, 8192)
    assert list(image.log) == [(4096, 8192)]


def test_a_write_that_the_disk_refuses_while_it_is_copied_ends_with_the_disks_error_and_is_copied_again(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, after a part, and of the second thousand of pieces: what came before that is copied again too."""
    whole = os.pwritev
    pieces = [memoryview(bytes(1)) for _ in range(MAX_PIECES + 1)]
    for taken, given, logged in (
        ([], pieces[:2], [(4096, 2)]),
        ([1], pieces[:2], [(4096, 2)]),
        ([None], pieces, [(4096, MAX_PIECES), (4096 + MAX_PIECES, 1)]),
        ([None, None], pieces, [(4096, MAX_PIECES), (4096 + MAX_PIECES, 1)]),
    ):
        left = iter(taken)

        def write_some(fd: int, pieces: list[memoryview], offset: int, left: Iterator[int | None] = left) -> int:
            try:
                return whole(fd, pieces[: next(left)], offset)
            except StopIteration:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None

        image.log = deque()
        with monkeypatch.context() as inside:
            inside.setattr(os, "pwritev", write_some)
            refused = nullcontext() if len(taken) == 2 else pytest.raises(OSError, match=os.strerror(errno.ENOSPC))
            with refused:
                image.write(given, 4096)
        assert list(image.log) == logged, taken


def test_as_many_pieces_as_a_system_call_takes_go_in_one_and_one_more_in_two(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(name: str, call: Callable[..., int], *given: object) -> int:
        made.append(name)
        return call(*given)

    for name in ("preadv", "pwritev"):
        monkeypatch.setattr(os, name, partial(counted, name, getattr(os, name)))
    for count, calls in ((1, 1), (MAX_PIECES - 1, 1), (MAX_PIECES, 1), (MAX_PIECES + 1, 2), (2 * MAX_PIECES, 2)):
        data, buffer, now = bytes(place % 251 for place in range(count)), bytearray(count), bytearray(count)
        given, taken, taken_now = (
            [memoryview(each)[at : at + 1] for at in range(count)] for each in (data, buffer, now)
        )
        made.clear()
        image.write(given, 512)
        image.read(taken, 512)
        assert made == ["pwritev"] * calls + ["preadv"] * calls, count
        with nullcontext() if calls == 1 else pytest.raises(WouldBlock):
            image.try_read(taken_now, count, 512)
        assert bytes(buffer) == data, count
        assert bytes(now) == (data if calls == 1 else bytes(count)), count


@pytest.mark.pure
def test_zeros_that_have_to_be_written_end_where_they_are_to(image: Backing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block at a time, and what is left of the last."""
    block = 256
    monkeypatch.setattr(backing, "_ZEROS", bytes(block))
    monkeypatch.setattr(image, "_fallocate", lambda *_: False)
    for clear in (image.zero, image.discard):
        for size in (1, block - 1, block, block + 1, 2 * block, 2 * block + 100):
            for offset in (0, 100, block):
                write(image, 0, b"x" * 4096)
                clear(offset, size)
                expected = b"x" * offset + bytes(size) + b"x" * (4096 - offset - size)
                assert image.read_bytes(4096, 0) == expected, (clear, size, offset)


def test_a_mark_is_there_from_its_making_to_its_taking_away_and_both_may_be_done_twice(image: Backing) -> None:
    for on in (False, True, True, False, False):
        image.mark("one", on=on)
        assert image.is_marked("one") is on
        assert not image.is_marked("other")


@for_each_row([("zero", 2), ("discard", 1)])
def test_zeros_keep_their_place_and_what_is_discarded_gives_it_back(clear: str, left: int) -> None:
    """In memory, where holes can be punched whatever the disk can do."""
    image = Backing(Path("memory"), 2 * MIB, in_memory=True)
    write(image, 0, b"x" * 2 * MIB)
    getattr(image, clear)(0, MIB)
    assert os.fstat(image.readable_now[0]).st_blocks * 512 == left * MIB
    assert image.read_bytes(2 * MIB, 0) == bytes(MIB) + b"x" * MIB
    image.close()


def test_an_image_that_grows_while_it_is_copied_has_its_new_end_copied(image: Backing) -> None:
    image.log = deque()
    image.extend(2 * MIB)
    assert not image.log
    image.extend(3 * MIB)
    assert list(image.log) == [(3 * MIB - 1, 1)]
    assert image.length == 3 * MIB


def test_what_another_may_have_written_is_read_from_the_disk_once_the_image_is_taken_over(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *what: forgotten.append(what))
    image.take_over()
    image.hand_over()
    before = len(forgotten)
    image.take_over()
    assert forgotten[before:] == [(0, 0, os.POSIX_FADV_DONTNEED)], "all of it, whose length is 0 to the kernel"
    image.take_over()
    assert len(forgotten) == before + 1
