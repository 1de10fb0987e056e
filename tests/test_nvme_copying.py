"""An image that migrates along: the other host's has what this one's has, and where they share it nothing is lost."""

from __future__ import annotations

import filecmp
import itertools
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.nvme_kit import Host, controller, loop_device
from userdev.control import ControlClient
from userdev.errors import ProtocolError, UserError
from userdev_servers.block.backing import Backing
from userdev_servers.block.images import open_images
from userdev_servers.nvme import Nvme
from userdev_servers.nvme.copying import ImageCopy
from userdev_servers.nvme.spec import Io
from vfio_user.client import RemoteError
from vfio_user.device import function_of
from vfio_user.wire.constants import MigrationState

MIB = 1 << 20
BLOCK = 512


def test_what_comes_is_brought_to_the_disk_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (backing,) = open_images(f"{tmp_path / 'disk.img'}:1M", BLOCK)
    syncs: list[int] = []
    at = 0
    monkeypatch.setattr("userdev_servers.nvme.copying.SYNC_EVERY", 10)
    monkeypatch.setattr(backing, "write_back", lambda: syncs.append(at))
    copy = ImageCopy("an image", backing)
    copy.begin_loading(MIB)
    for size in (5, 5, 5, 4, 1, 30, 9):
        copy.write(at, bytes(size))
        at += size
    assert syncs == [5, 19, 20]
    copy.end()
    backing.close()


def test_nothing_is_taken_that_comes_behind_the_end_of_a_copy(tmp_path: Path) -> None:
    (backing,) = open_images(f"{tmp_path / 'disk.img'}:1M", BLOCK)
    copy = ImageCopy("an image", backing)
    copy.begin_loading(MIB)
    copy.write(0, b"first")
    copy.end()
    copy.write(0, b"other")
    copy.clear(0, MIB)
    assert backing.read_bytes(5, 0) == b"first"
    assert copy.take_written() == []
    backing.close()


@contextmanager
def pair(path: Path, *, size: str = "4M", there: str = "") -> Iterator[tuple[Host, Host]]:
    """A controller in use and the one that it moves to, each with an image of its own unless `there` says which."""
    for name in "ab":
        (path / name).mkdir()
    image = there or f"{path / 'b/disk.img'}:1M"
    with (
        controller(path / "a", f"{path / 'a/disk.img'}:{size}", migrate_image=True, control=str(path / "control")) as (
            _,
            source,
        ),
        controller(path / "b", image, migrate_image=True, serial="other") as (_, target),
    ):
        source.enable()
        source.create_queues()
        target.client.set_migration_state(MigrationState.RESUMING)
        yield source, target


def move_some(source: Host, target: Host) -> int:
    """What the source has at this moment; its bytes."""
    moved = 0
    while piece := source.client.mig_data_read(MIB):
        target.client.mig_data_write(piece)
        moved += len(piece)
    return moved


def finish(source: Host, target: Host) -> None:
    """Stop here, go on there; the guest's memory and driver follow."""
    source.client.set_migration_state(MigrationState.STOP_COPY)
    move_some(source, target)
    source.goes_on_at(target)


def same(path: Path) -> bool:
    return filecmp.cmp(path / "a/disk.img", path / "b/disk.img", shallow=False)


def write(host: Host, block: int, data: bytes) -> None:
    assert host.write_blocks(block, data).status == 0
    host._free -= -(-len(data) // 4096) * 4096  # the buffer is used again


def test_what_is_written_before_and_during_the_copy_arrives(tmp_path: Path) -> None:
    chance = random.Random(1)
    with pair(tmp_path) as (source, target):
        for _ in range(30):
            write(source, chance.randrange(8000), chance.randbytes(chance.choice([512, 4096])))
        source.client.set_migration_state(MigrationState.PRE_COPY)
        assert move_some(source, target) > 30 * 512
        for _ in range(3):
            for _ in range(20):
                write(source, chance.randrange(8000), chance.randbytes(2048))
            move_some(source, target)
        for _ in range(10):
            write(source, chance.randrange(8000), chance.randbytes(2048))
        finish(source, target)
        assert same(tmp_path)
        write(target, 77, b"after" * 1024)
        assert target.read_blocks(77, 5120) == b"after" * 1024
    assert not same(tmp_path), "the source's image stays as it was"


def test_a_reader_comes_to_an_end_while_the_guest_goes_on_writing(tmp_path: Path) -> None:
    """Every round of what was written meanwhile ends with a read that gives nothing."""
    with pair(tmp_path) as (source, _):
        source.client.set_migration_state(MigrationState.PRE_COPY)
        for _ in range(100):
            write(source, 0, b"busy" * 128)
            if not source.client.mig_data_read(MIB):
                break
        else:
            pytest.fail("there was always more")


def test_what_is_there_already_gives_way(tmp_path: Path) -> None:
    """The other host has an image from a migration before; holes here are zeros there."""
    (tmp_path / "old.img").write_bytes(random.Random(2).randbytes(4 * MIB))
    with pair(tmp_path, there=str(tmp_path / "old.img")) as (source, target):
        write(source, 5000, b"new" * 512)
        finish(source, target)
        assert filecmp.cmp(tmp_path / "old.img", tmp_path / "a/disk.img", shallow=False)


CHANGES: dict[str, Callable[[Host], None]] = {
    "zeroed": lambda host: _expect(host, Io.WRITE_ZEROES, cdw10=8, cdw12=15),
    "zeroed, deallocated": lambda host: _expect(host, Io.WRITE_ZEROES, cdw10=8, cdw12=15 | 1 << 25),
    "deallocated": lambda host: _deallocate(host, 8, 16),
}


@for_each(CHANGES.values(), ids=CHANGES.keys())
def test_blocks_that_are_cleared_during_the_copy_are_cleared_there(
    change: Callable[[Host], None], tmp_path: Path
) -> None:
    with pair(tmp_path) as (source, target):
        write(source, 0, b"x" * 16384)
        source.client.set_migration_state(MigrationState.PRE_COPY)
        move_some(source, target)
        change(source)
        finish(source, target)
        assert same(tmp_path)
        assert target.read_blocks(8, 8192) == bytes(8192)


def test_the_copy_may_be_a_block_device(tmp_path: Path) -> None:
    with loop_device(tmp_path / "there.img", 4 * MIB) as there, pair(tmp_path, there=str(there)) as (source, target):
        write(source, 5000, b"new" * 512)
        source.client.set_migration_state(MigrationState.PRE_COPY)
        move_some(source, target)
        write(source, 6000, b"more" * 512)
        finish(source, target)
        assert (tmp_path / "there.img").read_bytes() == (tmp_path / "a/disk.img").read_bytes()


def test_a_copy_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with loop_device(tmp_path / "there.img", MIB) as there, pair(tmp_path, there=str(there)) as (source, target):
        source.client.set_migration_state(MigrationState.PRE_COPY)
        with pytest.raises(RemoteError):
            move_some(source, target)
        source.client.set_migration_state(MigrationState.RUNNING)
        write(source, 5000, b"here" * 512)


def test_a_namespace_that_grew_during_the_copy_is_as_large_there(tmp_path: Path) -> None:
    with pair(tmp_path) as (source, target):
        source.client.set_migration_state(MigrationState.PRE_COPY)
        move_some(source, target)
        with ControlClient(tmp_path / "control") as control:
            control.call("resize", nsid=1, size="6M")
        finish(source, target)
        assert same(tmp_path)
        write(target, 6 * MIB // BLOCK - 1, b"z" * 512)


def test_an_image_that_both_hosts_share_is_left_alone(tmp_path: Path) -> None:
    """What was read for the copy is old when it arrives: writing it would undo what the guest wrote since."""
    with pair(tmp_path, there=str(tmp_path / "a/disk.img")) as (source, target):
        write(source, 0, b"old" * 512)
        source.client.set_migration_state(MigrationState.PRE_COPY)
        old = source.client.mig_data_read(MIB)
        write(source, 0, b"new" * 512)
        target.client.mig_data_write(old)
        assert source.read_blocks(0, 1536) == b"new" * 512
        finish(source, target)
        assert target.read_blocks(0, 1536) == b"new" * 512


def test_a_state_with_images_is_no_state_without(tmp_path: Path) -> None:
    with controller(tmp_path, f"{tmp_path / 'a.img'}:1M", migrate_image=True) as (_, source):
        source.client.set_migration_state(MigrationState.STOP_COPY)
        state = source.client.mig_data_read(MIB)
    device = Nvme(image=f"{tmp_path / 'b.img'}:1M")
    try:
        migration = function_of(device).migration
        assert migration is not None
        migration.set_state(MigrationState.RESUMING)
        with pytest.raises(ProtocolError, match="namespace 1"):
            migration.write_state(state)
    finally:
        device.close()


def test_a_full_disk_there_refuses_the_state_and_the_guest_goes_on_here(tmp_path: Path) -> None:
    with pair(tmp_path) as (source, target):
        write(source, 4000, b"kept" * 1024)
        source.client.set_migration_state(MigrationState.PRE_COPY)
        with full_at(2 * MIB), pytest.raises(RemoteError):
            move_some(source, target)
        source.client.set_migration_state(MigrationState.RUNNING)
        write(source, 4000, b"more" * 1024)
        assert source.read_blocks(4000, 4096) == b"more" * 1024


def test_an_image_that_cannot_be_read_ends_the_migration_and_not_the_guest(tmp_path: Path) -> None:
    with pair(tmp_path) as (source, target), ControlClient(tmp_path / "control") as outside:
        write(source, 4000, b"kept" * 1024)
        outside.call("break", nsid=1, operation="read", first=4000, blocks=1)
        source.client.set_migration_state(MigrationState.PRE_COPY)
        with pytest.raises(RemoteError):
            move_some(source, target)
        source.client.set_migration_state(MigrationState.RUNNING)
        outside.call("mend", nsid=1)
        assert source.read_blocks(4000, 4096) == b"kept" * 1024


def test_a_read_only_image_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "ro.img").write_bytes(bytes(MIB))
    device = Nvme(image=f"{tmp_path / 'ro.img'}:ro,{tmp_path / 'rw.img'}:1M", migrate_image=True)
    assert [each.name for each in device.storages()] == ["namespace 2"]
    device.close()


def test_the_copy_says_what_is_in_the_image_not_where_its_holes_are(tmp_path: Path) -> None:
    """So that states can be compared."""
    data = b"data" * 1024
    images = {"sparse": tmp_path / "sparse.img", "full": tmp_path / "full.img"}
    images["full"].write_bytes(bytes(3 * MIB))
    states = []
    for image in images.values():
        device = Nvme(image=f"{image}:3M", migrate_image=True, serial="same")
        device.controller.namespaces[0].backing.write([memoryview(data)], MIB + 512)
        migration = function_of(device).migration
        assert migration is not None
        migration.set_state(MigrationState.STOP_COPY)
        states.append(migration.read_state(8 * MIB))
        device.close()
    assert states[0] == states[1]
    assert len(states[0]) < MIB, "zeros cost nothing"


def test_what_was_written_is_told_whole_whatever_lies_over_what(tmp_path: Path) -> None:
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M", migrate_image=True)
    (copy,), backing = device.storages(), device.controller.namespaces[0].backing
    drawn = random.Random(4)
    tries = [[(0, 8), (2, 2), (4, 6)], [(4, 4), (0, 4)], [(0, 1), (2, 1)]]
    tries += [[(drawn.randrange(40), drawn.randrange(1, 12)) for _ in range(drawn.randrange(8))] for _ in range(200)]
    for ranges in tries:
        copy.begin_saving()
        assert backing.log is not None
        backing.log.extend(ranges)
        told = copy.take_written()
        assert [place for at, size in told for place in range(at, at + size)] == sorted(
            {place for at, size in ranges for place in range(at, at + size)}
        ), ranges
        assert all(sum(one) < other[0] for one, other in itertools.pairwise(told)), ranges
    device.close()


def test_writes_are_told_once_and_joined(tmp_path: Path) -> None:
    device = Nvme(image=f"{tmp_path / 'disk.img'}:1M", migrate_image=True)
    (copy,), backing = device.storages(), device.controller.namespaces[0].backing
    assert isinstance(backing, Backing)
    copy.begin_saving()
    for offset in (8192, 0, 4096, 512, 65536):
        backing.write([memoryview(bytes(4096))], offset)
    assert copy.take_written() == [(0, 12288), (65536, 4096)]
    assert copy.take_written() == []
    copy.end()
    backing.write([memoryview(bytes(512))], 0)
    assert copy.take_written() == []
    device.close()


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _expect(host: Host, opcode: int, **fields: int) -> None:
    assert host.queues[1].do(opcode, nsid=1, **fields).status == 0


def _deallocate(host: Host, first: int, count: int) -> None:
    at = host.allocate(4096)
    host.write(at, count.to_bytes(4, "little").rjust(8, b"\0") + first.to_bytes(8, "little"))
    _expect(host, Io.DATASET_MANAGEMENT, prp1=at, cdw10=0, cdw11=4)


def test_what_is_in_memory_goes_along_unasked(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with (
        controller(tmp_path / "a", "memory:1M") as (here, source),
        controller(tmp_path / "b", "memory:1M") as (there, target),
    ):
        assert here.serial != there.serial, "a guest takes two controllers of one serial number for the same"
        source.enable()
        source.create_queues()
        write(source, 100, b"blocks" * 1024)
        target.client.set_migration_state(MigrationState.RESUMING)
        finish(source, target)
        assert target.read_blocks(100, 6144) == b"blocks" * 1024
        assert there.serial == here.serial


def test_memory_needs_a_size(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory"):
        Nvme(image="memory")
