"""How programs in a guest find and drive a device, a disk, a card: with folders for /sys, and no time that passes."""

from __future__ import annotations

import argparse
import errno
import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vfio_user.harness.image.recipe import ROOM

SLOT = "0000:01:00.0"


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They are importable as they are in the guest."""
    monkeypatch.syspath_prepend(str(ROOM / "programs"))
    yield
    for name in ("disk_work", "guest_pci", "guest_vfio", "net_work", "work", "workload"):
        sys.modules.pop(name, None)


# A device


def config_space(tmp_path: Path, *links: tuple[int, int, int]) -> Any:
    """Configuration space with capabilities: where each is, its id, and where the next is said to be."""
    from guest_pci import ConfigSpace

    config = bytearray(256)
    struct.pack_into("<H", config, 6, 0x10)
    config[0x34] = links[0][0]
    for at, identity, following in links:
        config[at : at + 2] = bytes((identity, following))
    (tmp_path / "config").write_bytes(config)
    return ConfigSpace(os.open(tmp_path / "config", os.O_RDWR))


def test_capabilities_that_are_a_circle_are_told_once(tmp_path: Path) -> None:
    for number, (links, wanted) in enumerate(
        {
            ((0x40, 0x05, 0x50), (0x50, 0x11, 0x40)): {"msi": 0x40, "msix": 0x50},
            ((0x40, 0x05, 0x40),): {"msi": 0x40},
            ((0x40, 0x05, 0x53), (0x50, 0x42, 0)): {"msi": 0x40, "0x42": 0x50},
        }.items()
    ):
        (folder := tmp_path / str(number)).mkdir()
        config = config_space(folder, *links)
        assert config.capabilities() == wanted
        os.close(config._fd)


def test_a_bar_that_is_smaller_than_an_access_has_none_of_that_width(tmp_path: Path) -> None:
    from guest_pci import Bar

    (tmp_path / "bar").write_bytes(bytes(64))
    with (tmp_path / "bar").open("r+b", buffering=0) as file:
        for size in (4, 8, 16):
            bar = Bar(size, None, file.fileno())
            for width in (1, 2, 4, 8):
                for offset in range(0, 24, width):
                    if offset + width <= size:
                        bar.write(offset, 1, width)
                        assert bar.read(offset, width) == 1
                        continue
                    with pytest.raises(ValueError, match="no access"):
                        bar.read(offset, width)
                    with pytest.raises(ValueError, match="no access"):
                        bar.write(offset, 0, width)


def test_a_device_leaves_its_driver_before_another_is_asked_to_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import guest_pci

    monkeypatch.setattr(guest_pci, "SYSFS", tmp_path)
    for had, takes, wanted in (
        ("nvme", True, ["unbind", "driver_override", "drivers_probe"]),
        ("", True, ["driver_override", "drivers_probe"]),
        ("wanted", True, []),
        ("nvme", False, ["unbind", "driver_override", "drivers_probe"]),
    ):
        function = guest_pci.PciFunction.__new__(guest_pci.PciFunction)
        function.slot, function.path = SLOT, tmp_path / "devices" / SLOT
        (tmp_path / "drivers/wanted").mkdir(parents=True, exist_ok=True)
        driver, done = [had], list[str]()

        def write(
            path: Path, text: str, done: list[str] = done, driver: list[str] = driver, takes: bool = takes
        ) -> None:
            done.append(path.name)
            assert text == ("wanted" if path.name == "driver_override" else SLOT)
            if path.name == "unbind":
                driver[0] = ""
            if path.name == "drivers_probe" and not driver[0] and takes:
                driver[0] = "wanted"

        with monkeypatch.context() as patch:
            patch.setattr(guest_pci.PciFunction, "driver", property(lambda _: driver[0]))  # noqa: B023
            patch.setattr(Path, "write_text", write)
            if takes:
                function.bind("wanted", "module")
            else:
                with pytest.raises(guest_pci.DeviceError, match="did not take"):
                    function.bind("wanted", "module")
        assert done == wanted, had


def test_a_node_is_waited_for_until_its_driver_answers_and_not_one_that_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import guest_pci

    now, errors = [0.0], list[int]()

    def opened(_path: Path, _flags: int) -> int:
        if errors:
            raise OSError(errors.pop(0), "not yet")
        return 7

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    errors[:] = [errno.ENOENT, errno.ENXIO, errno.ENODEV]
    assert guest_pci.open_node(Path("/dev/uio0")) == 7
    errors[:] = [errno.EBUSY]
    with pytest.raises(guest_pci.DeviceError, match="in use"):
        guest_pci.open_node(Path("/dev/uio0"))
    errors[:] = [errno.EACCES]
    with pytest.raises(PermissionError):
        guest_pci.open_node(Path("/dev/uio0"))
    errors[:] = [errno.ENXIO] * 10_000
    with pytest.raises(OSError, match="not yet"):
        guest_pci.open_node(Path("/dev/uio0"))
    assert errors, "it is not waited for without an end"


# A disk


def test_what_the_kernel_says_behind_a_gap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import disk_work

    said: list[bytes | type[OSError]] = [b"3,1,9,-;vda: one", BrokenPipeError, b"4,9,9,-;vda: two", BlockingIOError]

    def read(_fd: int, _size: int) -> bytes:
        if isinstance(record := said.pop(0), bytes):
            return record
        raise record

    with disk_work.DiskWork(argparse.Namespace()) as work:
        work.names, work.messages = ("vda", "vda"), -1
        monkeypatch.setattr(os, "read", read)
        assert work.complaints() == ["vda: one", "vda: two"]


def test_a_disk_is_found_when_it_has_the_size_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import disk_work

    monkeypatch.setattr(disk_work, "Path", lambda first, *rest: Path(f"{tmp_path}{first}", *rest))
    monkeypatch.setattr(Path, "is_block_device", Path.is_file)
    function = tmp_path / "sys/bus/pci/devices" / SLOT
    (tmp_path / "dev").mkdir()

    def disk(folder: str, sectors: int, nsid: int = 0) -> None:
        (function / folder).mkdir(parents=True)
        (function / folder / "size").write_text(f"{sectors}\n")
        if nsid:
            (function / folder / "nsid").write_text(f"{nsid}\n")
        (tmp_path / "dev" / Path(folder).name).touch()

    for folder, sectors, nsid in (
        ("nvme/nvme0/nvme0n1", 8, 1),
        ("nvme/nvme0/nvme0n2", 0, 2),
        ("nvme/nvme0/nvme0n3", 16, 3),
        ("virtio1/block/vda", 8, 0),
    ):
        disk(folder, sectors, nsid)
    (tmp_path / "dev/nvme0n3").unlink()
    for nsid, size, found in ((1, None, True), (1, 4096, True), (1, 8192, False), (2, None, False), (2, 0, True)):
        assert bool(disk_work.find_namespace(SLOT, nsid, size)) is found, (nsid, size)
    assert disk_work.find_namespace(SLOT, 3) is None, "its node is not there yet"
    assert disk_work.find_namespace(SLOT, 4) is None
    for size, found in ((None, True), (4096, True), (512, False)):
        assert bool(disk_work.find_virtio_disk(SLOT, size)) is found, size


# A network card


class Busy:
    """A raw socket on which other packets come before the answer: what was asked itself, and an answer that is late."""

    def sendto(self, asked: bytes, _: object) -> None:
        import net_work

        late = asked[4:6] + struct.pack("!H", struct.unpack("!H", asked[6:8])[0] - 1 & 0xFFFF) + b"late"
        kinds = ((net_work.ECHO_REQUEST, asked[4:]), (net_work.ECHO_REPLY, late), (net_work.ECHO_REPLY, asked[4:]))
        self.came = [bytes(20) + bytes((kind, 0, 0, 0)) + rest for kind, rest in kinds]

    def settimeout(self, _: float) -> None:
        return

    def recv(self, _: int) -> bytes:
        return self.came.pop(0)


def test_an_answer_to_another_ping_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import net_work

    monkeypatch.setattr(net_work.Ping, "begin", lambda _: None)
    with net_work.Ping(argparse.Namespace()) as work:
        work.seen["answers"] = 0
        monkeypatch.setattr(work, "wire", Busy(), raising=False)
        for number in range(5):
            work.round(number)
        assert (work.seen["answers"], work.wrong) == (5, [])


# What a workload says while it is at work


def test_what_is_told_meanwhile_is_never_seen_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import workload

    file = tmp_path / "started.now"
    workload.tell(str(file), {"seen": 1})
    assert json.loads(file.read_text()) == {"seen": 1}

    def half(path: Path, text: str) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="full"):
            workload.tell(str(file), {"seen": 2})
    assert json.loads(file.read_text()) == {"seen": 1}


def test_whoever_waits_for_the_first_round_is_told_of_it_or_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Work that goes wrong later has begun all the same."""
    import guest_pci
    import work as base
    import workload

    def fail(_: object, number: int = 0) -> None:
        raise guest_pci.DeviceError("no device")

    def fail_later(_: object, number: int) -> None:
        if number:
            fail(_)

    cases: dict[str, tuple[dict[str, Callable[..., None]], str, int]] = {
        "it cannot begin": ({"begin": fail}, "failed\n", 1),
        "its first round fails": ({"round": fail}, "failed\n", 1),
        "its second round fails": ({"round": fail_later}, "right\n", 1),
        "all is well": ({}, "right\n", 0),
    }
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for name, (parts, said, status) in cases.items():
        started = tmp_path / name
        monkeypatch.setattr(workload, "chosen", lambda options, parts=parts: type("W", (base.Work,), parts)(options))
        monkeypatch.setattr(sys, "argv", ["workload", "idle", "--seconds", "0.01", "--started", str(started)])
        assert workload.main() == status, name
        assert started.read_text() == said, name
        assert json.loads(capsys.readouterr().out)["ok"] is not bool(status), name
