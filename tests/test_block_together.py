"""Large reads that come together: copied by the kernel's thread of io_uring, or here where that does not do them."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import signal
import textwrap
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import PATIENCE
from tests.descriptors import fd_count
from tests.test_vhost_program import serving
from tests.vhost_frontend import FEATURES, FrontEnd, Queue, R
from userdev_servers.blk import Blk
from userdev_servers.blk.spec import HEADER, SECTOR, RequestType, Status
from userdev_servers.block import together
from userdev_servers.block.backing import Backing, WouldBlock
from userdev_servers.block.images import open_images
from userdev_servers.block.together import FEW, LARGE, PATIENCE_NS, Read
from userdev_servers.block.uring import Completion, Uring
from vhost_user.backend import Server

COUNT = 8
"""Large blocks of the image."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(COUNT * LARGE))
    return path


@pytest.fixture
def backing(image: Path) -> Iterator[Backing]:
    (backing,) = open_images(str(image), SECTOR)
    backing.read([memoryview(bytearray(COUNT * LARGE))], 0)
    yield backing
    backing.close()


def memory(size: int) -> memoryview:
    return memoryview(mmap.mmap(-1, size))


def begin(backing: Backing, *blocks: int) -> list[tuple[Read, memoryview]]:
    into = [memory(LARGE) for _ in blocks]
    return [
        (backing.together.begin([piece], LARGE, block * LARGE), piece)
        for block, piece in zip(blocks, into, strict=True)
    ]


class Scripted:
    """In place of io_uring: gives each read the next of the results that it was told, once it has been waited for."""

    def __init__(self, *results: int, at_once: bool = True) -> None:
        self.results = list(results)
        self.at_once = at_once
        self.given: list[int] = []
        self.waits = 0

    def __call__(self, entries: int) -> Scripted:
        return self

    def read(self, fd: int, pieces: Sequence[memoryview], offset: int, flags: int, tag: int) -> None:
        assert flags == os.RWF_NOWAIT
        self.given.append(tag)

    def ended(self) -> list[Completion]:
        if not self.at_once and not self.waits:
            return []
        given, self.given = self.given, []
        return [Completion(tag, self.results.pop(0)) for tag in given]

    def wait(self) -> None:
        self.waits += 1

    def close(self) -> None:
        assert not self.given


class Reading(Scripted):
    """Reads at once, as the kernel's thread may."""

    def read(self, fd: int, pieces: Sequence[memoryview], offset: int, flags: int, tag: int) -> None:
        super().read(fd, pieces, offset, flags, tag)
        self.results.append(os.preadv(fd, pieces, offset))


def test_nothing_is_read_into_memory_whose_read_has_ended(
    backing: Backing, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is somebody else's by then, whatever is begun and ended in whatever order."""
    monkeypatch.setattr(together, "Uring", Reading())
    backing.together._is_possible = True
    data, drawn, another = image.read_bytes(), random.Random(7), b"\xa5" * 16
    under_way: list[tuple[int, Read, memoryview]] = []
    ended: list[memoryview] = []
    for step in range(60):
        if drawn.random() < 0.5 or not under_way:
            block = drawn.randrange(COUNT)
            ((read, into),) = begin(backing, block)
            under_way.append((block, read, into))
        else:
            block, read, into = under_way.pop(drawn.randrange(len(under_way)))
            read.end()
            assert into == data[block * LARGE : (block + 1) * LARGE], step
            into[:16] = another
            ended.append(into)
        assert all(each[:16] == another for each in ended), step
    for _, read, _into in under_way:
        read.end()
    backing.together.close()


def test_the_kernels_thread_reads_into_one_piece_or_several_and_tells_what_it_cannot(image: Path) -> None:
    data = image.read_bytes()
    one, few = memory(LARGE), [memory(5), memory(LARGE - 5)]
    with image.open("rb") as file:
        uring = Uring(4)
        uring.read(file.fileno(), [one], LARGE, 0, 1)
        uring.read(file.fileno(), few, 2 * LARGE, 0, 2)
        uring.read(file.fileno(), [memory(LARGE)], COUNT * LARGE - 7, 0, 3)
        assert uring.outstanding == 3
        uring.wait()
        assert sorted(uring.ended()) == [(1, LARGE), (2, LARGE), (3, 7)]
        for turn in range(10):  # the rings are used again and again
            uring.read(file.fileno(), [one], turn % COUNT * LARGE, 0, turn)
            uring.wait()
            assert uring.ended() == [(turn, LARGE)]
        uring.read(-1, [one], 0, 0, 7)
        uring.wait()
        assert uring.ended() == [(7, -errno.EBADF)]
        uring.close()
    assert one == data[LARGE : 2 * LARGE]
    assert b"".join(few) == data[2 * LARGE : 3 * LARGE]


def test_the_kernels_thread_is_woken_for_a_read_that_comes_while_it_sleeps(image: Path) -> None:
    uring, deadline = Uring(1, idle_ms=1), time.monotonic() + PATIENCE
    with image.open("rb") as file:
        while not uring._flags[0] & 1:  # IORING_SQ_NEED_WAKEUP
            assert time.monotonic() < deadline
            os.sched_yield()
        uring.read(file.fileno(), [memory(LARGE)], 0, 0, 1)
        while not (ended := uring.ended()):
            assert time.monotonic() < deadline, "nobody else wakes it"
            os.sched_yield()
        assert ended == [(1, LARGE)]
        uring.close()


def test_rings_of_an_older_kernel_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fd_count()
    monkeypatch.setattr("userdev_servers.block.uring._NEEDED", 1 << 31)
    with pytest.raises(OSError, match="older"):
        Uring(1)
    assert fd_count() == before


def test_whoever_waits_sleeps_until_all_have_ended_and_again_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def enter(number: int, *arguments: int) -> int:
        asked.append(arguments)
        if len(asked) == 1:
            raise InterruptedError
        waiting.clear()
        return 0

    ring = Uring(2)
    waiting = ring._held
    with monkeypatch.context() as patch:
        patch.setattr("userdev_servers.block.uring._call", enter)
        waiting.update({1: None, 2: None})
        ring.wait()
        assert len(asked) == 2, "who is interrupted waits on"
        ring.wait()
    assert [counts for _fd, *counts in asked] == [[0, 2, 1 | 2]] * 2  # IORING_ENTER_GETEVENTS, IORING_ENTER_SQ_WAKEUP
    ring.close()


def test_the_kernel_is_done_with_all_memory_before_its_thread_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    ring, close = Uring(2), os.close
    with monkeypatch.context() as patch:
        patch.setattr(ring, "wait", lambda: done.append("waited"))
        patch.setattr(os, "close", lambda fd: done.append("closed") or close(fd))  # type: ignore[func-returns-value]
        ring.close()
    assert done == ["waited", "closed"]


def test_what_is_read_is_held_until_its_end_is_told(image: Path) -> None:
    area = mmap.mmap(-1, LARGE)
    with image.open("rb") as file:
        uring = Uring(1)
        uring.read(file.fileno(), [memoryview(area)], 0, 0, 1)
        uring.wait()
        with pytest.raises(BufferError):
            area.close()
        uring.ended()
        area.close()
        uring.close()


def test_one_alone_is_read_where_it_is_and_several_by_the_kernels_thread(
    backing: Backing, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image.read_bytes()
    made: list[Uring] = []

    def make(entries: int) -> Uring:
        made.append(Uring(entries))
        return made[-1]

    monkeypatch.setattr(together, "Uring", make)
    for blocks, threads in (((3,), 0), ((1, 2), 1), ((5, 4, 5, 0, 7), 1), ((6,), 1)):
        reads = begin(backing, *blocks)
        for read, _ in reads:
            read.end()
        assert [bytes(piece) for _, piece in reads] == [data[at * LARGE : (at + 1) * LARGE] for at in blocks]
        assert len(made) == threads


@pytest.mark.parametrize("result", [LARGE - 1, 0, -errno.EIO, -errno.EAGAIN, -errno.EOPNOTSUPP, -errno.EFAULT])
def test_what_the_kernels_thread_has_not_read_whole_is_read_again(
    backing: Backing, image: Path, monkeypatch: pytest.MonkeyPatch, result: int
) -> None:
    monkeypatch.setattr(together, "Uring", Scripted(LARGE, result))
    (one, untouched), (other, piece) = begin(backing, 1, 2)
    one.end()
    other.end()
    assert not any(untouched)
    assert piece == image.read_bytes()[2 * LARGE : 3 * LARGE]


@pytest.mark.parametrize(
    ("error", "told"), [(WouldBlock(), WouldBlock), (OSError(errno.EIO, "Input/output error"), OSError)]
)
def test_the_error_of_a_read_is_told_where_it_ends(
    backing: Backing, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(together, "Uring", Scripted(LARGE, -errno.EIO))
    monkeypatch.setattr(backing, "try_read", fail)
    (one, _), (other, _) = begin(backing, 1, 2)
    one.end()
    with pytest.raises(told):
        other.end()


def test_a_thread_that_has_no_core_is_waited_for_once_and_then_left_alone(
    backing: Backing, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uring = Scripted(LARGE, LARGE, LARGE, LARGE, at_once=False)
    now = count(step=PATIENCE_NS // 4)
    monkeypatch.setattr(together, "Uring", uring)
    monkeypatch.setattr(together, "perf_counter_ns", lambda: next(now))
    for read, _ in begin(backing, 1, 2):
        read.end()
    assert uring.waits == 1
    reads = begin(backing, 3, 4)
    for read, _ in reads:
        read.end()
    assert not uring.given
    assert [bytes(piece) for _, piece in reads] == [image.read_bytes()[at * LARGE : (at + 1) * LARGE] for at in (3, 4)]
    now = count(10 * together.REST * PATIENCE_NS)
    begun = begin(backing, 3, 4)
    assert len(uring.given) == 2
    for read, _ in begun:
        read.end()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.ENOMEM])
def test_where_io_uring_is_not_to_be_had_reads_are_right_and_that_is_said_once(
    backing: Backing, image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(_: int) -> Uring:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(together, "Uring", refuse)
    with caplog.at_level(logging.INFO):
        for blocks in ((1, 2), (3, 4)):
            reads = begin(backing, *blocks)
            for read, _ in reads:
                read.end()
            assert [bytes(piece) for _, piece in reads] == [
                image.read_bytes()[at * LARGE : (at + 1) * LARGE] for at in blocks
            ]
    assert [record.message.count(os.strerror(number)) for record in caplog.records] == [1]


def test_the_kernels_thread_is_given_no_more_than_its_rings_hold(
    backing: Backing, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "AT_ONCE", 4)
    monkeypatch.setattr(together, "Uring", uring := Reading())
    backing.together._is_possible = True
    for _ in range(2):
        reads = begin(backing, *range(COUNT))
        assert 2 <= len(uring.given) <= 4
        for read, _piece in reads:
            read.end()
        assert b"".join(piece for _, piece in reads) == image.read_bytes()


def test_small_reads_those_in_many_pieces_and_those_that_could_wait_are_not_for_it(backing: Backing) -> None:
    takes = backing.together.takes
    assert takes([memory(LARGE)], LARGE)
    assert not takes([memory(LARGE - 1)], LARGE - 1)
    assert not takes([memory(SECTOR)] * (FEW + 1), LARGE)
    (elsewhere,) = open_images("memory:1M", SECTOR)
    into = memory(LARGE)
    elsewhere.try_read([into], LARGE, 0)  # finds out that it cannot be asked not to wait
    assert not elsewhere.together.takes([into], LARGE)
    elsewhere.close()


# -- behind vhost-user


def put(ring: Queue, *blocks: int) -> None:
    for block in blocks:
        ring.put(HEADER.pack(RequestType.IN, block * LARGE // SECTOR), LARGE, 1)
    ring.kick()


def expected(image: Path, *blocks: int) -> list[bytes]:
    return sorted(image.read_bytes()[at * LARGE : (at + 1) * LARGE] + bytes([Status.OK]) for at in blocks)


@pytest.fixture
def front_end(image: Path, tmp_path: Path) -> Iterator[FrontEnd]:
    disk = Blk(image=str(image))
    with Server(disk, f"unix:{tmp_path}/s") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(FEATURES)
        front_end.share_memory()
        yield front_end
    disk.close()


def test_a_driver_that_has_many_outstanding_gets_what_it_asked_for(front_end: FrontEnd, image: Path) -> None:
    ring = front_end.queue()
    ring.start()
    for turn in range(20):
        blocks = [(turn * 3 + number) % COUNT for number in range(COUNT)]
        put(ring, *blocks)
        assert sorted(done.data for done in ring.wait_used(COUNT)) == expected(image, *blocks)
    ring.close()


def test_one_that_misses_the_page_cache_waits_beside_the_session(
    front_end: FrontEnd, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "Uring", Scripted(*[-errno.EAGAIN] * COUNT))
    monkeypatch.setattr(Backing, "try_read", _miss)
    ring = front_end.queue()
    put(ring, *range(COUNT))
    ring.start()
    assert sorted(done.data for done in ring.wait_used(COUNT)) == expected(image, *range(COUNT))
    ring.close()


def _miss(*_: object) -> None:
    raise WouldBlock


def test_an_image_that_was_cut_fails_those_that_are_gone_alone(front_end: FrontEnd, image: Path) -> None:
    os.truncate(image, 2 * LARGE)
    ring = front_end.queue()
    put(ring, 0, 1, 2, 3)
    ring.start()
    statuses = sorted(done.data[-1] for done in ring.wait_used(4))
    assert statuses == [Status.OK, Status.OK, Status.IOERR, Status.IOERR]
    ring.close()


def test_another_session_of_the_same_server_goes_on_with_it(image: Path, tmp_path: Path) -> None:
    disk = Blk(image=str(image))
    with Server(disk, f"unix:{tmp_path}/s") as server:
        for _ in range(3):
            with FrontEnd(str(server.listener.address)) as front_end:
                front_end.negotiate(FEATURES)
                front_end.share_memory()
                ring = front_end.queue()
                put(ring, 0, 1, 2)
                ring.start()
                assert sorted(done.data for done in ring.wait_used(3)) == expected(image, 0, 1, 2)
                ring.close()
    disk.close()


DEADLY = '''
import os, signal
from pathlib import Path

from userdev_servers.blk import Blk
from vhost_user.device import Chain, Taken, queue

HERE = Path(__file__).parent


class Deadly(Blk):
    """Dies once, with four reads under way."""

    taken = 0

    @queue()
    def serve(self, chain: Chain) -> Taken:
        done = super().serve(chain)
        self.taken += 1
        if self.taken == 4 and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return done
'''


def test_reads_that_were_under_way_at_sigkill_are_done_by_the_next(tmp_path: Path, image: Path) -> None:
    (tmp_path / "deadly.py").write_text(textwrap.dedent(DEADLY))
    device = (f"{tmp_path}/deadly.py:Deadly", "--image", str(image))
    with serving(tmp_path, *device) as (program, address), FrontEnd(address) as front_end:
        front_end.negotiate(FEATURES)
        front_end.share_memory()
        inflight = front_end.ask_inflight()
        front_end.set_inflight(inflight)
        ring = front_end.queue()
        ring.start()
        put(ring, *range(COUNT))
        assert program.wait(15) == -signal.SIGKILL
        with serving(tmp_path, *device) as (_, other):
            front_end.reconnect(other)
            front_end.negotiate(FEATURES)
            front_end.share_memory()
            front_end.set_inflight(inflight)
            ring.start()
            assert sorted(done.data for done in ring.wait_used(COUNT)) == expected(image, *range(COUNT))
            assert ring.stop() == COUNT
            assert front_end.ask(R.GET_QUEUE_NUM)
