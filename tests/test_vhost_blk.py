"""The disk behind vhost-user: requests however they are cut, errors, what is kept, and who has the image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from tests.cases import for_each
from tests.vhost_frontend import FEATURES, PROTOCOL, Buffer, FrontEnd, P, Queue, R, V
from userdev.errors import UserError
from userdev_servers.blk import Blk, requests
from userdev_servers.blk.requests import MAX_SEGMENT, MAX_SEGMENTS
from userdev_servers.blk.spec import HEADER, SECTOR, SEGMENT, UNMAP, Feature, RequestType, Status
from userdev_servers.block.backing import WouldBlock
from userdev_servers.block.images import open_images
from vhost_user.backend import Server
from vhost_user.wire.payloads import Config

SIZE = 64 * SECTOR
DATA = os.urandom(2 * SECTOR)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[Blk]:
    disk = Blk(image=str(image), queues=2, serial="a disk")
    yield disk
    disk.close()


@pytest.fixture
def front_end(disk: Blk, tmp_path: Path) -> Iterator[FrontEnd]:
    with Server(disk, f"unix:{tmp_path}/s") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(FEATURES | V(int(Feature.FLUSH | Feature.MQ)), PROTOCOL | P.CONFIG)
        front_end.share_memory()
        yield front_end


@pytest.fixture
def ring(front_end: FrontEnd) -> Iterator[Queue]:
    ring = front_end.queue()
    ring.start()
    yield ring
    ring.close()


def header(kind: int, sector: int = 0) -> bytes:
    return HEADER.pack(kind, sector)


def request(ring: Queue, *buffers: Buffer) -> tuple[bytes, int]:
    """What was written for data, and the status; before it there was something else, as in any guest."""
    made = ring.put(*buffers)
    for place, buffer in zip(made.places, buffers, strict=True):
        if isinstance(buffer, int):
            ring.memory[place : place + buffer] = b"\xee" * buffer
    ring.kick()
    (done,) = ring.wait_used()
    assert done.data == done.writable, "the status is the last that is written, and written it all is"
    return done.writable[:-1], done.writable[-1]


@pytest.mark.parametrize(
    "cuts", [(2 * SECTOR, 1), (SECTOR, SECTOR, 1), (2 * SECTOR + 1,), (7, 2 * SECTOR - 7, 1), (2 * SECTOR - 1, 2)]
)
def test_blocks_are_read_however_the_request_is_cut(ring: Queue, image: Path, cuts: tuple[int, ...]) -> None:
    assert request(ring, header(RequestType.IN, 3), *cuts) == (image.read_bytes()[3 * SECTOR : 5 * SECTOR], Status.OK)


@pytest.mark.parametrize("cut", [0, 5, 16, 16 + SECTOR])
def test_blocks_are_written_however_the_request_is_cut(ring: Queue, image: Path, cut: int) -> None:
    whole = header(RequestType.OUT, 3) + DATA
    buffers = (whole[:cut], whole[cut:]) if cut else (whole,)
    assert request(ring, *buffers, 1) == (b"", Status.OK)
    assert image.read_bytes()[3 * SECTOR : 5 * SECTOR] == DATA


def test_a_flush_and_the_serial_number(ring: Queue) -> None:
    assert request(ring, header(RequestType.FLUSH), 1) == (b"", Status.OK)
    assert request(ring, header(RequestType.GET_ID), 20, 1) == (b"a disk".ljust(20, b"\0"), Status.OK)


@pytest.mark.parametrize("sizes", [(8, 12), (1, 1, 18), (30,), (3,), (2, 2), ()])
def test_the_serial_number_comes_in_whatever_pieces_there_are(ring: Queue, sizes: tuple[int, ...]) -> None:
    said, status = request(ring, header(RequestType.GET_ID), *sizes, 1)
    assert (said, status) == ((b"a disk".ljust(20, b"\0") + b"\xee" * 10)[: sum(sizes)], Status.OK)


def test_a_page_of_segments_is_cleared(ring: Queue) -> None:
    for kind in (RequestType.DISCARD, RequestType.WRITE_ZEROES):
        assert request(ring, header(kind), segment(0, 1) * MAX_SEGMENTS, 1) == (b"", Status.OK)


def segment(sector: int, sectors: int, flags: int = 0) -> bytes:
    return SEGMENT.pack(sector, sectors, flags)


IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = RequestType


@pytest.mark.parametrize(
    ("buffers", "status"),
    [
        # a header that is none
        ((b"short", 1), Status.IOERR),
        ((1,), Status.IOERR),
        ((header(4711), 1), Status.UNSUPP),
        ((header(14) + segment(0, 1), 1), Status.UNSUPP),
        # sectors that there are not, and data that is none
        ((header(IN, 63), 2 * SECTOR, 1), Status.IOERR),
        ((header(IN, 1 << 60), SECTOR, 1), Status.IOERR),
        ((header(IN, (1 << 64) - 1), SECTOR, 1), Status.IOERR),
        ((header(IN, 0), SECTOR - 1, 1), Status.IOERR),
        ((header(OUT, 64), DATA, 1), Status.IOERR),
        ((header(OUT, 0), DATA + b"x", 1), Status.IOERR),
        # data that goes the other way
        ((header(IN), DATA, 1), Status.IOERR),
        ((header(OUT), SECTOR, 1), Status.IOERR),
        ((header(OUT) + DATA, SECTOR + 1), Status.IOERR),
        # segments
        ((header(DISCARD), 1), Status.IOERR),
        ((header(DISCARD) + segment(0, 1)[:15], 1), Status.IOERR),
        ((header(DISCARD) + segment(0, 1) + b"x", 1), Status.IOERR),
        ((header(DISCARD), segment(0, 1) * (MAX_SEGMENTS + 1), 1), Status.IOERR),
        ((header(DISCARD), segment(0, 1), segment(63, 2), 1), Status.IOERR),
        ((header(DISCARD), segment((1 << 64) - 1, 1), 1), Status.IOERR),
        ((header(DISCARD), segment(0, MAX_SEGMENT + 1), 1), Status.IOERR),
        ((header(DISCARD), segment(0, 1, UNMAP), 1), Status.UNSUPP),
        ((header(DISCARD), segment(0, 1), segment(99, 1, 2), 1), Status.UNSUPP),
        ((header(ZEROES), segment(0, 1, 1 << 31), 1), Status.UNSUPP),
        ((header(ZEROES), segment(0, 65), 1), Status.IOERR),
    ],
)
def test_what_cannot_be_done_is_answered_and_changes_nothing(
    ring: Queue, image: Path, buffers: tuple[Buffer, ...], status: Status
) -> None:
    before = image.read_bytes()
    assert request(ring, *buffers)[1] == status
    assert image.read_bytes() == before
    assert request(ring, header(RequestType.FLUSH), 1)[1] == Status.OK


def test_a_request_without_a_status_breaks_the_ring_and_those_before_are_told(ring: Queue) -> None:
    ring.put(header(RequestType.FLUSH), 1)
    ring.put(header(RequestType.FLUSH))
    ring.kick()
    assert ring.wait_err()
    assert len(ring.wait_used()) == 1


def test_a_request_of_no_sectors_is_done(ring: Queue) -> None:
    assert request(ring, header(IN), 1) == (b"", Status.OK)
    assert request(ring, header(OUT), 1) == (b"", Status.OK)


@pytest.mark.parametrize(("kind", "flags"), [(DISCARD, 0), (ZEROES, 0), (ZEROES, UNMAP)])
def test_what_is_cleared_reads_as_zeros_in_all_segments_and_nowhere_else(
    ring: Queue, image: Path, kind: RequestType, flags: int
) -> None:
    before = image.read_bytes()
    segments = segment(1, 2, flags), segment(8, 16, flags)
    assert request(ring, header(kind), *segments, 1) == (b"", Status.OK)
    cleared = bytearray(before)
    for first, count in ((1, 2), (8, 16)):
        cleared[first * SECTOR : (first + count) * SECTOR] = bytes(count * SECTOR)
    assert image.read_bytes() == cleared


@pytest.mark.parametrize(("kind", "flags", "freed"), [(DISCARD, 0, True), (ZEROES, UNMAP, True), (ZEROES, 0, False)])
def test_a_place_on_the_disk_is_given_up_where_the_driver_lets(
    ring: Queue, image: Path, kind: RequestType, flags: int, freed: bool
) -> None:
    before = image.stat().st_blocks
    assert request(ring, header(kind), segment(0, 32, flags), 1)[1] == Status.OK
    assert (image.stat().st_blocks < before) is freed


def test_its_configuration_is_that_of_the_specifications_structure(front_end: FrontEnd) -> None:
    config = front_end.ask(R.GET_CONFIG, Config(0, 60, 0, bytes(60))).data
    assert int.from_bytes(config[:8], "little") == 64
    assert int.from_bytes(config[12:16], "little") == 126
    assert int.from_bytes(config[20:24], "little") == SECTOR
    assert config[24:32] == bytes([3, 0, 8, 0, 0, 0, 0, 0])  # pages of 4 KiB
    assert config[32] == 1
    assert int.from_bytes(config[34:36], "little") == 2
    limits = [int.from_bytes(config[at : at + 4], "little") for at in range(36, 56, 4)]
    assert limits == [MAX_SEGMENT, MAX_SEGMENTS, 8, MAX_SEGMENT, MAX_SEGMENTS]
    assert config[56:60] == b"\1\0\0\0"


@pytest.mark.pure
def test_a_failed_flush_is_never_forgotten(ring: Queue, disk: Blk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(5, "on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(disk.backing, "write_back", fail)
        assert request(ring, header(RequestType.FLUSH), 1)[1] == Status.IOERR
    assert request(ring, header(RequestType.FLUSH), 1)[1] == Status.IOERR


@pytest.mark.pure
def test_writes_are_kept_at_once_where_the_driver_does_not_flush(
    front_end: FrontEnd, disk: Blk, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(disk.backing, "write_back", lambda: kept.append(True))
    ring = front_end.queue()
    ring.start()
    request(ring, header(RequestType.OUT) + DATA, 1)
    assert not kept
    front_end.do(R.SET_CONFIG, Config(32, 1, 0, b"\0"))
    count = len(kept)
    request(ring, header(RequestType.OUT) + DATA, 1)
    assert len(kept) == count + 1
    front_end.do(R.SET_CONFIG, Config(32, 1, 0, b"\1"))
    ring.stop()
    front_end.do(R.SET_FEATURES, int(FEATURES))
    ring.start()
    count = len(kept)
    request(ring, header(RequestType.OUT) + DATA, 1)
    assert len(kept) == count + 1


def test_a_driver_that_chooses_its_cache_and_never_flushes_begins_with_none(front_end: FrontEnd, disk: Blk) -> None:
    front_end.do(R.SET_FEATURES, int(FEATURES | V(int(Feature.CONFIG_WCE))))
    assert front_end.ask(R.GET_CONFIG, Config(32, 1, 0, bytes(1))).data == b"\0"
    front_end.do(R.SET_CONFIG, Config(32, 1, 0, b"\1"))
    assert disk.disk.write_back
    for _ in range(2):  # as QEMU says them, at each start
        front_end.do(R.SET_FEATURES, int(FEATURES | V(int(Feature.CONFIG_WCE))))
        assert (disk.writeback, disk.disk.write_back) == (1, True)
    front_end.send(R.RESET_DEVICE)
    front_end.do(R.SET_FEATURES, int(FEATURES))
    assert not disk.disk.write_back


# -- waiting for the disk


@pytest.mark.pure
@pytest.mark.parametrize(
    ("kind", "held", "buffers"),
    [
        (FLUSH, "sync", (1,)),
        (DISCARD, "discard", (segment(0, 8), 1)),
        (ZEROES, "zero", (segment(0, 8), 1)),
        (OUT, "write", (DATA, 1)),
        (IN, "read", (2 * SECTOR, 1)),
    ],
)
def test_what_waits_for_the_disk_holds_nothing_else(
    ring: Queue, disk: Blk, monkeypatch: pytest.MonkeyPatch, kind: RequestType, held: str, buffers: tuple[Buffer]
) -> None:
    monkeypatch.setattr(requests, "SLOW_SECONDS", -1.0)
    go_on, done = Event(), getattr(disk.backing, held)
    assert request(ring, header(OUT), DATA, 1)[1] == Status.OK  # which was slow, as it finds out
    if kind is IN:
        monkeypatch.setattr(disk.backing, "try_read", _miss)

    def wait(*arguments: object) -> None:
        assert go_on.wait(10)
        done(*arguments)

    monkeypatch.setattr(disk.backing, held, wait)
    ring.put(header(kind), *buffers)
    ring.kick()
    assert request(ring, header(GET_ID), 20, 1)[1] == Status.OK
    assert ring.outstanding == 1
    go_on.set()
    assert len(ring.wait_used()) == 1


def _miss(*_: object) -> None:
    raise WouldBlock


def test_an_image_in_memory_is_read_at_once_though_its_file_system_cannot_be_asked_not_to_wait() -> None:
    (backing,) = open_images("memory:64K", SECTOR)
    backing.write([memoryview(DATA)], SECTOR)
    found = bytearray(len(DATA))
    backing.try_read([memoryview(found)], len(found), SECTOR)
    assert found == DATA
    backing.close()


# -- bad days of an image


def test_an_image_that_is_cut_fails_what_is_gone_and_every_flush(ring: Queue, image: Path) -> None:
    os.truncate(image, 8 * SECTOR)
    assert request(ring, header(IN, 0), SECTOR, 1)[1] == Status.OK
    assert request(ring, header(IN, 32), SECTOR, 1)[1] == Status.IOERR
    assert request(ring, header(OUT, 0), DATA, 1)[1] == Status.IOERR
    os.truncate(image, SIZE)
    assert request(ring, header(IN, 32), SECTOR, 1)[1] == Status.IOERR
    assert request(ring, header(FLUSH), 1)[1] == Status.IOERR
    assert request(ring, header(GET_ID), 20, 1)[1] == Status.OK


def test_a_full_disk_is_told_and_people_are_told_once_of_each_front_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """/dev/full reads zeros and has no room for anything."""
    with Blk_of(Path("/dev/full:1M")) as disk, Server(disk, f"unix:{tmp_path}/f") as server:
        for told in (1, 2):
            with FrontEnd(str(server.listener.address)) as front_end:
                front_end.negotiate(FEATURES | V(int(Feature.FLUSH)))
                front_end.share_memory()
                ring = front_end.queue()
                ring.start()
                for _ in range(3):
                    assert request(ring, header(OUT), DATA, 1)[1] == Status.IOERR
                assert request(ring, header(IN), SECTOR, 1) == (bytes(SECTOR), Status.OK)
                ring.stop()
                ring.close()
            assert caplog.text.count("No space left") == told


# -- another size


# -- who has the image


def test_the_image_is_handed_over_when_the_last_queue_stops(front_end: FrontEnd, disk: Blk, image: Path) -> None:
    one, two = front_end.queue(0), front_end.queue(1)
    one.start()
    two.start()
    with Blk_of(image) as other:
        one.stop()
        with pytest.raises(OSError, match="in use"):
            other.on_start(0)
        two.stop()
        other.on_start(0)
        assert other.backing.lock.held
        one.start()
        assert one.wait_err()  # it is the other's now
        other.on_stop(0)
    one.stop()
    one.start()
    assert request(one, header(RequestType.FLUSH), 1)[1] == Status.OK


class Blk_of:
    """A disk of this image, until the end of the block."""

    def __init__(self, image: Path) -> None:
        self.disk = Blk(image=str(image))

    def __enter__(self) -> Blk:
        return self.disk

    def __exit__(self, *_: object) -> None:
        self.disk.close()


def test_a_read_only_image_is_offered_as_one_and_not_written(image: Path, tmp_path: Path) -> None:
    with (
        Blk_of(Path(f"{image}:ro")) as disk,
        Server(disk, f"unix:{tmp_path}/r") as server,
        FrontEnd(str(server.listener.address)) as front_end,
    ):
        front_end.negotiate(FEATURES | V(int(Feature.RO | Feature.FLUSH)))
        assert front_end.negotiated.features & Feature.RO
        front_end.share_memory()
        ring = front_end.queue()
        ring.start()
        assert request(ring, header(RequestType.OUT) + DATA, 1)[1] == Status.IOERR
        assert request(ring, header(RequestType.IN), SECTOR, 1)[1] == Status.OK


@for_each(["", "memory:64K,memory:64K", "/nowhere/at/all", "memory:100"])
def test_an_image_that_cannot_be_had_is_told_in_words(image: str) -> None:
    with pytest.raises(UserError):
        Blk(image=image)
