"""The disk behind vhost-user: requests however they are cut, errors, what is kept, and who has the image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vhost_frontend import FEATURES, PROTOCOL, Buffer, DriverQueue, FrontEnd, P, R, V
from userdev.errors import UserError
from userdev_servers.blk import HEADER, SECTOR, Blk, Feature, RequestType, Status
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
def ring(front_end: FrontEnd) -> Iterator[DriverQueue]:
    ring = front_end.queue()
    ring.start()
    yield ring
    ring.close()


def header(kind: int, sector: int = 0) -> bytes:
    return HEADER.pack(kind, sector)


def request(ring: DriverQueue, *buffers: Buffer) -> tuple[bytes, int]:
    """What was written for data, and the status."""
    places = ring.put(*buffers)
    ring.kick()
    ring.wait_used()
    memory = ring.front_end.memory
    written = b"".join(
        memory[at : at + buffer] for at, buffer in zip(places, buffers, strict=True) if isinstance(buffer, int)
    )
    return written[:-1], written[-1]


@pytest.mark.parametrize("cuts", [(2 * SECTOR, 1), (SECTOR, SECTOR, 1), (2 * SECTOR + 1,), (7, 2 * SECTOR - 7, 1)])
def test_blocks_are_read_however_the_request_is_cut(ring: DriverQueue, image: Path, cuts: tuple[int, ...]) -> None:
    assert request(ring, header(RequestType.IN, 3), *cuts) == (image.read_bytes()[3 * SECTOR : 5 * SECTOR], Status.OK)


@pytest.mark.parametrize("cut", [0, 5, 16, 16 + SECTOR])
def test_blocks_are_written_however_the_request_is_cut(ring: DriverQueue, image: Path, cut: int) -> None:
    whole = header(RequestType.OUT, 3) + DATA
    buffers = (whole[:cut], whole[cut:]) if cut else (whole,)
    assert request(ring, *buffers, 1) == (b"", Status.OK)
    assert image.read_bytes()[3 * SECTOR : 5 * SECTOR] == DATA


def test_a_flush_and_the_serial_number(ring: DriverQueue) -> None:
    assert request(ring, header(RequestType.FLUSH), 1) == (b"", Status.OK)
    assert request(ring, header(RequestType.GET_ID), 20, 1) == (b"a disk".ljust(20, b"\0"), Status.OK)


@pytest.mark.parametrize(
    ("buffers", "status"),
    [
        ((header(RequestType.IN, 63), 2 * SECTOR, 1), Status.IOERR),
        ((header(RequestType.IN, 1 << 60), SECTOR, 1), Status.IOERR),
        ((header(RequestType.IN, 0), SECTOR - 1, 1), Status.IOERR),
        ((header(RequestType.OUT, 64), DATA, 1), Status.IOERR),
        ((header(4711), 1), Status.UNSUPP),
    ],
)
def test_what_cannot_be_done_is_answered_and_changes_nothing(
    ring: DriverQueue, image: Path, buffers: tuple[Buffer, ...], status: Status
) -> None:
    before = image.read_bytes()
    assert request(ring, *buffers)[1] == status
    assert image.read_bytes() == before
    assert request(ring, header(RequestType.FLUSH), 1)[1] == Status.OK


@pytest.mark.parametrize("buffers", [(b"short", 1), (header(RequestType.FLUSH),)])
def test_what_is_no_request_breaks_the_ring_and_those_before_are_told(
    ring: DriverQueue, buffers: tuple[Buffer, ...]
) -> None:
    ring.put(header(RequestType.FLUSH), 1)
    ring.put(*buffers)
    ring.kick()
    assert ring.wait_err()
    assert len(ring.wait_used()) == 1


def test_its_configuration_is_that_of_the_specifications_structure(front_end: FrontEnd) -> None:
    config = front_end.ask(R.GET_CONFIG, Config(0, 60, 0, bytes(60))).data
    assert int.from_bytes(config[:8], "little") == 64
    assert int.from_bytes(config[12:16], "little") == 126
    assert int.from_bytes(config[20:24], "little") == SECTOR
    assert config[32] == 1
    assert int.from_bytes(config[34:36], "little") == 2


def test_a_failed_flush_is_never_forgotten(ring: DriverQueue, disk: Blk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(5, "on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(disk.backing, "write_back", fail)
        assert request(ring, header(RequestType.FLUSH), 1)[1] == Status.IOERR
    assert request(ring, header(RequestType.FLUSH), 1)[1] == Status.IOERR


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
    ring.start(ring.used_index)
    count = len(kept)
    request(ring, header(RequestType.OUT) + DATA, 1)
    assert len(kept) == count + 1


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
        one.start(one.used_index)
        assert one.wait_err()  # it is the other's now
        other.on_stop(0)
    one.stop()
    one.start(one.used_index)
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


@pytest.mark.parametrize("image", ["", "memory:64K,memory:64K", "/nowhere/at/all", "memory:100"])
def test_an_image_that_cannot_be_had_is_told_in_words(image: str) -> None:
    with pytest.raises(UserError):
        Blk(image=image)
