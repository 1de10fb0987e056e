"""Memory that a front-end shares: found by both of its addresses, logged; wrong regions change nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from userdev.errors import ProtocolError
from vhost_user.memory import Iotlb, MemoryTable
from vhost_user.memory.table import MAX_SLOTS
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Region, XenRegion

MIB = 1 << 20
USER = 0x7F1234560000


@contextmanager
def memfd(size: int, *, sealed: bool = True) -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        yield fd
    finally:
        os.close(fd)


def maps_of(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"memfd:{name}")


def test_memory_is_found_by_the_guests_address_and_the_front_ends() -> None:
    table = MemoryTable()
    with memfd(MIB) as fd:
        table.set([Region(0x100000, MIB, USER, 0)], [fd])
        table.view(0x100010, 5)[:] = b"hello"
        assert os.pread(fd, 5, 0x10) == b"hello"
        assert bytes(table.user_view(USER + 0x10, 5)) == b"hello"
        assert table.user_ranges(USER + 0x10, 5) == [(0x100010, 5)]
    table.clear()


def test_two_regions_of_one_file_have_one_mapping() -> None:
    """As 4 GiB of a guest, of which the upper half is elsewhere in its address space."""
    table = MemoryTable()
    with memfd(2 * MIB) as fd:
        os.pwrite(fd, b"low", 0)
        os.pwrite(fd, b"high", MIB)
        table.set([Region(0, MIB, USER, 0), Region(1 << 32, MIB, USER + MIB, MIB)], [fd, fd])
        assert (bytes(table.view(0, 3)), bytes(table.view(1 << 32, 4))) == (b"low", b"high")
        assert maps_of("test") == 1
    table.clear()
    assert maps_of("test") == 0


@for_each_row([(0x3B10, 0), (0x3B10, 0x200), (1, 0xFFF)])
def test_neither_size_nor_offset_of_a_region_are_pages(size: int, offset: int) -> None:
    """Libblkio shares rings of 0x3b10 bytes."""
    table = MemoryTable()
    with memfd(MIB) as fd:
        table.set([Region(USER, size, USER, offset)], [fd])
        table.view(USER + size - 1, 1)[0] = 7
        assert os.pread(fd, 1, offset + size - 1) == b"\7"
        with pytest.raises(ProtocolError):
            table.view(USER + size - 1, 2)
    table.clear()


def test_bytes_that_go_on_in_the_next_region_are_two_views() -> None:
    table = MemoryTable()
    with memfd(MIB) as one, memfd(MIB) as two:
        table.set([Region(0, MIB, USER, 0), Region(MIB, MIB, USER + 4 * MIB, 0)], [one, two])
        assert [len(view) for view in table.views(MIB - 3, 10)] == [3, 7]
        with pytest.raises(ProtocolError):
            table.view(MIB - 3, 10)
        with pytest.raises(ProtocolError):
            table.views(2 * MIB - 3, 10)
    table.clear()


@for_each_row(
    [
        (Region(0, 0, USER, 0), errno.EINVAL),
        (Region(0, 1 << 63, USER, 0), errno.EINVAL),
        (Region(0, MIB + 1, USER, 0), errno.EINVAL),
        (Region(0, MIB, USER, 1), errno.EINVAL),
        (Region(0, MIB, USER, (1 << 64) - 4096), errno.EINVAL),
        (Region((1 << 64) - 4096, MIB, USER, 0), errno.EINVAL),
        (Region(0, MIB, (1 << 64) - 4096, 0), errno.EINVAL),
    ]
)
def test_a_wrong_region_is_refused_and_the_table_is_as_before(region: Region, number: int) -> None:
    table = MemoryTable()
    with memfd(MIB) as fd, memfd(MIB) as other:
        table.set([Region(0x5000000, MIB, USER, 0)], [fd])
        before, generation = fd_count(collect=True), table.generation
        with pytest.raises(ProtocolError) as caught:
            table.set([Region(0x8000000, MIB, USER, 0), region], [other, fd])
        with pytest.raises(ProtocolError) as again:
            table.add(region, fd)
        assert (caught.value.errno, again.value.errno) == (number, number)
        assert (fd_count(collect=True), table.generation, len(table)) == (before, generation, 1)
        table.view(0x5000000, MIB)
    table.clear()


def test_regions_that_overlap_are_refused() -> None:
    table = MemoryTable()
    with memfd(MIB) as fd:
        table.add(Region(0, MIB, USER, 0), fd)
        with pytest.raises(ProtocolError):
            table.add(Region(MIB - 1, MIB, USER + MIB, 0), fd)
        table.add(Region(MIB, MIB, USER + MIB, 0), fd)
    table.clear()


def test_a_region_of_xen_is_refused() -> None:
    """XEN_MMAP is not offered, and a message of that form can come all the same."""
    table = MemoryTable()
    with memfd(MIB) as fd:
        with pytest.raises(ProtocolError):
            table.set([XenRegion(0, MIB, USER, 0, 1, 0)], [fd])
        with pytest.raises(ProtocolError):
            table.add(XenRegion(0, MIB, USER, 0, 1, 0), fd)


def test_all_regions_may_have_the_same_address_in_the_front_end() -> None:
    """With GPA_ADDRESSES it is always 0."""
    table = MemoryTable()
    with memfd(MIB) as fd:
        table.set([Region(0, MIB, 0, 0), Region(MIB, MIB, 0, 0)], [fd, fd])
        assert len(table) == 2
    table.clear()


@for_each(["/dev/null", "pipe", "socket"])
def test_what_cannot_be_mapped_is_refused(path: str) -> None:
    table = MemoryTable()
    fds = [os.open(path, os.O_RDWR)] if path.startswith("/") else list(os.pipe()) if path == "pipe" else [os.eventfd(0)]
    with pytest.raises(ProtocolError):
        table.add(Region(0, MIB, USER, 0), fds[0])
    for fd in fds:
        os.close(fd)
    assert len(table) == 0


def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4096))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(ProtocolError) as caught:
        MemoryTable().add(Region(0, 4096, USER, 0), fd)
    os.close(fd)
    assert caught.value.errno == errno.EACCES


def test_a_region_is_removed_whatever_its_offset_says() -> None:
    table = MemoryTable()
    with memfd(MIB) as fd:
        table.add(Region(0, MIB, USER, 0), fd)
        table.remove(Region(0, MIB, USER, 12345))
        with pytest.raises(ProtocolError) as caught:
            table.remove(Region(0, MIB, USER, 0))
    assert caught.value.errno == errno.ENOENT
    assert (len(table), maps_of("test")) == (0, 0)
    with pytest.raises(ProtocolError):
        table.view(0, 1)


def test_a_region_that_comes_again_is_there_once() -> None:
    """QEMU 11.1 adds its regions again for a device that comes back on the same chardev."""
    table = MemoryTable()
    with memfd(MIB) as fd:
        for _ in range(2):
            table.add(Region(0, MIB, USER, 0), fd)
        assert len(table) == 1
        assert bytes(table.view(0, 1)) == b"\0"
    table.clear()


def test_there_are_as_many_regions_as_slots_and_no_more() -> None:
    table = MemoryTable()
    with memfd(MIB) as fd:
        for number in range(MAX_SLOTS):
            table.add(Region(number * MIB, MIB, USER + number * MIB, 0), fd)
        with pytest.raises(ProtocolError) as caught:
            table.add(Region(MAX_SLOTS * MIB, MIB, 0, 0), fd)
        table.add(Region(0, MIB, USER, 0), fd)
    assert (caught.value.errno, maps_of("test")) == (errno.ENOSPC, 1)
    table.clear()


def test_a_view_outlives_its_region() -> None:
    table = MemoryTable()
    with memfd(MIB) as fd:
        table.add(Region(0, MIB, USER, 0), fd)
        view = table.view(0, 4)
        table.clear()
        view[:] = b"late"
        assert os.pread(fd, 4, 0) == b"late"
    del view
    assert maps_of("test") == 0


def test_every_change_is_a_new_generation() -> None:
    """It only grows: what was looked up before is looked up again, however many changes were made meanwhile."""
    table = MemoryTable()
    iotlb = Iotlb(table)
    seen = [table.generation]
    upper = Region(MIB, MIB, USER, 0)
    with memfd(MIB) as fd:
        changes: list[Callable[[], None]] = [
            lambda: table.add(Region(0, MIB, USER, 0), fd),
            lambda: table.set([upper], [fd]),
            lambda: iotlb.handle(IotlbMessage(0, 0x1000, USER, 3, IotlbType.UPDATE)),
            lambda: iotlb.handle(IotlbMessage(0, 0x1000, 0, 0, IotlbType.INVALIDATE)),
            iotlb.clear,
            lambda: table.remove(upper),
            table.clear,
        ]
        for change in changes:
            change()
            seen.append(table.generation)
    assert seen == sorted(set(seen))


def test_a_region_may_end_where_all_addresses_do_and_is_seen_to_its_last_byte() -> None:
    table, last = MemoryTable(), (1 << 64) - MIB
    with memfd(MIB) as fd:
        table.set([Region(last, MIB, last, 0)], [fd])
        for view in (table.view, table.user_view):
            assert len(view(last, MIB)) == len(view(last + 1, MIB - 1)) + 1 == MIB
            with pytest.raises(ProtocolError):
                view(last + 1, MIB)
        table.clear()


@pytest.mark.parametrize("sealed", [True, False])
def test_no_descriptor_is_left_of_a_table_that_is_cleared(sealed: bool) -> None:
    before, table = fd_count(collect=True), MemoryTable()
    with memfd(MIB, sealed=sealed) as fd:
        table.add(Region(0, MIB, USER, 0), fd)
        table.check()
    table.clear()
    assert fd_count(collect=True) == before


def test_a_region_whose_file_shrinks_is_gone_when_it_is_looked_for() -> None:
    """The rest of the file would kill this process with SIGBUS."""
    program = """
import os, mmap
from userdev.errors import ProtocolError
from vhost_user.memory import MemoryTable
from vhost_user.wire.payloads import Region
fd, other, table = os.memfd_create("shrinks"), os.memfd_create("stays"), MemoryTable()
for file in (fd, other):
    os.ftruncate(file, 1 << 20)
table.set([Region(0, 1 << 20, 0, 0), Region(1 << 20, 1 << 20, 1 << 20, 0)], [fd, other])
os.ftruncate(fd, 4096)
for address in (0, 1 << 20):
    try:
        table.check()
        print(table.view(address + 0x8000, 1)[0])
    except ProtocolError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "0"]), done.stderr


def test_all_regions_of_a_file_that_shrinks_are_gone_at_the_first_look() -> None:
    table = MemoryTable()
    with memfd(2 * MIB, sealed=False) as fd, memfd(MIB, sealed=False) as other:
        table.set([Region(n * MIB, MIB, n * MIB, (n % 2) * MIB) for n in range(3)], [fd, fd, other])
        os.ftruncate(fd, 4096)
        with pytest.raises(ProtocolError):
            table.check()
        assert [region.guest for region in table.regions] == [2 * MIB]
        table.check()
        table.view(2 * MIB, 1)
    table.clear()


def test_memory_is_to_be_watched_as_long_as_some_of_it_can_shrink() -> None:
    table = MemoryTable()
    with memfd(MIB) as sealed, memfd(MIB, sealed=False) as fd:
        watched = []
        table.add(Region(0, MIB, 0, 0), sealed)
        watched.append(table.can_shrink)
        table.add(Region(MIB, MIB, MIB, 0), fd)
        watched.append(table.can_shrink)
        table.remove(Region(MIB, MIB, MIB, 0))
        watched.append(table.can_shrink)
    assert watched == [False, True, False]
    table.clear()


@for_each([(0, 1), (1, 0), (0, 0), (1, 1)], ids=str)
def test_memory_that_was_looked_at_and_has_gone_is_not_found_any_more(looked: tuple[int, int]) -> None:
    table = MemoryTable()
    with memfd(2 * MIB) as fd:
        table.set([Region(0, MIB, 0, 0), Region(MIB, MIB, MIB, MIB)], [fd, fd])
        for number in looked:
            table.view(number * MIB, 8)
        table.remove(Region(0, MIB, 0, 0))
        with pytest.raises(ProtocolError):
            table.view(0, 8)
        table.set([Region(0, MIB, 0, MIB)], [fd])
        os.pwrite(fd, b"new", MIB)
        assert bytes(table.view(0, 3)) == b"new"
        with pytest.raises(ProtocolError):
            table.view(MIB, 8)
    table.clear()


def refused(change: Callable[[], None]) -> None:
    with pytest.raises(ProtocolError):
        change()


def shrunk(table: MemoryTable, fd: int) -> None:
    os.ftruncate(fd, 4096)
    refused(table.check)


HERE, THERE, OVER = Region(0, MIB, USER, 0), Region(MIB, MIB, USER + MIB, 0), Region(0x1000, MIB, USER, 0)
CHANGES: dict[str, tuple[Callable[[MemoryTable, int, int], object], int]] = {
    "added again, as QEMU does whenever a device comes back": (lambda table, fd, _: table.add(HERE, fd), 1),
    "one more of the same file": (lambda table, fd, _: table.add(THERE, fd), 1),
    "one of another file": (lambda table, _, other: table.add(THERE, other), 2),
    "one that is over another": (lambda table, _, other: refused(lambda: table.add(OVER, other)), 1),
    "removed": (lambda table, _, __: table.remove(HERE), 0),
    "the same table": (lambda table, fd, _: table.set([HERE], [fd]), 1),
    "another table": (lambda table, _, other: table.set([HERE], [other]), 1),
    "a table of which one is over another": (
        lambda table, fd, other: refused(lambda: table.set([HERE, OVER], [other, fd])),
        1,
    ),
    "no table": (lambda table, _, __: table.clear(), 0),
    "a file that has shrunk": (lambda table, fd, _: shrunk(table, fd), 0),
}
"""What becomes of a table with one region, and how many files are mapped then."""


@for_each_row((name, *change) for name, change in CHANGES.items())
def test_a_file_is_mapped_once_and_as_long_as_one_of_its_regions_is_there(
    name: str, change: Callable[[MemoryTable, int, int], object], mapped: int
) -> None:
    table = MemoryTable()
    with memfd(MIB, sealed=False) as fd, memfd(MIB, sealed=False) as other:
        table.add(HERE, fd)
        for _ in range(3 if mapped else 1):
            change(table, fd, other)
            assert maps_of("test") == mapped, name
            if len(table) > 1:
                table.remove(THERE)
                assert maps_of("test") == 1, name
    table.clear()
    assert maps_of("test") == 0
