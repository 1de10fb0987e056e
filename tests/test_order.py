"""Where order is the promise: what was written is on the disk before that is told, and in memory before it is marked.

A spy sees the system calls as they are made, and what everybody else could see at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.nvme_kit import CC, CSTS, Host, controller
from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, Queue, R, V, split
from userdev.interposer.holding import Holding
from userdev.interposer.passing import Passing
from userdev.relay.backlog import Backlog
from userdev.relay.direction import Direction
from userdev.relay.loop import Task
from userdev_servers.blk import Blk
from userdev_servers.blk.spec import HEADER, SECTOR, SEGMENT, Feature, RequestType
from userdev_servers.block.backing import Backing
from userdev_servers.nvme.spec import Feature as NvmeFeature
from userdev_servers.nvme.spec import Io
from vfio_user.device import Dma
from vfio_user.migration.dirty_log import DirtyPages
from vfio_user.testing import RecordingLink, memory_file
from vfio_user.wire import Message
from vhost_user.backend import Server
from vhost_user.wire.payloads import Config

DATA = bytes(range(1, 129)) * 4
BEFORE = b"\xee" * SECTOR
PAGE = 4096


class Disk:
    """An image, and what was in it whenever it was brought to the disk."""

    def __init__(self, path: Path, told: Callable[[], bool]) -> None:
        """`told` says whether the guest knows of the end of its request."""
        self.path = path
        self.told = told
        self.synced: list[bytes] = []
        self.kept = Event()
        self.too_early = 0

    def fdatasync(self, fd: int) -> None:
        self.synced.append(self.path.read_bytes()[:SECTOR])
        self.too_early += self.told()
        self.kept.set()


@contextmanager
def spied(path: Path, told: Callable[[], bool]) -> Iterator[Disk]:
    disk = Disk(path, told)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fdatasync", disk.fdatasync)
        yield disk


# A disk behind vhost-user

KINDS: Mapping[str, tuple[RequestType, tuple[Any, ...], bytes]] = {
    "write": (RequestType.OUT, (DATA, 1), DATA),
    "discard": (RequestType.DISCARD, (SEGMENT.pack(0, 1, 0), 1), bytes(SECTOR)),
    "zeroes": (RequestType.WRITE_ZEROES, (SEGMENT.pack(0, 1, 0), 1), bytes(SECTOR)),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(BEFORE * 64)
    return path


@contextmanager
def vhost(image: Path, folder: Path, features: V) -> Iterator[Queue]:
    disk = Blk(image=str(image))
    try:
        with Server(disk, f"unix:{folder}/s") as server, FrontEnd(str(server.listener.address)) as front_end:
            front_end.negotiate(FEATURES | features, PROTOCOL | P.CONFIG)
            front_end.share_memory()
            ring = front_end.queue()
            ring.start()
            yield ring
            ring.close()
    finally:
        disk.close()


def do(ring: Queue, kind: RequestType, *buffers: Any) -> None:
    """One request, which is done."""
    assert ring.exchange(HEADER.pack(kind, 0), *buffers).writable[-1] == 0


def is_told_of(ring: Queue, number: int) -> Callable[[], bool]:
    """Whether the driver could know that so many requests have ended."""
    return lambda: split(ring).used_index >= number


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_to_be_kept_is_on_the_disk_before_the_driver_is_told(image: Path, tmp_path: Path, kind: str) -> None:
    """Where the driver does not flush."""
    request, buffers, left = KINDS[kind]
    with vhost(image, tmp_path, V(0)) as ring, spied(image, is_told_of(ring, 1)) as disk:
        do(ring, request, *buffers)
        assert disk.synced == [left]
        assert not disk.too_early


@pytest.mark.parametrize("kind", KINDS)
def test_a_flush_brings_what_was_written_before_it(image: Path, tmp_path: Path, kind: str) -> None:
    request, buffers, left = KINDS[kind]
    with vhost(image, tmp_path, V(int(Feature.FLUSH))) as ring, spied(image, is_told_of(ring, 2)) as disk:
        do(ring, request, *buffers)
        assert disk.synced == []
        do(ring, RequestType.FLUSH, 1)
        assert disk.synced == [left]
        assert not disk.too_early


def test_an_image_is_on_the_disk_before_it_is_given_away(image: Path, tmp_path: Path) -> None:
    order: list[str] = []
    release = Backing.hand_over

    def hand_over(backing: Backing) -> None:
        order.append("hand over")
        release(backing)

    with vhost(image, tmp_path, V(int(Feature.FLUSH))) as ring, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fdatasync", lambda fd: order.append("sync"))
        monkeypatch.setattr(Backing, "hand_over", hand_over)
        do(ring, RequestType.OUT, DATA, 1)
        ring.stop()
        assert order == ["sync", "hand over"]


def chooses_write_through(ring: Queue) -> None:
    ring.connection.do(R.SET_CONFIG, Config(32, 1, 0, b"\0"))


def stops_its_last_queue(ring: Queue) -> None:
    ring.stop()


def leaves(ring: Queue) -> None:
    ring.connection.close()


def resets(ring: Queue) -> None:
    ring.connection.do(R.RESET_DEVICE)


@for_each((chooses_write_through, stops_its_last_queue, leaves, resets))
def test_what_was_acknowledged_is_on_the_disk_once_its_driver(does: Callable[[Queue], None]) -> None:
    """Where the driver flushes, and did not before."""
    with TemporaryDirectory() as name:
        image = Path(name) / "image"
        image.write_bytes(BEFORE * 64)
        features = V(int(Feature.FLUSH | Feature.CONFIG_WCE))
        with vhost(image, Path(name), features) as ring, spied(image, lambda: False) as disk:
            do(ring, RequestType.OUT, DATA, 1)
            assert disk.synced == []
            does(ring)
            assert disk.kept.wait(10)
            assert disk.synced == [DATA]


# An NVMe controller

FUA, DEALLOCATE = 1 << 30, 1 << 25


def write(host: Host, **fields: int) -> int:
    return host.write_blocks(0, DATA, **fields).status


def without_a_cache(host: Host) -> None:
    host.admin.do(9, cdw10=NvmeFeature.VOLATILE_WRITE_CACHE, cdw11=0)


def deallocate(host: Host) -> int:
    at = host.allocate(PAGE)
    host.write(at, pack("<IIQ", 0, 1, 0))
    return host.queues[1].do(Io.DATASET_MANAGEMENT, nsid=1, prp1=at, cdw10=0, cdw11=4).status


def zero(host: Host) -> int:
    return host.queues[1].do(Io.WRITE_ZEROES, nsid=1).status


def in_order(host: Host, *steps: Callable[[Host], object]) -> None:
    for step in steps:
        step(host)


def flush(host: Host) -> int:
    return host.queues[1].do(Io.FLUSH, nsid=1).status


def shut_down(host: Host) -> None:
    host.store(CC, 4, 0x00460001 | 1 << 14)
    host.until(lambda: host.load(CSTS) >> 2 & 3 == 2)


KEPT: Mapping[str, tuple[Callable[[Host], object], bytes]] = {
    "a write that is forced": (lambda host: write(host, control=FUA), DATA),
    "a write without a cache": (lambda host: in_order(host, without_a_cache, write), DATA),
    "zeroes without a cache": (lambda host: in_order(host, write, without_a_cache, zero), bytes(SECTOR)),
    "a hole without a cache": (lambda host: in_order(host, write, without_a_cache, deallocate), bytes(SECTOR)),
    "zeroes that are forced": (lambda host: host.queues[1].do(Io.WRITE_ZEROES, nsid=1, cdw12=FUA), bytes(SECTOR)),
    "a hole that is forced": (
        lambda host: host.queues[1].do(Io.WRITE_ZEROES, nsid=1, cdw12=FUA | DEALLOCATE),
        bytes(SECTOR),
    ),
    "a flush": (lambda host: in_order(host, write, flush), DATA),
    "a shutdown": (lambda host: in_order(host, write, shut_down), DATA),
    "a format": (lambda host: host.admin.do(0x80, nsid=1, cdw10=0), bytes(SECTOR)),
}


@pytest.mark.parametrize("kept", KEPT)
def test_what_a_controller_promises_is_on_the_disk_before_it_says_so(image: Path, tmp_path: Path, kept: str) -> None:
    act, left = KEPT[kept]
    with controller(tmp_path, image=str(image)) as (_, host):
        host.enable()
        queue = host.create_queues()

        def told() -> bool:
            """Of the command that waits: a write that was told before it is none of them."""
            return any(host.read(each.cq + 16 * each.head + 14, 2)[0] & 1 == each.phase for each in (queue, host.admin))

        with spied(image, told) as disk:
            act(host)
            assert disk.synced
            assert disk.synced[-1] == left
            assert not disk.too_early


# Pages that a device writes: marked when there is something to see


WAYS = [(mode, how) for mode in ("mapped", "file", "message") for how in ("write", "write again", "over a border")]


@for_each_row([*WAYS, ("mapped", "views"), ("mapped", "gather")])
def test_a_page_is_marked_when_what_is_written_can_be_seen(
    mode: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes the mark before it sees nothing of it, and does not look again."""
    fd, link = memory_file(2 * PAGE), RecordingLink(memory=bytearray(2 * PAGE))
    dma = Dma()
    dma.link = link
    for page in range(2):
        flags = 3 | (8 if mode == "file" else 0)
        dma.map(page * PAGE, PAGE, flags, None if mode == "message" else os.dup(fd), page * PAGE)
    dma.start_log(PAGE)
    at = PAGE - 4 if how == "over a border" else 100
    if how == "write again":
        dma.write(at, b"\2" * 8)
    seen: list[tuple[int, bytes]] = []
    mark = DirtyPages.mark

    def spy(pages: DirtyPages, address: int, count: int) -> None:
        memory = bytes(link.memory) if mode == "message" else os.pread(fd, 2 * PAGE, 0)
        seen.append((address, memory[address : address + count]))
        mark(pages, address, count)

    monkeypatch.setattr(DirtyPages, "mark", spy)
    if how == "views":
        with dma.views(at, 8, write=True) as views:
            views[0][:] = b"\1" * 8
            dma.take_dirty(0, 2 * PAGE, PAGE)  # which marks what may have been written
    elif how == "gather":
        (view,) = dma.gather([(at, 8)], write=True)
        view[:] = b"\1" * 8
        dma.mark_dirty(at, 8)
        view.release()
        seen = seen[-1:]
    else:
        dma.write(at, b"\1" * 8)
    assert b"".join(data for _, data in seen) == b"\1" * 8
    dma.unmap_all()
    os.close(fd)


# Requests that are held


def test_who_waits_until_nobody_holds_is_told_before_what_was_held_goes_on() -> None:
    """Whoever moves a device has its last word before the guest's next request comes; and the first hold is not all."""
    happened: list[str] = []
    held = Holding[Message](
        Backlog(lambda _: None), lambda passing: happened.append(f"{passing.message.id}"), lambda: None
    )

    async def wait() -> None:
        await held.until_free()
        happened.append("free")

    held.hold()
    held.hold()
    waiting = Task(wait())
    for id in (1, 2):
        held.keep(Passing(Direction.TO_SERVER, Message(id, 0)))
    held.resume()
    assert happened == []
    held.resume()
    assert happened == ["free", "1", "2"]
    assert waiting.done
