"""The header, BARs and capability chains, looked at as a guest's PCI core looks at them."""

from __future__ import annotations

import struct

import pytest

from tests.cases import for_each, for_each_row
from vfio_user.pci import (
    Bar,
    Capability,
    ConfigSpace,
    ExtendedVendor,
    MsiCapability,
    MsiXCapability,
    PciExpress,
    PciIds,
    PowerManagement,
    SerialNumber,
    VendorSpecific,
    build_config_space,
    check_bars,
)

IDS = PciIds(0x1AF4, 0x10F0, class_code=0x010802, revision=3, subsystem_vendor=0x1AF5, subsystem=0x1100)


def sized(bar: Bar) -> int:
    """Size a BAR: write all ones, read back."""
    config, _ = build_config_space(IDS, bars=[bar])
    offset = 0x10 + 4 * bar.index
    width = bar.bits // 8
    config.write(offset, b"\xff" * width)
    return config.get(offset, width)


def chain(config: ConfigSpace) -> list[int]:
    found, offset = [], config.get(0x34, 1)
    while offset:
        assert offset % 4 == 0
        found.append(config.get(offset, 1))
        offset = config.get(offset + 1, 1)
    return found


def extended_chain(config: ConfigSpace) -> list[tuple[int, int]]:
    found, offset = [], 0x100
    while offset and config.get(offset, 4):
        header = config.get(offset, 4)
        found.append((header & 0xFFFF, offset))
        offset = header >> 20
    return found


def test_the_header_says_who_the_function_is() -> None:
    config, _ = build_config_space(IDS, interrupt_pin=1)
    assert struct.unpack_from("<HH", config.read(0, 4)) == (0x1AF4, 0x10F0)
    assert config.read(0x08, 4) == b"\x03\x02\x08\x01"
    assert struct.unpack_from("<HH", config.read(0x2C, 4)) == (0x1AF5, 0x1100)
    assert config.get(0x3D, 1) == 1
    assert config.get(0x0E, 1) == 0
    assert len(config) == 256


def test_the_ids_cannot_be_written() -> None:
    config, _ = build_config_space(IDS)
    before = config.read(0, 12)
    for offset in (0, 8, 0x2C):
        config.write(offset, b"\xff\xff\xff\xff")
    assert config.read(0, 4) + config.read(8, 4) == before[:4] + before[8:]


@for_each_row(
    [
        (Bar(0, 0x1000), 0xFFFF_F000),
        (Bar(5, 16), 0xFFFF_FFF0),
        (Bar(1, 0x10000, prefetchable=True), 0xFFFF_0008),
        (Bar(2, 1 << 20, bits=64), 0xFFFF_FFFF_FFF0_0004),
        (Bar(4, 8 << 30, bits=64, prefetchable=True), 0xFFFF_FFFE_0000_000C),
        (Bar(3, 64, io=True), 0xFFFF_FFC1),
        (Bar(3, 4, io=True), 0xFFFF_FFFD),
    ]
)
def test_sizing_a_bar_by_all_ones_tells_its_kind_and_size(bar: Bar, read_back: int) -> None:
    assert sized(bar) == read_back


def test_a_bar_takes_an_address_and_keeps_its_kind() -> None:
    config, _ = build_config_space(IDS, bars=[Bar(0, 0x1000, prefetchable=True)])
    config.write(0x10, struct.pack("<I", 0xFEBF_1ABC))
    assert config.get(0x10, 4) == 0xFEBF_1008


def test_a_64_bit_bar_takes_an_address_above_4_gib() -> None:
    config, _ = build_config_space(IDS, bars=[Bar(2, 1 << 20, bits=64)])
    config.write(0x18, struct.pack("<I", 0xFEB0_0000))
    config.write(0x1C, struct.pack("<I", 0x12))
    assert config.get(0x18, 8) == 0x12_FEB0_0004


def test_a_rom_has_a_size_and_an_enable_bit() -> None:
    config, _ = build_config_space(IDS, rom_size=0x10000)
    config.write(0x30, struct.pack("<I", 0xFFFF_F800))
    assert config.get(0x30, 4) == 0xFFFF_0000
    config.write(0x30, struct.pack("<I", 0xFEA0_0001))
    assert config.get(0x30, 4) == 0xFEA0_0001


@for_each_row([([], 0x0144), ([Bar(0, 0x1000)], 0x0146), ([Bar(0, 16, io=True)], 0x0145)])
def test_the_command_register_has_the_bits_that_the_function_can_use(bars: list[Bar], writable: int) -> None:
    config, _ = build_config_space(IDS, bars=bars)
    config.write(0x04, b"\xff\xff")
    assert config.get(0x04, 2) == writable
    config, _ = build_config_space(IDS, bars=bars, interrupt_pin=1)
    config.write(0x04, b"\xff\xff")
    assert config.get(0x04, 2) == writable | 1 << 10


def test_capabilities_form_a_chain_in_the_order_given() -> None:
    capabilities: list[Capability] = [
        PowerManagement(),
        MsiCapability(8, maskable=True),
        MsiXCapability(16, table_bar=4, table_offset=0x100, pba_bar=4, pba_offset=0x800),
        VendorSpecific(b"abc"),
    ]
    config, offsets = build_config_space(IDS, capabilities=capabilities)
    assert chain(config) == [0x01, 0x05, 0x11, 0x09]
    assert config.get(0x06, 2) & 0x10
    msix = offsets[0x11]
    assert config.get(msix + 2, 2) == 15
    assert (config.get(msix + 4, 4), config.get(msix + 8, 4)) == (0x104, 0x804)
    vendor = offsets[0x09]
    assert config.get(vendor + 2, 1) == 6
    assert config.read(vendor + 3, 3) == b"abc"


def test_without_capabilities_there_is_no_list() -> None:
    config, _ = build_config_space(IDS)
    assert config.get(0x06, 2) & 0x10 == 0
    assert chain(config) == []


def test_extended_capabilities_make_the_space_4096_bytes() -> None:
    config, _ = build_config_space(IDS, capabilities=[SerialNumber(0x0102030405060708), ExtendedVendor(7, b"hello", 2)])
    assert len(config) == 4096
    assert [id for id, _ in extended_chain(config)] == [0x03, 0x0B]
    (_, serial), (_, vendor) = extended_chain(config)
    assert config.get(serial + 4, 8) == 0x0102030405060708
    assert config.get(vendor + 4, 4) == 7 | 2 << 16 | 13 << 20
    assert config.read(vendor + 8, 5) == b"hello"


def test_an_express_function_says_whether_it_can_be_reset() -> None:
    for flr in (True, False):
        config, offsets = build_config_space(IDS, capabilities=[PciExpress(flr=flr)])
        assert bool(config.get(offsets[0x10] + 4, 4) & 1 << 28) is flr
        assert len(config) == 4096


def test_vendor_bytes_are_writable_where_the_mask_says() -> None:
    config, offsets = build_config_space(IDS, capabilities=[VendorSpecific(b"\x11\x22", writable=b"\x00\xf0")])
    config.write(offsets[0x09] + 3, b"\xff\xff")
    assert config.read(offsets[0x09] + 3, 2) == b"\x11\xf2"


@for_each_row([(1, False, False, 10), (1, True, False, 14), (32, False, True, 20), (32, True, True, 24)])
def test_msi_has_one_of_four_sizes(vectors: int, address64: bool, maskable: bool, size: int) -> None:
    assert MsiCapability(vectors, address64, maskable).size == size


def test_capabilities_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        build_config_space(IDS, capabilities=[VendorSpecific(bytes(200))])


@for_each(
    [
        [Bar(6, 0x1000)],
        [Bar(0, 0x1800)],
        [Bar(0, 8)],
        [Bar(5, 0x1000, bits=64)],
        [Bar(0, 0x1000, bits=64), Bar(1, 0x1000)],
        [Bar(0, 0x1000), Bar(0, 0x1000)],
        [Bar(0, 512, io=True)],
        [Bar(0, 16, io=True, prefetchable=True)],
        [Bar(0, 16, io=True, bits=64)],
        [Bar(0, 1 << 32)],
    ]
)
def test_bars_that_pci_cannot_express_are_refused(bars: list[Bar]) -> None:
    with pytest.raises(ValueError, match="BAR"):
        check_bars(bars)
