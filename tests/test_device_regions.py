"""Regions beside registers: mappable memory, ROM, device-specific regions, descriptors for ioeventfds."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import CONFIG, open_fds
from tests.everything_device import Everything
from userdev.errors import DeclarationError
from userdev_servers.edu import Edu
from userdev_servers.gpio import Gpio
from vfio_user import (
    Bar,
    ExtraRegion,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    ProtocolError,
    memory,
    register,
    state,
    stored_register,
)
from vfio_user.device import function_of
from vfio_user.pci import MsiCapability, MsiXCapability
from vfio_user.testing import RecordingLink, read_register, write_register
from vfio_user.wire.constants import IoFdType, RegionFlags

RW = RegionFlags.READ | RegionFlags.WRITE
PAGE = 4096


class Card(PciDevice):
    ids = PciIds(vendor=1, device=2)
    bars = (Bar(2, size=1 << 20, bits=64, prefetchable=True), Bar(4, size=32, io=True))
    extra_regions = (ExtraRegion(9, size=0x100, type=(0x80001AF4, 7)),)
    rom = b"\x55\xaa" + bytes(3000)

    rung: list[int] = state([])
    control: int = stored_register(bar=2, offset=0, width=4)
    frame: memoryview = memory(16 * PAGE, bar=2, offset=0x10000, mmap=True)
    queue: memoryview = memory(PAGE, bar=2, offset=0x40000, mmap=True)
    port: int = stored_register(bar=4, offset=8, width=2)
    private: memoryview = memory(64)
    note: int = stored_register(bar=9, offset=0x10, width=8)

    @register(bar=2, offset=0x1000, width=4)
    def bell(self, value: int) -> None:
        self.rung.append(value)


def test_every_region_is_described() -> None:
    device = Card()
    assert [(region.index, region.size, region.flags) for region in function_of(device).regions] == [
        (0, 0, 0),
        (1, 0, 0),
        (2, 1 << 20, RW | RegionFlags.MMAP),
        (3, 0, 0),
        (4, 32, RW),
        (5, 0, 0),
        (6, 4096, RegionFlags.READ),
        (7, 256, RW),
        (8, 0, 0),
        (9, 0x100, RW),
    ]
    assert function_of(device).regions[2].sparse == ((0x10000, 16 * PAGE), (0x40000, PAGE))
    assert function_of(device).regions[9].type == (0x80001AF4, 7)
    device.close()


def test_what_the_client_writes_through_its_mapping_the_device_sees_and_the_other_way_round() -> None:
    device = Card()
    info = function_of(device).regions[2]
    assert info.fd is not None
    offset, size = info.sparse[0]
    theirs = mmap.mmap(info.fd, size, offset=info.offset + offset)
    theirs[5:9] = b"from"
    assert bytes(device.frame[5:9]) == b"from"
    assert function_of(device).region_read(2, 0x10005, 4) == b"from"
    function_of(device).region_write(2, 0x10006, b"back")
    assert theirs[5:10] == b"fback"
    theirs.close()
    device.close()


def test_the_client_cannot_shrink_the_file_under_the_device() -> None:
    device = Card()
    info = function_of(device).regions[2]
    assert info.fd is not None
    with pytest.raises(PermissionError):
        os.ftruncate(info.fd, 0)
    assert fcntl.fcntl(info.fd, 1034) & 0x2  # F_GET_SEALS, F_SEAL_SHRINK
    device.close()


def test_registers_beside_mappable_memory_are_not_in_the_file() -> None:
    device = Card()
    write_register(device, 2, 0, 4, 7)
    assert read_register(device, 2, 0, 4) == 7
    assert not any(offset <= 0 < offset + size for offset, size in function_of(device).regions[2].sparse)
    device.close()


class Bell(PciDevice):
    """A register in a page that the client may map."""

    ids = PciIds(vendor=1, device=2)
    bars = (Bar(0, size=0x4000),)
    rung: list[int] = state([])

    def __init__(self) -> None:
        super().__init__()
        self.page = os.memfd_create("bell")
        os.ftruncate(self.page, 0x4000)
        self.let_map(0, 0x1000, PAGE, self.page)

    @register(bar=0, offset=0x1000, width=4)
    def bell(self, value: int) -> None:
        self.rung.append(value)

    def close(self) -> None:
        super().close()
        os.close(self.page)


def test_a_register_in_a_file_of_the_authors_own_hears_of_messages_only() -> None:
    device = Bell()
    info = function_of(device).regions[0]
    assert (info.flags, info.sparse) == (RW | RegionFlags.MMAP, ((0x1000, PAGE),))
    assert info.fd is not None
    with mmap.mmap(info.fd, PAGE, offset=info.offset + 0x1000) as theirs:
        theirs[0] = 1
    write_register(device, 0, 0x1000, 4, 2)
    assert device.rung == [2]
    assert os.pread(device.page, 1, 0x1000) == b"\1"
    device.close()


@for_each_row([(0x1000, 100), (0x10, PAGE), (0x4000, PAGE)])
def test_only_whole_pages_of_a_file_can_be_mapped(offset: int, size: int) -> None:
    device = Bell()
    with pytest.raises(ValueError, match="pages"):
        device.let_map(0, offset, size, device.page)
    device.close()


def test_each_page_of_a_file_may_be_mapped_the_last_one_too_one_after_the_other() -> None:
    device = Bell()
    device.let_map(0, 0x3000, PAGE, device.page)
    device.let_map(0, 0, PAGE, device.page)
    assert function_of(device).regions[0].sparse == ((0x1000, PAGE), (0x3000, PAGE), (0, PAGE))
    device.close()


def test_what_is_offered_of_a_region_has_to_be_there() -> None:
    device = Bell()
    with pytest.raises(ValueError, match="BAR 12"):
        device.let_map(12, 0, PAGE, device.page)
    with pytest.raises(ValueError, match="no register of 2 bytes at 0x1000 of BAR 0"):
        device.add_ioeventfd(0, 0x1000, 2)
    device.close()


def test_a_bar_is_in_one_file() -> None:
    device, other = Card(), Bell()
    with pytest.raises(ValueError, match="file"):
        device.let_map(2, 0x20000, PAGE, other.page)
    device.close()
    other.close()


def test_a_bar_is_declared_once() -> None:
    with pytest.raises(ValueError, match="BAR 0 is declared twice"):
        PciDevice(ids=PciIds(1, 2), bars=(Bar(0, size=4096), Bar(0, size=8192)))


def test_only_whole_pages_of_a_bar_can_be_mappable() -> None:
    for size, bar, offset in ((100, 0, 0), (PAGE, 0, 8), (PAGE, None, 0)):
        declared = memory(size, bar=bar, offset=offset, mmap=True)
        with pytest.raises(DeclarationError, match=r"D\.ram .*pages"):
            type("D", (PciDevice,), {"ids": PciIds(1, 2), "ram": declared})


def test_the_rom_can_be_read_in_one_go_and_not_written() -> None:
    device = Card()
    assert function_of(device).region_read(6, 0, 4096) == Card.rom.ljust(4096, b"\0")
    with pytest.raises(ProtocolError) as refusal:
        function_of(device).region_write(6, 0, b"\0")
    assert refusal.value.errno == errno.EINVAL
    device.close()


def test_the_whole_configuration_space_can_be_read_in_one_go() -> None:
    class Express(PciDevice):
        ids = PciIds(vendor=0x1AF4, device=2)
        capabilities = (PciExpress(),)

    assert function_of(Express()).region_read(CONFIG, 0, 4096)[:4] == b"\xf4\x1a\2\0"
    assert len(function_of(Card()).region_read(CONFIG, 0, 256)) == 256


def test_io_bars_and_device_specific_regions_have_registers_too() -> None:
    device = Card()
    write_register(device, 4, 8, 2, 0x1234)
    write_register(device, 9, 0x10, 8, 1 << 60)
    assert (device.port, device.note) == (0x1234, 1 << 60)
    with pytest.raises(ProtocolError):
        function_of(device).region_read(9, 0x100, 1)
    device.close()


def test_the_msix_table_finds_a_free_bar_or_shares_one() -> None:
    class Free(Card):
        interrupts = MsiX(2048)

    class Shared(Card):
        interrupts = MsiX(4, bar=2, offset=0x80000)

    free, shared = Free(), Shared()
    assert function_of(free).regions[0].size == 0x10000
    assert read_register(shared, 2, 0x80000 + 12, 4) == 1
    assert function_of(shared).regions[0].size == 0
    for device in (free, shared):
        device.close()


def test_what_does_not_fit_together_is_refused() -> None:
    """The known issue realize-crash."""

    class Crowded(PciDevice):
        ids = PciIds(0x1234, 0x5678)
        bars = (Bar(2, size=0x1000),)
        interrupts = MsiX(256, bar=2)

    with pytest.raises(ValueError, match=r"Crowded: BAR 2 has 0x1000 bytes, and the MSI-X table"):
        Crowded()


def sized(device: PciDevice, place: int, flags: int) -> int:
    """What is left of ones in an address register, as software looks for its size; 0 where there is none."""
    write_register(device, CONFIG, place, 4, 0xFFFF_FFFF & ~flags)
    return read_register(device, CONFIG, place, 4)


@for_each([Card, Everything, Edu, Gpio], ids=lambda make: make.__name__)
def test_what_software_finds_the_size_of_is_what_a_client_is_told(make: type[PciDevice]) -> None:
    """A region that a client maps and its guest does not see, or in another size, is nobody's."""
    device = make()
    told = {region.index: region.size for region in function_of(device).regions[:7]}
    found = dict.fromkeys(told, 0)
    upper = False
    for index in range(6):
        low = 0 if upper else sized(device, 0x10 + 4 * index, 0)
        upper = low & 0b111 == 0b100
        high = sized(device, 0x14 + 4 * index, 0) << 32 if upper else 0xFFFF_FFFF << 32 if low else 0
        found[index] = -(high | low & ~(3 if low & 1 else 15)) & (1 << 64) - 1
    rom = sized(device, 0x30, 1)
    found[6] = -rom & 0xFFFF_FFFF
    assert found == told
    device.close()


@for_each([Everything, Edu, Gpio], ids=lambda make: make.__name__)
def test_the_interrupts_that_a_guest_finds_are_those_that_a_client_is_told(make: type[PciDevice]) -> None:
    device = make()
    msi, msix = (device.config.find_capability(id) for id in (MsiCapability.id, MsiXCapability.id))
    found = [int(read_register(device, CONFIG, 0x3D, 1) != 0), 0, 0]
    if msi is not None:
        found[1] = 1 << (read_register(device, CONFIG, msi + 2, 2) >> 1 & 7)
    if msix is not None:
        found[2] = (read_register(device, CONFIG, msix + 2, 2) & 0x7FF) + 1
        table, pending = (read_register(device, CONFIG, msix + at, 4) for at in (4, 8))
        for place, size in ((table, 16 * found[2]), (pending, -(-found[2] // 64) * 8)):
            assert (place & ~7) + size <= function_of(device).regions[place & 7].size
        assert pending & 7 != table & 7 or not table & ~7 <= pending & ~7 < (table & ~7) + 16 * found[2]
    assert found == [irq.count for irq in function_of(device).irqs[:3]]
    device.close()


def test_an_ioeventfd_calls_the_writer_of_its_register() -> None:
    device = Card()
    client = RecordingLink()
    function_of(device).attach(client)
    fd = device.add_ioeventfd(2, 0x1000, 4)
    match = device.add_ioeventfd(2, 0x1000, 4, datamatch=9)
    assert [
        (each.fd, each.offset, each.size, each.flags, each.datamatch) for each in function_of(device).regions[2].io_fds
    ] == [
        (fd, 0x1000, 4, 0, 0),
        (match, 0x1000, 4, 1, 9),
    ]
    for each in (match, fd):
        os.eventfd_write(each, 1)
        client.watched[each]()
        client.watched[each]()
    assert device.rung == [9, 0]
    function_of(device).detach()
    assert client.watched == {}
    device.close()


def test_a_shadow_ioeventfd_calls_the_writer_with_what_was_written_last() -> None:
    device, client = Card(), RecordingLink()
    function_of(device).attach(client)
    fds = [device.add_ioeventfd(2, 0x1000, 4, shadow=True) for _ in range(2)]
    memory = function_of(device).regions[2].io_fds[0].shadow_fd
    assert memory is not None
    for place, entry in enumerate(function_of(device).regions[2].io_fds):
        assert (entry.type, entry.fd, entry.shadow_fd) == (IoFdType.IOEVENTFD_SHADOW, fds[place], memory)
        for value in (1, 0x100 + place):
            os.pwrite(memory, value.to_bytes(8, "little"), entry.shadow_offset)
            os.eventfd_write(fds[place], 1)
    for fd in fds:
        client.watched[fd]()
        client.watched[fd]()
    assert device.rung == [0x100, 0x101]
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)  # it would kill the device
    for _ in range(510):
        device.add_ioeventfd(2, 0x1000, 4, shadow=True)
    with pytest.raises(ValueError, match="512 shadow"):
        device.add_ioeventfd(2, 0x1000, 4, shadow=True)
    function_of(device).detach()
    device.close()


def test_closing_gives_back_every_descriptor() -> None:
    before = open_fds()
    device = Card()
    device.add_ioeventfd(2, 0x1000, 4)
    device.add_ioeventfd(2, 0x1000, 4, shadow=True)
    function_of(device).attach(RecordingLink())
    function_of(device).detach()
    device.close()
    assert open_fds() == before
