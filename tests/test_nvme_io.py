"""Data of NVMe commands gets where it should, by every kind of pointer, and wrong commands change nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.nvme_kit import BASE, PAGE, Host, controller, loop_device
from userdev.control import ControlClient
from userdev.errors import UserError
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.spec import Io, Status

BLOCKS = (4 << 20) // 512
FUA = 1 << 30
SGL = 0x40
"""Flags of a command: its data pointer is a scatter gather list."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with controller(tmp_path) as (_, host):
        host.enable()
        host.create_queues()
        yield host


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


ROWS = [bytes((column * 31 + row) & 0xFF for column in range(256)) for row in range(256)]


def pattern(size: int, seed: int = 1) -> bytes:
    return b"".join(ROWS[seed * 7 + row & 0xFF] for row in range(-(-size // 256)))[:size]


@pytest.mark.parametrize("size", [512, 4096, 8192, 12288, 65536, 1 << 20])
def test_what_is_written_is_in_the_image_and_comes_back(host: Host, disk: Path, size: int) -> None:
    data = pattern(size)
    assert host.write_blocks(24, data).status == 0
    assert disk.read_bytes()[24 * 512 : 24 * 512 + size] == data
    assert host.read_blocks(24, size) == data


@pytest.mark.parametrize("offset", [0, 4, 512, 2044, 3584])
def test_a_buffer_may_begin_anywhere_in_a_page(host: Host, offset: int) -> None:
    data = pattern(3 * PAGE, seed=offset)
    at = host.allocate(4 * PAGE) + offset
    host.write(at, data)
    assert host.transfer(Io.WRITE, 8, at, len(data)).status == 0
    assert host.read_blocks(8, len(data)) == data


def test_pages_of_a_list_may_be_anywhere(host: Host) -> None:
    data = pattern(4 * PAGE)
    pages = [host.allocate(2 * PAGE) for _ in range(4)][::-1]
    for place, page in enumerate(pages):
        host.write(page, data[place * PAGE : (place + 1) * PAGE])
    queue = host.queues[1]
    fields = {"nsid": 1, "prp1": pages[0], "prp2": host.put_list(pages[1:]), "cdw12": 31}
    assert queue.do(Io.WRITE, **fields).status == 0
    assert host.read_blocks(0, len(data)) == data


@pytest.mark.parametrize("count", [5, 8])
def test_lists_of_pages_are_chained(host: Host, count: int) -> None:
    """A list that begins near the end of its page goes on where its last entry points, also for one page more."""
    size = count * PAGE
    data = pattern(size)
    at = host.allocate(size)
    host.write(at, data)
    pages = list(range(at + PAGE, at + size, PAGE))
    more = host.put_list(pages[2:])
    first = host.allocate(PAGE) + PAGE - 24
    host.write(first, pack("<3Q", *pages[:2], more))
    assert host.queues[1].do(Io.WRITE, nsid=1, prp1=at, prp2=first, cdw12=size // 512 - 1).status == 0
    assert host.read_blocks(0, size) == data


def sgl(address: int, size: int, kind: int = 0) -> dict[str, int]:
    """The descriptor in a command."""
    return {"flags": SGL, "prp1": address, "prp2": size | kind << 56}


def test_one_descriptor_is_enough_for_contiguous_data(host: Host) -> None:
    data = pattern(6000 // 512 * 512)
    at = host.allocate(2 * PAGE) + 3
    host.write(at, data)
    assert host.queues[1].do(Io.WRITE, nsid=1, cdw12=len(data) // 512 - 1, **sgl(at, len(data))).status == 0
    assert host.read_blocks(0, len(data)) == data


def test_segments_lead_to_segments_and_buckets_take_what_is_not_wanted(host: Host) -> None:
    data = pattern(4096)
    assert host.write_blocks(0, data).status == 0
    a, b, segment, last = (host.allocate(PAGE) for _ in range(4))
    host.write(segment, pack("<QI3xB", a, 1000, 0) + pack("<QI3xB", 0, 96, 0x10) + pack("<QI3xB", last, 32, 0x30))
    host.write(last, pack("<QI3xB", b, 2000, 0) + pack("<QI3xB", b + 2000, 1000, 0))
    assert host.queues[1].do(Io.READ, nsid=1, cdw12=7, **sgl(segment, 48, 0x20)).status == 0
    assert host.read(a, 1000) == data[:1000]
    assert host.read(b, 3000) == data[1096:]


@for_each([True, False])
def test_buckets_are_nothing_where_data_comes_from_the_guest(shared: bool, tmp_path: Path) -> None:
    with controller(tmp_path, shared=shared) as (_, host):
        host.enable()
        host.create_queues()
        data = pattern(512)
        at, segment = host.allocate(PAGE), host.allocate(PAGE)
        host.write(at, data)
        pieces = [(at, 200, 0), (0, 4096, 0x10), (at + 200, 312, 0)]
        host.write(segment, b"".join(pack("<QI3xB", *piece) for piece in pieces))
        for opcode in (Io.WRITE, Io.COMPARE):
            assert host.queues[1].do(opcode, nsid=1, **sgl(segment, 48, 0x30)).status == 0
        assert host.read_blocks(0, 512) == data


def test_a_long_list_of_small_pieces_is_one_transfer(host: Host) -> None:
    """More pieces than a system call takes."""
    data = pattern(64 << 10)
    at, segment = host.allocate(len(data)), host.allocate(16 * 2048)
    host.write(at, data)
    pieces = [(at + place, 32) for place in range(0, len(data), 32)]
    host.write(segment, b"".join(pack("<QI3xB", place, size, 0) for place, size in pieces))
    fields = sgl(segment, 16 * len(pieces), 0x30)
    assert host.queues[1].do(Io.WRITE, nsid=1, cdw12=127, **fields).status == 0
    assert host.read_blocks(0, len(data)) == data


def test_compare_finds_one_wrong_byte(host: Host) -> None:
    data = pattern(8192)
    assert host.write_blocks(0, data).status == 0
    at = host.allocate(8192)
    host.write(at, data)
    assert host.transfer(Io.COMPARE, 0, at, 8192).status == 0
    host.write(at + 5000, b"?")
    assert host.transfer(Io.COMPARE, 0, at, 8192).status == Status.COMPARE_FAILURE


@pytest.mark.parametrize("deallocate", [0, 1 << 25])
def test_write_zeroes_leaves_the_neighbours_alone(host: Host, disk: Path, deallocate: int) -> None:
    assert host.write_blocks(0, b"\xff" * 65536).status == 0
    assert host.queues[1].do(Io.WRITE_ZEROES, nsid=1, cdw10=8, cdw12=15 | deallocate).status == 0
    assert disk.read_bytes()[:65536] == b"\xff" * 4096 + bytes(8192) + b"\xff" * (65536 - 12288)


def test_deallocated_blocks_are_zeros_and_give_their_place_back(host: Host, disk: Path) -> None:
    assert host.write_blocks(0, b"\xff" * (1 << 20)).status == 0
    os.sync()
    before = disk.stat().st_blocks
    ranges = host.allocate(PAGE)
    host.write(ranges, pack("<IIQ", 0, 1024, 0) + pack("<IIQ", 0, 8, 2040))
    assert host.queues[1].do(Io.DATASET_MANAGEMENT, nsid=1, prp1=ranges, cdw10=1, cdw11=4).status == 0
    content = disk.read_bytes()
    assert content[: 1 << 19] == bytes(1 << 19)
    assert content[2040 * 512 : 2048 * 512] == bytes(4096)
    assert content[1 << 19 : 2040 * 512] == b"\xff" * (2040 * 512 - (1 << 19))
    assert disk.stat().st_blocks < before


@for_each(range(8))
def test_blocks_are_deallocated_for_that_attribute_alone(attributes: int, host: Host) -> None:
    """The others are hints of how a range will be read or written."""
    assert host.write_blocks(0, pattern(4096)).status == 0
    ranges = host.allocate(PAGE)
    host.write(ranges, pack("<IIQ", 0, 8, 0))
    assert host.queues[1].do(Io.DATASET_MANAGEMENT, nsid=1, prp1=ranges, cdw11=attributes).status == 0
    assert host.read_blocks(0, 4096) == (bytes(4096) if attributes & 4 else pattern(4096))


def test_flush_of_one_namespace_and_of_all(host: Host) -> None:
    assert host.queues[1].do(Io.FLUSH, nsid=1).status == 0
    assert host.queues[1].do(Io.FLUSH, nsid=0xFFFFFFFF).status == 0


def test_several_namespaces_do_not_mix(tmp_path: Path) -> None:
    images = f"{tmp_path / 'a'}:1M,{tmp_path / 'b'}:2M"
    with controller(tmp_path, images) as (_, host):
        host.enable()
        host.create_queues()
        assert host.write_blocks(0, b"1" * 512).status == 0
        assert host.write_blocks(0, b"2" * 512, nsid=2).status == 0
        assert host.write_blocks(2048, b"3" * 512).status == Status.LBA_OUT_OF_RANGE
        assert host.write_blocks(2048, b"3" * 512, nsid=2).status == 0
    assert (tmp_path / "a").read_bytes()[:512] == b"1" * 512
    assert (tmp_path / "b").read_bytes()[:512] == b"2" * 512


def test_blocks_of_4_kib(tmp_path: Path) -> None:
    with controller(tmp_path, block_size=4096) as (_, host):
        host.enable()
        host.create_queues()
        data = pattern(8192)
        assert host.write_blocks(3, data, shift=12).status == 0
        assert host.read_blocks(3, 8192, shift=12) == data
    assert (tmp_path / "disk.img").read_bytes()[3 * 4096 : 5 * 4096] == data


def test_a_read_only_image_is_not_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(pattern(1 << 20))
    disk.chmod(0o444)
    with controller(tmp_path, f"{disk}:ro") as (_, host):
        host.enable()
        host.create_queues()
        queue = host.queues[1]
        assert host.read_blocks(0, 4096) == pattern(1 << 20)[:4096]
        assert host.write_blocks(0, bytes(512)).status == Status.WRITE_PROTECTED
        assert queue.do(Io.WRITE_ZEROES, nsid=1).status == Status.WRITE_PROTECTED
        assert queue.do(Io.FLUSH, nsid=1).status == 0
        assert host.identify(0, 1)[99] == 1
    assert disk.read_bytes() == pattern(1 << 20)


def test_a_full_disk_is_told_and_logged(tmp_path: Path) -> None:
    """/dev/full reads zeros and has no room for anything."""
    with controller(tmp_path, "/dev/full:1M") as (device, host):
        host.enable()
        host.create_queues()
        assert host.read_blocks(0, 4096) == bytes(4096)
        done = host.write_blocks(8, bytes(4096))
        assert (done.status, done.do_not_retry) == (Status.CAPACITY_EXCEEDED, True)
        entry = host.log_page(1, 64)
        assert int.from_bytes(entry[12:14], "little") >> 1 & 0x7FF == Status.CAPACITY_EXCEEDED
        assert int.from_bytes(entry[16:24], "little") == 8
        assert device.statistics.media_errors == 0


class BadDisk:
    """What a broken disk does: each system call fails with EIO."""

    def __call__(self, *_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@for_each_row(
    [
        ("read", Io.READ, Status.UNRECOVERED_READ_ERROR),
        ("write", Io.WRITE, Status.WRITE_FAULT),
    ]
)
def test_a_disk_error_is_told_counted_and_may_be_tried_again(
    call: str, opcode: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with controller(tmp_path) as (device, host):
        host.enable()
        queue = host.create_queues()
        with monkeypatch.context() as broken:
            backing = device.controller.namespaces[0].backing
            broken.setattr(backing, call, BadDisk())
            broken.setattr(backing, "_no_wait", 0)
            done = queue.do(opcode, nsid=1, prp1=host.allocate(PAGE))
            assert (done.status, done.do_not_retry) == (status, False)
        assert device.statistics.media_errors == 1
        assert queue.do(opcode, nsid=1, prp1=host.allocate(PAGE)).status == 0


def test_a_block_device_is_an_image_too(tmp_path: Path) -> None:
    with loop_device(tmp_path / "disk.img", 4 << 20) as device, controller(tmp_path, str(device)) as (_, host):
        host.enable()
        queue = host.create_queues()
        assert int.from_bytes(host.identify(0, 1)[:8], "little") == BLOCKS
        data = pattern(1 << 20)
        assert host.write_blocks(BLOCKS - 2048, data, control=FUA).status == 0
        assert host.read_blocks(BLOCKS - 2048, 1 << 20) == data
        assert queue.do(Io.FLUSH, nsid=1).status == 0
        assert queue.do(Io.WRITE_ZEROES, nsid=1, cdw10=BLOCKS - 2048, cdw12=7).status == 0
        assert queue.do(Io.WRITE_ZEROES, nsid=1, cdw10=BLOCKS - 2040, cdw12=7 | 1 << 25).status == 0
        assert host.read_blocks(BLOCKS - 2048, 16384) == bytes(8192) + data[8192:16384]
        assert host.transfer(Io.READ, BLOCKS, host.allocate(PAGE), 512).status == Status.LBA_OUT_OF_RANGE
        assert queue.do(Io.FLUSH, nsid=1).status == 0
        assert (tmp_path / "disk.img").read_bytes()[-(1 << 20) + 8192 :] == data[8192:]


def test_a_disk_can_be_broken_in_places_and_mended(tmp_path: Path) -> None:
    """What the host asks for on the control socket; the blocks beside are as good as before."""
    with (
        controller(tmp_path, control=str(tmp_path / "control")) as (device, host),
        ControlClient(tmp_path / "control") as outside,
    ):
        host.enable()
        host.create_queues()
        assert host.write_blocks(0, pattern(PAGE)).status == 0
        outside.call("break", nsid=1, operation="write", first=3, blocks=1)
        outside.call("break", nsid=1, operation="read", error="ENXIO", first=5, blocks=2)
        outside.call("break", nsid=1, operation="sync")
        statuses = [
            [host.write_blocks(first, pattern(512)).status for first in (2, 3, 4)],
            [host.transfer(Io.READ, first, host.allocate(PAGE), 512).status for first in (4, 5, 6, 7)],
            [host.transfer(Io.READ, 0, host.allocate(PAGE), PAGE).status],
            [host.queues[1].do(Io.FLUSH, nsid=1).status],
        ]
        bad_write, bad_read = Status.WRITE_FAULT, Status.UNRECOVERED_READ_ERROR
        assert statuses == [[0, bad_write, 0], [0, bad_read, bad_read, 0], [bad_read], [bad_write]]
        assert device.statistics.media_errors == 5
        outside.call("mend", nsid=1)
        assert host.write_blocks(3, pattern(512)).status == 0
        assert len(host.read_blocks(0, PAGE)) == PAGE
        assert host.queues[1].do(Io.FLUSH, nsid=1).status == bad_write, "what it did not keep is lost all the same"
        refused: list[dict[str, Any]] = [
            {"operation": "think"},
            {"operation": "read", "error": "BAD"},
            {"operation": "read", "first": ""},
            {"operation": "read", "first": -1},
            {"operation": "read", "blocks": 0},
            {"operation": "read", "first": 4 << 11},
            {"operation": "read", "first": (4 << 11) - 1, "blocks": 2},
        ]
        for wrong in refused:
            with pytest.raises(UserError):
                outside.call("break", nsid=1, **wrong)
        outside.call("break", nsid=1, operation="read", first=(4 << 11) - 1)
        last = [host.transfer(Io.READ, first, host.allocate(PAGE), 512).status for first in (8190, 8191)]
        assert last == [0, bad_read], "to the end, where nothing else is said"


def test_data_that_has_to_come_from_the_disk_comes(host: Host, disk: Path) -> None:
    data = pattern(1 << 20)
    assert host.write_blocks(0, data, control=FUA).status == 0
    with disk.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert host.read_blocks(0, len(data)) == data


@for_each([True, False])
def test_memory_that_only_messages_reach_is_copied(inside: bool, tmp_path: Path) -> None:
    with controller(tmp_path, shared=False) as (_, host):
        host.enable()
        queue = host.create_queues()
        data = pattern(20480)
        assert host.write_blocks(0, data).status == 0
        assert host.read_blocks(0, len(data)) == data
        where = BASE if inside else 0x1000
        done = queue.do(Io.READ, nsid=1, prp1=where)
        assert done.status == (0 if inside else Status.DATA_TRANSFER_ERROR)


NOWHERE = 0x1000
"""An address that the client did not map."""
OUTSIDE = BASE + (16 << 20)

MALFORMED = {
    "an opcode that there is not": ({"opcode": 0x7F, "nsid": 1}, Status.INVALID_OPCODE),
    "half of a fused command": ({"opcode": Io.READ, "nsid": 1, "flags": 1}, Status.INVALID_FIELD),
    "a pointer type that there is not": ({"opcode": Io.READ, "nsid": 1, "flags": 0xC0}, Status.INVALID_FIELD),
    "namespace 0": ({"opcode": Io.READ, "nsid": 0}, Status.INVALID_NAMESPACE),
    "a namespace that there is not": ({"opcode": Io.READ, "nsid": 2}, Status.INVALID_NAMESPACE),
    "all namespaces": ({"opcode": Io.WRITE, "nsid": 0xFFFFFFFF}, Status.INVALID_NAMESPACE),
    "the block behind the last": ({"opcode": Io.READ, "nsid": 1, "cdw10": BLOCKS}, Status.LBA_OUT_OF_RANGE),
    "across the end": ({"opcode": Io.WRITE, "nsid": 1, "cdw10": BLOCKS - 1, "cdw12": 1}, Status.LBA_OUT_OF_RANGE),
    "a first block that wraps": (
        {"opcode": Io.READ, "nsid": 1, "cdw10": 0xFFFFFFFF, "cdw11": 0xFFFFFFFF},
        Status.LBA_OUT_OF_RANGE,
    ),
    "more than a transfer may have": ({"opcode": Io.READ, "nsid": 1, "cdw12": 2048}, Status.INVALID_FIELD),
    "zeros across the end": (
        {"opcode": Io.WRITE_ZEROES, "nsid": 1, "cdw10": BLOCKS - 1, "cdw12": 1},
        Status.LBA_OUT_OF_RANGE,
    ),
    "data where no memory is": ({"opcode": Io.READ, "nsid": 1, "prp1": NOWHERE}, Status.DATA_TRANSFER_ERROR),
    "data that leaves memory": (
        {"opcode": Io.READ, "nsid": 1, "prp1": OUTSIDE - PAGE, "prp2": OUTSIDE, "cdw12": 15},
        Status.DATA_TRANSFER_ERROR,
    ),
    "an address that wraps": (
        {"opcode": Io.WRITE, "nsid": 1, "prp1": 2**64 - PAGE, "prp2": 0, "cdw12": 15},
        Status.DATA_TRANSFER_ERROR,
    ),
    "a first page at an odd byte": ({"opcode": Io.READ, "nsid": 1, "prp1": BASE + 2}, Status.INVALID_PRP_OFFSET),
    "a second page that is none": (
        {"opcode": Io.READ, "nsid": 1, "prp1": BASE, "prp2": BASE + 512, "cdw12": 15},
        Status.INVALID_PRP_OFFSET,
    ),
    "a list where no memory is": (
        {"opcode": Io.READ, "nsid": 1, "prp1": BASE, "prp2": NOWHERE, "cdw12": 127},
        Status.DATA_TRANSFER_ERROR,
    ),
    "a list at an odd byte": (
        {"opcode": Io.READ, "nsid": 1, "prp1": BASE, "prp2": BASE + 4, "cdw12": 127},
        Status.INVALID_PRP_OFFSET,
    ),
    "a descriptor of a type that there is not": (
        {"opcode": Io.READ, "nsid": 1, **sgl(BASE, 512, 0x40)},
        Status.SGL_TYPE_INVALID,
    ),
    "a descriptor that is too short": (
        {"opcode": Io.READ, "nsid": 1, **sgl(BASE, 511)},
        Status.DATA_SGL_LENGTH_INVALID,
    ),
    "a descriptor that is too long": ({"opcode": Io.READ, "nsid": 1, **sgl(BASE, 513)}, Status.DATA_SGL_LENGTH_INVALID),
    "a descriptor of nowhere": ({"opcode": Io.READ, "nsid": 1, **sgl(NOWHERE, 512)}, Status.DATA_TRANSFER_ERROR),
    "a segment of nowhere": ({"opcode": Io.READ, "nsid": 1, **sgl(NOWHERE, 32, 0x30)}, Status.DATA_TRANSFER_ERROR),
    "a segment that is no whole number of descriptors": (
        {"opcode": Io.READ, "nsid": 1, **sgl(BASE, 24, 0x30)},
        Status.INVALID_SGL_SEGMENT,
    ),
    "a segment of a million descriptors": (
        {"opcode": Io.READ, "nsid": 1, **sgl(BASE, 16 << 20, 0x30)},
        Status.INVALID_SGL_COUNT,
    ),
    "ranges where no memory is": (
        {"opcode": Io.DATASET_MANAGEMENT, "nsid": 1, "prp1": NOWHERE, "cdw11": 4},
        Status.DATA_TRANSFER_ERROR,
    ),
}


def test_a_malformed_command_is_refused_and_nothing_else_happens(host: Host, disk: Path) -> None:
    assert host.write_blocks(BLOCKS - 8, pattern(4096)).status == 0
    before = disk.read_bytes()
    for name, (given, status) in MALFORMED.items():
        fields = {"prp1": host.allocate(2 * PAGE), **given}
        done = host.queues[1].do(fields.pop("opcode"), **fields)
        assert (done.status, done.do_not_retry) == (status, True), name
        assert disk.read_bytes() == before, name
        assert host.read_blocks(BLOCKS - 8, 4096) == pattern(4096), name


def test_a_ring_of_segments_ends(host: Host) -> None:
    segment = host.allocate(PAGE)
    host.write(segment, pack("<QI3xB", segment, 16, 0x20))
    done = host.queues[1].do(Io.READ, nsid=1, **sgl(segment, 16, 0x20))
    assert done.status == Status.INVALID_SGL_COUNT


def test_a_segment_behind_the_last_is_refused(host: Host) -> None:
    segment = host.allocate(PAGE)
    host.write(segment, pack("<QI3xB", segment, 16, 0x30))
    done = host.queues[1].do(Io.READ, nsid=1, **sgl(segment, 16, 0x30))
    assert done.status == Status.INVALID_SGL_SEGMENT


def test_without_a_write_cache_every_write_is_on_the_disk_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    with controller(tmp_path) as (device, host):
        host.enable()
        host.create_queues()
        sync = os.fdatasync

        def counted(fd: int) -> None:
            synced.append(fd)
            sync(fd)

        monkeypatch.setattr(os, "fdatasync", counted)
        assert host.write_blocks(0, bytes(512)).status == 0
        assert not synced
        assert host.write_blocks(0, bytes(512), control=FUA).status == 0
        assert len(synced) == 1
        assert host.admin.do(0x09, cdw10=6, cdw11=0).status == 0
        assert host.write_blocks(0, bytes(512)).status == 0
        assert len(synced) == 3
        assert isinstance(device, Nvme)
