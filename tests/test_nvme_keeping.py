"""What the guest was told is kept: is, or the guest is told that it is not. Also by the host that it migrates to."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.nvme_kit import CC, CSTS, ENABLE, Host, controller, loop_device
from userdev.control import ControlClient
from userdev.errors import UserError
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.spec import Admin, Cc, Csts, Feature, Io, LogPage, Status
from vfio_user.client import Client, RemoteError
from vfio_user.wire.constants import MigrationState

FUA = 1 << 30
MIB = 1 << 20
RELIABILITY = 1 << 2
"""Bit of SMART's critical warnings."""


class FailingFlush:
    """fdatasync that fails once, as the page cache tells of an error once, and counts what it is asked."""

    def __init__(self, number: int = errno.EIO) -> None:
        self.errors = [number]
        self.files: list[int] = []

    def __call__(self, fd: int) -> None:
        self.files.append(os.fstat(fd).st_ino)
        if self.errors:
            number = self.errors.pop()
            raise OSError(number, os.strerror(number))


@contextmanager
def bench(path: Path, *images: str, **options: Any) -> Iterator[tuple[Nvme, Host]]:
    """A controller with a queue, and an image for each size."""
    text = ",".join(f"{path / f'disk{number}.img'}:{size}" for number, size in enumerate(images or ("4M",)))
    with controller(path, text, **options) as (device, host):
        host.enable()
        host.create_queues()
        yield device, host


# A disk that does not keep what it was given


@for_each_row([(errno.EIO, Status.WRITE_FAULT), (errno.ENOSPC, Status.CAPACITY_EXCEEDED)])
def test_a_flush_that_failed_is_not_forgotten(
    number: int, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as (device, host):
        assert host.write_blocks(0, b"acknowledged" * 128).status == 0
        monkeypatch.setattr(os, "fdatasync", FailingFlush(number))
        ends = [host.queues[1].do(Io.FLUSH, nsid=1) for _ in range(2)]
        ends += [host.write_blocks(8, b"fua!" * 128, control=FUA) for _ in range(2)]
        ends += [host.queues[1].do(Io.WRITE_ZEROES, nsid=1, cdw10=0, cdw12=7 | FUA)]
        assert {(end.status, end.do_not_retry) for end in ends} == {(status, True)}
        assert device.statistics.media_errors == len(ends)
        assert host.write_blocks(8, b"what is not said to be kept is taken".ljust(512)).status == 0
        host.disable()
        host.enable()
        assert host.create_queues().do(Io.FLUSH, nsid=1).status == status, "a reset brings nothing back"


def test_smart_says_that_the_disk_has_lost_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as (_, host):
        host.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=RELIABILITY)
        event = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
        assert host.log_page(LogPage.SMART, retain=True)[0] == 0
        monkeypatch.setattr(os, "fdatasync", FailingFlush())
        assert host.queues[1].do(Io.FLUSH, nsid=1).status
        told = host.admin.wait(event).result
        assert (told & 7, told >> 8 & 0xFF, told >> 16) == (1, 0, LogPage.SMART)
        assert host.log_page(LogPage.SMART)[0] == RELIABILITY


def test_a_guest_that_asks_late_is_told_of_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bench(tmp_path) as (_, host):
        monkeypatch.setattr(os, "fdatasync", FailingFlush())
        assert host.queues[1].do(Io.FLUSH, nsid=1).status
        event = host.admin.put(Admin.ASYNC_EVENT_REQUEST)
        assert not any(entry.cid == event for entry in host.admin.take())
        host.admin.do(Admin.SET_FEATURES, cdw10=Feature.ASYNC_EVENT_CONFIG, cdw11=RELIABILITY)
        assert host.admin.wait(event).result & 7 == 1


def test_one_disk_that_fails_does_not_keep_the_others_from_being_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path, "1M", "2M", "3M") as (_, host):
        flush = FailingFlush()
        monkeypatch.setattr(os, "fdatasync", flush)
        assert host.queues[1].do(Io.FLUSH, nsid=0xFFFFFFFF).status == Status.WRITE_FAULT
        assert flush.files == [(tmp_path / f"disk{number}.img").stat().st_ino for number in range(3)]
        assert [host.queues[1].do(Io.FLUSH, nsid=nsid).status for nsid in (1, 2, 3)] == [Status.WRITE_FAULT, 0, 0]


def test_blocks_that_were_given_up_do_not_come_back_after_a_loss_of_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a write cache, as every change of blocks; and whenever they are erased."""
    with bench(tmp_path) as (_, host):
        flush = FailingFlush()
        flush.errors.clear()
        monkeypatch.setattr(os, "fdatasync", flush)
        ranges = host.allocate(4096)
        host.write(ranges, pack("<IIQ", 0, 8, 0))
        discard = {"opcode": Io.DATASET_MANAGEMENT, "nsid": 1, "prp1": ranges, "cdw11": 4}
        assert host.queues[1].do(**discard).status == 0
        assert not flush.files
        assert host.admin.do(Admin.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0).status == 0
        before = len(flush.files)
        assert host.queues[1].do(**discard).status == 0
        assert len(flush.files) == before + 1
        assert host.admin.do(Admin.FORMAT_NVM, nsid=1, cdw10=1 << 9).status == 0
        assert len(flush.files) == before + 2


def test_a_write_cache_that_cannot_be_emptied_is_no_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as (_, host):
        monkeypatch.setattr(os, "fdatasync", FailingFlush())
        done = host.admin.do(Admin.SET_FEATURES, cdw10=Feature.VOLATILE_WRITE_CACHE, cdw11=0)
        assert (done.status, done.do_not_retry) == (Status.WRITE_FAULT, True)
        assert host.write_blocks(0, bytes(512)).status == Status.WRITE_FAULT


def test_a_shutdown_that_cannot_keep_everything_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as (_, host):
        monkeypatch.setattr(os, "fdatasync", FailingFlush())
        host.store(CC, 4, ENABLE | 1 << 14)
        host.until(lambda: bool(host.load(CSTS) & Csts.FATAL))
        assert host.load(CSTS) & Csts.SHUTDOWN == Csts.SHUTDOWN_UNDER_WAY
        assert Cc.SHUTDOWN == 3 << 14


@contextmanager
def thin_device(folder: Path, size: int, room: int) -> Iterator[Path]:
    """A block device that acknowledges more than it has room for, as a thin volume does."""
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    options = ["-t", "tmpfs", "-o", f"size={room}", "thin", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with loop_device(folder / "disk.img", size) as device:
            yield device
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_thin_volume_that_is_full_is_found_by_every_flush(tmp_path: Path) -> None:
    """No pretending: the kernel's own page cache, which tells the first flush only."""
    with thin_device(tmp_path / "thin", 16 * MIB, 2 * MIB) as disk, controller(tmp_path, str(disk)) as (_, host):
        host.enable()
        queue = host.create_queues()
        at = host.allocate(MIB)
        host.write(at, os.urandom(MIB))
        assert [host.transfer(Io.WRITE, 2048 * number, at, MIB).status for number in range(8)] == [0] * 8
        ends = [queue.do(Io.FLUSH, nsid=1) for _ in range(3)]
        ends += [host.write_blocks(0, bytes(512), control=FUA)]
        assert all(end.status and end.do_not_retry for end in ends)
        with pytest.raises(RemoteError):
            host.client.set_migration_state(MigrationState.STOP)


# An image that somebody else changes


def test_the_control_socket_says_what_is_wrong_with_a_disk(tmp_path: Path) -> None:
    place = str(tmp_path / "control")
    with bench(tmp_path, "1M", control=place) as (_, host), ControlClient(tmp_path / "control") as outside:
        (good,) = outside.call("namespaces")["namespaces"]
        assert good["failure"] is None
        os.truncate(tmp_path / "disk0.img", 4096)
        done = host.write_blocks(2047, bytes(512))
        assert (done.status, done.do_not_retry) == (Status.WRITE_FAULT, True)
        (bad,) = outside.call("namespaces")["namespaces"]
        assert "4096" in bad["failure"]
        with pytest.raises(UserError, match="4096"):
            outside.call("resize", nsid=1, size="2M")


def test_reading_what_was_cut_off_is_an_error_that_no_retry_mends(tmp_path: Path) -> None:
    with bench(tmp_path, "1M") as (_, host):
        os.truncate(tmp_path / "disk0.img", 4096)
        done = host.transfer(Io.READ, 2047, host.allocate(4096), 512)
        assert (done.status, done.do_not_retry) == (Status.UNRECOVERED_READ_ERROR, True)
        assert host.log_page(LogPage.SMART)[0] == RELIABILITY


# Two servers


def test_a_second_server_of_an_image_is_not_enabled_until_the_first_has_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b").mkdir()
    with bench(tmp_path) as (_, first):
        image = str(tmp_path / "disk0.img")
        with controller(tmp_path / "b", image, control=str(tmp_path / "control")) as (device, second):
            with pytest.raises(AssertionError):
                enable_once(second)
            assert second.load(CSTS) == Csts.FATAL
            assert "in use" in caplog.text
            with ControlClient(tmp_path / "control") as outside, pytest.raises(UserError, match="another"):
                outside.call("resize", nsid=1, size="8M")
            assert first.write_blocks(0, b"mine" * 128).status == 0
            device.controller.namespaces[0].backing.sync()
            first.client.set_migration_state(MigrationState.STOP_COPY)
            second.disable()
            second.enable()
            second.create_queues()
            assert second.read_blocks(0, 512) == b"mine" * 128


def enable_once(host: Host) -> None:
    """Enable; AssertionError if the controller is not ready when the write has been answered."""
    host.until = lambda condition: _must(condition())  # type: ignore[method-assign]
    try:
        host.enable()
    finally:
        del host.until


def _must(condition: bool) -> None:
    assert condition


# Moving


@contextmanager
def shared(path: Path, here: str, there: str, **options: Any) -> Iterator[tuple[Host, Host]]:
    """A controller in use and the one that it moves to, whose images are the same by other names."""
    for name in "ab":
        (path / name).mkdir()
    with (
        controller(path / "a", here, **options) as (_, source),
        controller(path / "b", there, **options) as (_, target),
    ):
        source.enable()
        source.create_queues()
        yield source, target


def move(source: Host, target: Host) -> None:
    state = source.client.save()
    target.client.load_state(state)
    source.goes_on_at(target)


def test_what_was_acknowledged_is_there_behind_another_page_cache(tmp_path: Path) -> None:
    """As on hosts that share a disk. Both have read it before, and know it as it was."""
    with (
        loop_device(tmp_path / "disk.img", 4 * MIB) as here,
        loop_device(tmp_path / "disk.img") as there,
        shared(tmp_path, str(here), str(there)) as (a, b),
    ):
        for device in (here, there):
            assert device.read_bytes() == bytes(4 * MIB)
        for number, (source, target) in enumerate([(a, b), (b, a), (a, b)], 1):
            data = b"%d" % number * 4096
            assert source.write_blocks(64, data).status == 0
            move(source, target)
            assert target.read_blocks(64, 4096) == data


def test_a_source_has_nothing_left_in_its_page_cache_when_it_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = f"{tmp_path / 'disk.img'}:4M"
    with shared(tmp_path, image, image) as (source, _):
        assert source.write_blocks(0, bytes(512)).status == 0
        flush = FailingFlush()
        flush.errors.clear()
        monkeypatch.setattr(os, "fdatasync", flush)
        source.client.set_migration_state(MigrationState.STOP)
        assert flush.files == [(tmp_path / "disk.img").stat().st_ino]


@for_each([[MigrationState.STOP], [MigrationState.STOP_COPY], [2, MigrationState.STOP_COPY]], [False, True])
def test_a_controller_whose_disk_has_lost_something_does_not_move(
    way: list[int], copied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on here, where the guest is told. A copy of the image would be of what nobody knows."""
    way = [MigrationState.PRE_COPY if state == 2 else state for state in way]
    with bench(tmp_path, migrate_image=copied) as (_, host):
        assert host.write_blocks(0, b"here" * 128).status == 0
        monkeypatch.setattr(os, "fdatasync", FailingFlush())
        for state in way[:-1]:
            host.client.set_migration_state(state)
        with pytest.raises(RemoteError) as refused:
            host.client.set_migration_state(way[-1])
        assert refused.value.errno == errno.EIO
        assert host.read_blocks(0, 512) == b"here" * 128
        assert host.queues[1].do(Io.FLUSH, nsid=1).status == Status.WRITE_FAULT


def test_a_copy_that_was_not_kept_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination's disk fails once while the copy comes; the flush at its end would succeed."""
    images = [f"{tmp_path / name}.img:4M" for name in "ab"]
    with shared(tmp_path, *images, migrate_image=True) as (source, target):
        assert source.write_blocks(0, b"data" * 128).status == 0
        state = source.client.save()
        monkeypatch.setattr(os, "fdatasync", FailingFlush())
        monkeypatch.setattr("userdev_servers.nvme.copying.SYNC_EVERY", 1)
        with pytest.raises(RemoteError):
            target.client.load_state(state)


def test_only_one_of_two_hosts_runs_a_controller_with_its_image(tmp_path: Path) -> None:
    image = f"{tmp_path / 'disk.img'}:4M"
    with shared(tmp_path, image, image) as (source, target):
        state = source.client.save()
        target.client.set_migration_state(MigrationState.RESUMING)
        target.client.mig_data_write(state)
        target.client.set_migration_state(MigrationState.STOP)
        source.client.set_migration_state(MigrationState.RUNNING)  # cancelled: it goes on here
        with pytest.raises(RemoteError) as refused:
            target.client.set_migration_state(MigrationState.RUNNING)
        assert refused.value.errno == errno.EBUSY
        assert source.write_blocks(0, bytes(512)).status == 0
        move(source, target)
        with pytest.raises(RemoteError) as refused:
            source.client.set_migration_state(MigrationState.RUNNING)
        assert refused.value.errno == errno.EBUSY
        assert target.write_blocks(0, bytes(512)).status == 0


def test_a_source_that_is_left_behind_does_not_go_on_for_the_next_client(tmp_path: Path) -> None:
    """What it was runs elsewhere. Nobody is locked out: it is as after a reset, and enabling it asks for the image."""
    image = f"{tmp_path / 'disk.img'}:4M"
    with shared(tmp_path, image, image) as (source, target):
        move(source, target)
        source.client.close()
        follower = Host(Client.connect(f"unix:{tmp_path / 'a/nvme.sock'}"))
        assert follower.client.migration_state() is MigrationState.RUNNING
        assert follower.load(CSTS) == 0
        with pytest.raises(AssertionError):
            enable_once(follower)
        assert follower.load(CSTS) == Csts.FATAL
        follower.client.reset()
        target.client.set_migration_state(MigrationState.STOP_COPY)
        follower.enable()
        assert follower.create_queues().do(Io.FLUSH, nsid=1).status == 0
        follower.close()


def test_a_destination_that_waited_in_vain_takes_the_next_attempt(tmp_path: Path) -> None:
    image = f"{tmp_path / 'disk.img'}:4M"
    with shared(tmp_path, image, image) as (source, target):
        assert source.write_blocks(0, b"moves" * 512).status == 0
        target.client.set_migration_state(MigrationState.RESUMING)
        target.client.close()
        again = Host(Client.connect(f"unix:{tmp_path / 'b/nvme.sock'}"))
        move(source, again)
        assert again.read_blocks(0, 2560) == b"moves" * 512
        again.close()


def test_what_is_in_the_page_cache_is_on_its_way_to_the_disk_before_the_guest_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench(tmp_path) as (device, host):
        flush = FailingFlush()
        flush.errors.clear()
        monkeypatch.setattr(os, "fdatasync", flush)
        host.client.set_migration_state(MigrationState.PRE_COPY)
        device.controller.background.wait()
        assert len(flush.files) == 1
        host.client.set_migration_state(MigrationState.RUNNING)
        assert host.write_blocks(0, bytes(512)).status == 0
