"""The programs that run inside guests: here on files that look like a device in sysfs, some of them a wrong one."""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each_row
from tests.test_station import IP, OURS, ipv4
from userdev_servers.station import Station

PROGRAMS = Path(__file__).parent.parent / "guest_images" / "programs"
SLOT = "0000:01:00.0"


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The guest's programs, importable as they are in the guest."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    yield
    for name in ("disk_work", "edu", "entropy", "guest_pci", "guest_vfio", "net_work", "work"):
        sys.modules.pop(name, None)


def config_space() -> bytes:
    """An edu device with INTx, 4 MSI and 4 MSI-X vectors, its interrupt line active."""
    config = bytearray(256)
    struct.pack_into("<HHHH", config, 0x00, 0x1234, 0x11E8, 0, 0x18)
    config[0x34] = 0x40
    config[0x3D] = 1
    struct.pack_into("<BBH", config, 0x40, 0x05, 0x50, 2 << 1 | 0x80)
    struct.pack_into("<BBH", config, 0x50, 0x11, 0x00, 3)
    return bytes(config)


@pytest.fixture
def sysfs(programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sysfs with one edu device whose BAR 0 is plain memory, which answers nothing as edu would."""
    import guest_pci

    folder = tmp_path / "devices" / SLOT
    folder.mkdir(parents=True)
    attributes = {"vendor": "0x1234", "device": "0x11e8", "revision": "0x10", "class": "0x00ff00"}
    attributes["resource"] = "0x00000000fe000000 0x00000000fe0fffff 0x0000000000040200\n" + "0x0 0x0 0x0\n" * 12
    for name, text in attributes.items():
        (folder / name).write_text(text)
    (folder / "config").write_bytes(config_space())
    (folder / "resource0").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(guest_pci, "SYSFS", tmp_path)
    return folder


def test_a_bar_is_read_and_written_at_the_width_that_is_asked_for(sysfs: Path) -> None:
    from guest_pci import SysfsDevice, find_device

    with SysfsDevice(find_device("1234:11e8")) as device:
        bar = device.bar(0)
        bar.write(0x80, 0x1122334455667788, 8)
        assert [bar.read(0x80, width) for width in (8, 4, 2, 1)] == [0x1122334455667788, 0x55667788, 0x7788, 0x88]
        assert bar.read(0x84) == 0x11223344


def test_a_bar_without_mmap_answers_the_same(sysfs: Path) -> None:
    from guest_pci import Bar

    with (sysfs / "resource0").open("r+b", buffering=0) as file:
        bar = Bar(0x1000, None, file.fileno(), offset=0x2000)
        bar.write(0x10, 0xCAFE, 2)
        assert bar.read(0x10) == 0xCAFE
    assert (sysfs / "resource0").read_bytes()[0x2010:0x2012] == b"\xfe\xca"


@for_each_row([(2, 4), (1 << 20, 4), ((1 << 20) - 4, 8), (-4, 4), (0, 3)])
def test_accesses_that_could_not_be_one_are_refused(offset: int, width: int, sysfs: Path) -> None:
    from guest_pci import SysfsDevice, find_device

    with SysfsDevice(find_device("1234:11e8")) as device, pytest.raises(ValueError, match="access"):
        device.bar(0).read(offset, width)


def test_config_space_tells_of_interrupts(sysfs: Path) -> None:
    from guest_pci import SysfsDevice, find_device

    with SysfsDevice(find_device("1234:11e8", slot="01:00.0")) as device:
        assert device.config.vectors() == {"intx": 1, "msi": 4, "msix": 4}
        assert device.config.intx_pending
        assert device.config.read(0x04, 2) & 0x6 == 0x6, "memory decode and bus mastering are on"


def test_a_device_that_is_not_there_is_named(sysfs: Path) -> None:
    from guest_pci import DeviceError, find_device

    with pytest.raises(DeviceError, match="1af4:1000"):
        find_device("1af4:1000")
    with pytest.raises(DeviceError, match="is 1234:11e8"):
        find_device("1af4:1000", SLOT)


def run_edu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    import edu

    monkeypatch.setattr(sys, "argv", ["edu", *arguments])
    monkeypatch.setattr(edu, "PATIENCE", 0.05)
    status = edu.main()
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("identify", "identification is 0, not 0x10000ed"),
        ("liveness", "liveness of 0x0 is 0"),
        ("factorial", "0! is 0"),
    ],
)
def test_memory_is_not_taken_for_an_edu_device(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, complaint: str
) -> None:
    status, report = run_edu(monkeypatch, capsys, command)
    assert status == 1
    assert not report["ok"]
    assert any(complaint in line for line in report["wrong"])


def test_a_computation_that_never_ends_is_an_error_in_time(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with (sysfs / "resource0").open("r+b") as file:
        file.seek(0x08)
        file.write(b"\1")
    import edu

    monkeypatch.setattr(edu, "STATUS", 0x08)  # the register keeps what is written, the COMPUTING bit too
    status, report = run_edu(monkeypatch, capsys, "factorial", "1")
    assert status == 1
    assert "did not end" in report["error"]


def test_what_needs_interrupts_says_so_without_them(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run_edu(monkeypatch, capsys, "--access", "sysfs", "irq")
    assert status == 1
    assert "interrupts" in report["error"]
    assert "[" not in report["error"]


def test_registers_are_shown_as_they_are(
    sysfs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, report = run_edu(monkeypatch, capsys, "registers")
    assert status == 0
    assert report["seen"]["registers"]["causes"] == "0x0"
    assert report["device"] == {"slot": SLOT, "access": "sysfs"}


@pytest.fixture
def blocks(programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The work `blocks` after a hundred rounds, with a file for its disk."""
    import disk_work

    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(os, "O_DIRECT", 0)  # not every file system has it
    monkeypatch.setattr(disk_work.DiskWork, "begin", lambda _: None)
    monkeypatch.setattr(disk_work.DiskWork, "check", lambda _: None)
    with disk_work.Blocks(argparse.Namespace()) as work:
        work.disk, work.room = tmp_path / "disk", 1 << 20
        work.begin()
        for number in range(100):
            work.round(number)
        yield work


def test_a_disk_that_keeps_all_its_blocks_is_right(blocks: Any) -> None:
    blocks.check()
    assert blocks.wrong == []
    assert blocks.seen["blocks"] == len(blocks.written) > 50


@pytest.mark.parametrize(
    ("at", "content", "told"),
    [
        (0, lambda work: work.content(0), "that of round 0"),  # a write that was lost, and an older one
        (4095, lambda _: b"\0", "none ever written"),  # its last byte is wrong
        (0, lambda _: bytes(4096), "none ever written"),
    ],
)
def test_a_block_that_is_not_as_it_was_written_last_is_told(
    blocks: Any, at: int, content: Callable[[Any], bytes], told: str
) -> None:
    block = next(place for place, number in blocks.written.items() if number and blocks.content(number)[-1])
    with blocks.disk.open("r+b") as disk:
        disk.seek(block * 4096 + at)
        disk.write(content(blocks))
    blocks.check()
    [wrong] = blocks.wrong
    assert f"block {block} " in wrong
    assert told in wrong


def test_files_take_no_more_of_a_disk_than_it_has_and_say_of_one_that_is_too_small_that_it_is(
    programs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk of 1 MiB had no space left after some rounds, which was told as a failure of the guest or the device."""
    import disk_work

    for free in (100 << 10, 300 << 10, 900 << 10, 3 << 20, 1 << 40):
        count = disk_work.count_of_files(free)
        assert 1 <= count <= disk_work.MOST_FILES, free
        assert (count + 1) * disk_work.LARGEST <= max(free, 2 * disk_work.LARGEST), free
    assert disk_work.count_of_files(1 << 40) == disk_work.MOST_FILES
    driver = SimpleNamespace(controller=lambda _: "virtio0", state=lambda _: None)
    monkeypatch.setattr(disk_work, "driver_of", lambda _: driver)
    for work, least in ((disk_work.Files, disk_work.FILES_LEAST), (disk_work.Fio, 16384), (disk_work.Blocks, 4096)):
        monkeypatch.setattr(disk_work, "find_disk", lambda _, least=least: (Path("/dev/vda"), least - 512))
        with pytest.raises(Exception, match=f"{least - 512} bytes, too small"):
            work(argparse.Namespace(slot="01:00.0", bytes=0)).begin()


def test_the_kernels_warnings_of_a_disk_are_wrong_and_what_else_it_says_is_not(programs: None, tmp_path: Path) -> None:
    import disk_work

    (tmp_path / "state").write_text("live\n")
    with disk_work.DiskWork(argparse.Namespace()) as work:
        work.names, work.state = ("nvme1", "nvme1n1"), tmp_path / "state"
        reader, writer = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )  # /dev/kmsg has a record for each read
        with reader, writer:
            reader.setblocking(False)
            work.messages = reader.fileno()
            for record in (
                "4,1,9,-;nvme nvme1: I/O tag 3 timeout\n SUBSYSTEM=nvme",
                "6,2,9,-;nvme1n1: p1",
                "3,3,9,-;edu: no",
            ):
                writer.send(record.encode())
            work.check()
            work.state.write_text("dead")
            work.check()
        assert work.wrong == [
            "the kernel says: nvme nvme1: I/O tag 3 timeout",
            "the state of nvme1 is dead, not live",
        ]


@pytest.mark.parametrize(
    ("frames", "wanted", "limit", "first"),
    [
        ([7, 8, 9], 3, 10, 0),
        ([7, 8, 9], 3, 9, None),  # the last is beyond what the device reaches
        ([9, 3, 4, 5, 6], 3, 10, 1),
        ([5, 4, 3, 2], 2, 10, None),  # downwards is not in one piece
        ([0, 1, 0, 2, 3], 2, 10, 3),  # 0: not told, or not there
        ([20, 21, 8, 9], 2, 10, 2),
        ([5], 1, 10, 0),
        ([], 1, 10, None),
    ],
)
@pytest.mark.usefixtures("programs")
def test_memory_for_dma_is_in_one_piece_that_the_device_reaches(
    frames: list[int], wanted: int, limit: int, first: int | None
) -> None:
    from guest_pci import _piece

    assert _piece(frames, wanted, limit) == first


class Answering:
    """The raw socket of a guest whose station is our own; it changes a byte of what it is told to."""

    def __init__(self, spoiled: int) -> None:
        self.station = Station(OURS, IP)
        self.answers: list[bytes] = []
        self.left = spoiled

    def sendto(self, message: bytes, _: object) -> None:
        frame = self.station.answer(ipv4(message))
        assert frame is not None
        self.left -= 1
        self.answers.append(frame[14:] if self.left else frame[14:-1] + bytes((frame[-1] ^ 1,)))

    def settimeout(self, _: float) -> None:
        pass

    def recv(self, _: int) -> bytes:
        return self.answers.pop()


@pytest.mark.parametrize(("spoiled", "wrong"), [(0, 0), (4, 1)])
def test_each_ping_is_answered_with_its_own_bytes_or_that_is_wrong(
    programs: None, monkeypatch: pytest.MonkeyPatch, spoiled: int, wrong: int
) -> None:
    import net_work

    monkeypatch.setattr(net_work.Ping, "begin", lambda _: None)
    with net_work.Ping(argparse.Namespace()) as work:
        work.seen["answers"] = 0
        monkeypatch.setattr(work, "wire", Answering(spoiled), raising=False)
        for number in range(10):
            work.round(number)
        assert (work.seen["answers"], len(work.wrong)) == (10 - wrong, wrong)
