"""Configuration spaces, byte for byte: what each register has after reset, and what of it software changes.

The numbers are PCI's (Local Bus 3.0 chapter 6, Express Base chapter 7, PM Interface 1.2), written down once more here:
what no row has is zero and stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    Placed,
    PowerManagement,
    SerialNumber,
    VendorSpecific,
    build_config_space,
)
from vfio_user.pci.bar import round_up_power_of_two

Register = tuple[int, int, int, int, int]
"""Offset, bytes, value after reset, bits that software writes, bits that a 1 clears."""

IDS = PciIds(0x1234, 0xABCD, class_code=0x010802, revision=7, subsystem_vendor=0x5678, subsystem=0x9ABC)
HEADER: tuple[Register, ...] = (
    (0x00, 2, 0x1234, 0, 0),
    (0x02, 2, 0xABCD, 0, 0),
    (0x08, 1, 7, 0, 0),
    (0x09, 3, 0x010802, 0, 0),
    (0x0C, 1, 0, 0xFF, 0),  # cache line size
    (0x0D, 1, 0, 0xFF, 0),  # latency timer
    (0x2C, 2, 0x5678, 0, 0),
    (0x2E, 2, 0x9ABC, 0, 0),
    (0x3C, 1, 0, 0xFF, 0),  # interrupt line
)
STATUS_ERRORS = 0xF900


def command(bits: int, *, status: int = 0) -> tuple[Register, ...]:
    return ((0x04, 2, 0, bits, 0), (0x06, 2, status, 0, STATUS_ERRORS))


@dataclass(frozen=True)
class Case:
    registers: tuple[Register, ...]
    size: int = 256
    bars: tuple[Bar, ...] = ()
    rom_size: int = 0
    pin: int = 0
    capabilities: tuple[Capability | Placed, ...] = field(default_factory=tuple)

    def build(self) -> ConfigSpace:
        config, _ = build_config_space(
            IDS, bars=self.bars, rom_size=self.rom_size, interrupt_pin=self.pin, capabilities=self.capabilities
        )
        return config


MASTER, PARITY, SERR, IO, MEMORY, INTX_DISABLE = 1 << 2, 1 << 6, 1 << 8, 1 << 0, 1 << 1, 1 << 10
ALWAYS = MASTER | PARITY | SERR


def conventional(capability: Capability | Placed, *registers: Register) -> Case:
    """One capability at 0x40, whose registers count from there."""
    bare = capability.capability if isinstance(capability, Placed) else capability
    shifted = tuple((0x40 + at, *rest) for at, *rest in registers)
    first = ((0x34, 1, 0x40, 0, 0), (0x40, 1, bare.id, 0, 0))
    whole = (*command(ALWAYS, status=1 << 4), *first, *shifted)
    size = 4096 if isinstance(bare, PciExpress) else 256
    return Case(whole, size, capabilities=(capability,))  # type: ignore[arg-type]


def extended(capability: Capability, version: int, *registers: Register) -> Case:
    shifted = tuple((0x100 + at, *rest) for at, *rest in registers)
    header = (0x100, 4, capability.id | version << 16, 0, 0)
    return Case((*command(ALWAYS), header, *shifted), 4096, capabilities=(capability,))  # type: ignore[arg-type]


EXPRESS: tuple[Register, ...] = (
    (0x02, 2, 2, 0, 0),  # an endpoint, version 2
    (0x0A, 2, 0, 0, 0xF),
    (0x0C, 4, 0x11, 0, 0),  # 2.5 GT/s, one lane
    (0x10, 2, 0, 0x1CB, 0),
    (0x12, 2, 0x11, 0, 0),
    (0x28, 2, 0, 0x7FFF, 0),
    (0x2C, 4, 2, 0, 0),
    (0x30, 2, 1, 0xFFF, 0),
)

CASES = {
    "nothing": Case(command(ALWAYS)),
    "a 32-bit BAR": Case((*command(ALWAYS | MEMORY), (0x10, 4, 0, 0xFFFFF000, 0)), bars=(Bar(0, 0x1000),)),
    "the smallest BARs": Case(
        (*command(ALWAYS | MEMORY | IO), (0x14, 4, 0, 0xFFFFFFF0, 0), (0x24, 4, 1, 0xFFFFFFFC, 0)),
        bars=(Bar(1, 16), Bar(5, 4, io=True)),
    ),
    "I/O alone": Case((*command(ALWAYS | IO), (0x18, 4, 1, 0xFFFFFF00, 0)), bars=(Bar(2, 256, io=True),)),
    "a 64-bit BAR": Case(
        (*command(ALWAYS | MEMORY), (0x18, 4, 0xC, 0, 0), (0x1C, 4, 0, 0xFFFFFFFE, 0)),
        bars=(Bar(2, 1 << 33, bits=64, prefetchable=True),),
    ),
    "a small 64-bit BAR": Case(
        (*command(ALWAYS | MEMORY), (0x20, 4, 4, 0xFFFF0000, 0), (0x24, 4, 0, 0xFFFFFFFF, 0)),
        bars=(Bar(4, 0x10000, bits=64),),
    ),
    "a prefetchable BAR": Case(
        (*command(ALWAYS | MEMORY), (0x10, 4, 8, 0x80000000, 0)), bars=(Bar(0, 1 << 31, prefetchable=True),)
    ),
    "a ROM": Case((*command(ALWAYS | MEMORY), (0x30, 4, 0, 0xFFFF8001, 0)), rom_size=0x8000),
    "the smallest ROM": Case((*command(ALWAYS | MEMORY), (0x30, 4, 0, 0xFFFFF801, 0)), rom_size=2048),
    "a pin": Case((*command(ALWAYS | INTX_DISABLE), (0x3D, 1, 3, 0, 0)), pin=3),
    "power management": conventional(PowerManagement(), (2, 2, 3, 0, 0), (4, 2, 0, 3, 0)),
    "all power states": conventional(
        PowerManagement(no_soft_reset=True, d1=True, d2=True), (2, 2, 3 | 1 << 9 | 1 << 10, 0, 0), (4, 2, 8, 3, 0)
    ),
    "D2 without D1": conventional(PowerManagement(d2=True), (2, 2, 3 | 1 << 10, 0, 0), (4, 2, 0, 3, 0)),
    "Express with FLR": conventional(
        PciExpress(), *EXPRESS, (0x04, 4, 1 << 15 | 1 << 28, 0, 0), (0x08, 2, 0x2810, 0xFFFF, 0)
    ),
    "Express without": conventional(
        PciExpress(flr=False), *EXPRESS, (0x04, 4, 1 << 15, 0, 0), (0x08, 2, 0x2810, 0x7FFF, 0)
    ),
    "MSI": conventional(
        MsiCapability(),
        (2, 2, 1 << 7, 0x71, 0),
        (4, 4, 0, 0xFFFFFFFC, 0),
        (8, 4, 0, 0xFFFFFFFF, 0),
        (12, 2, 0, 0xFFFF, 0),
    ),
    "MSI with masks": conventional(
        MsiCapability(8, maskable=True),
        (2, 2, 1 << 7 | 1 << 8 | 3 << 1, 0x71, 0),
        (4, 4, 0, 0xFFFFFFFC, 0),
        (8, 4, 0, 0xFFFFFFFF, 0),
        (12, 2, 0, 0xFFFF, 0),
        (16, 4, 0, 0xFF, 0),
    ),
    "MSI of 32 bits with masks": conventional(
        MsiCapability(32, address64=False, maskable=True),
        (2, 2, 1 << 8 | 5 << 1, 0x71, 0),
        (4, 4, 0, 0xFFFFFFFC, 0),
        (8, 2, 0, 0xFFFF, 0),
        (12, 4, 0, 0xFFFFFFFF, 0),
    ),
    "MSI of 32 bits": conventional(
        MsiCapability(2, address64=False), (2, 2, 1 << 1, 0x71, 0), (4, 4, 0, 0xFFFFFFFC, 0), (8, 2, 0, 0xFFFF, 0)
    ),
    "MSI-X": conventional(
        MsiXCapability(2048, table_bar=2, table_offset=0x1000, pba_bar=4, pba_offset=0x8),
        (2, 2, 2047, 0xC000, 0),
        (4, 4, 0x1002, 0, 0),
        (8, 4, 0xC, 0, 0),
    ),
    "vendor-specific": conventional(
        VendorSpecific(b"\x11\x22\x33", writable=b"\xf0\x00\xff"), (2, 1, 6, 0, 0), (3, 3, 0x332211, 0xFF00F0, 0)
    ),
    "vendor-specific and empty": conventional(VendorSpecific(b""), (2, 1, 3, 0, 0)),
    "vendor-specific with a short mask": conventional(
        VendorSpecific(b"\x11\x22\x33", writable=b"\xff"), (2, 1, 6, 0, 0), (3, 3, 0x332211, 0xFF, 0)
    ),
    "read-only": conventional(
        Placed(VendorSpecific(b"\x11", writable=b"\xff"), read_only=True), (2, 1, 4, 0, 0), (3, 1, 0x11, 0, 0)
    ),
    "serial number": extended(SerialNumber(0x0123456789ABCDEF), 1, (4, 8, 0x0123456789ABCDEF, 0, 0)),
    "a vendor's extended one": extended(
        ExtendedVendor(0x42, b"\xaa\xbb", revision=5, writable=b"\x0f"),
        1,
        (4, 4, 0x42 | 5 << 16 | 10 << 20, 0, 0),
        (8, 2, 0xBBAA, 0x0F, 0),
    ),
}


def laid_out(case: Case) -> tuple[bytes, bytes, bytes]:
    """After reset, writable, cleared by ones: a byte each for the whole space."""
    stores = bytearray(case.size), bytearray(case.size), bytearray(case.size)
    for at, size, *bits in (*HEADER, *case.registers):
        for store, each in zip(stores, bits, strict=True):
            store[at : at + size] = each.to_bytes(size, "little")
    value, writable, cleared = map(bytes, stores)
    return value, writable, cleared


@for_each(CASES.values(), ids=CASES)
def test_every_byte_has_its_value_and_takes_what_it_may(case: Case) -> None:
    value, writable, cleared = laid_out(case)
    config = case.build()
    assert config.read(0, len(config)) == value
    ones = bytes(b"\xff" * case.size)
    config.write(0, ones)
    written = bytes((old & ~w & ~c) | w for old, w, c in zip(value, writable, cleared, strict=True))
    assert config.read(0, len(config)) == written
    config.write(0, bytes(case.size))
    assert config.read(0, len(config)) == bytes(old & ~w for old, w in zip(written, writable, strict=True))
    config.reset()
    assert config.read(0, len(config)) == value == config.after_reset(0, case.size)


@for_each(CASES.values(), ids=CASES)
def test_a_byte_takes_what_it_may_when_it_is_written_alone(case: Case) -> None:
    """And leaves its neighbours; an error bit that the device has set stays until a 1 is written to it."""
    value, writable, cleared = laid_out(case)
    config = case.build()
    raised = bytes(old | c for old, c in zip(value, cleared, strict=True))
    config.data[:] = raised
    expected = bytearray(raised)
    for at in range(case.size):
        for byte in (0x5A, 0xA5, 0x00):
            config.write(at, bytes([byte]))
            expected[at] = ((expected[at] & ~writable[at]) | (byte & writable[at])) & ~(byte & cleared[at])
            if writable[at] or cleared[at]:
                assert config.data == expected, hex(at)
    assert config.data == expected


def test_two_capabilities_of_each_kind_are_chained_and_the_chain_ends() -> None:
    first, second = VendorSpecific(b"one"), VendorSpecific(b"three")
    third, fourth = ExtendedVendor(1, b"12345"), SerialNumber(9)
    config, offsets = build_config_space(IDS, capabilities=(first, third, second, fourth))
    assert config.read(0x34, 1)[0] == 0x40
    assert config.read(0x40, 6) == b"\x09\x48\x06one"
    assert config.read(0x48, 8) == b"\x09\x00\x08three"
    assert config.get(0x100, 4) == 0xB | 1 << 16 | 0x110 << 20
    assert config.get(0x110, 4) == 0x3 | 1 << 16
    assert offsets == {0x09: 0x48}
    assert config.find_capability(0x3, extended=True) == 0x110
    assert config.find_capability(0xB, extended=True) == 0x100
    assert config.find_capability(0x30B, extended=True) is None, "an id has 16 bits there"
    assert config.find_capability(0x09, after=0x40) == 0x48


def test_an_extended_capability_is_told_from_another_by_all_of_its_id() -> None:
    config, _ = build_config_space(IDS, capabilities=(SerialNumber(1),))
    config.set(0x100, 4, 0x1203 | 1 << 16)
    assert config.find_capability(0x03, extended=True) is None
    assert config.find_capability(0x1203, extended=True) == 0x100


@for_each_row([("vendor", 16), ("device", 16), ("class_code", 24), ("revision", 8)])
def test_an_id_that_has_too_many_bits_is_refused(name: str, bits: int) -> None:
    ids = {"vendor": 1, "device": 2}
    PciIds(**{**ids, name: (1 << bits) - 1})
    for wrong in (1 << bits, -1):
        with pytest.raises(ValueError, match=name):
            PciIds(**{**ids, name: wrong})


def test_sizes_are_rounded_up_to_what_a_bar_can_say() -> None:
    sizes = (0, 1, 2, 3, 4, 5, 0x1000, 0x1001, (1 << 40) + 1)
    assert [round_up_power_of_two(size) for size in sizes] == [1, 1, 2, 4, 4, 8, 0x1000, 0x2000, 1 << 41]


@for_each(
    [Bar(0, size=1 << 31), Bar(0, size=1 << 63, bits=64), Bar(4, size=16, bits=64), Bar(5, size=256, io=True), Bar(3)]
)
def test_a_bar_may_be_as_large_and_as_small_as_pci_has_it(bar: Bar) -> None:
    bar.check()


@for_each(
    [
        Bar(6, 16),
        Bar(-1, 16),
        Bar(0, 8),
        Bar(0, 24),
        Bar(0, 1 << 32),
        Bar(0, 1 << 64, bits=64),
        Bar(0, 16, bits=16),
        Bar(5, 16, bits=64),
        Bar(0, 2, io=True),
        Bar(0, 512, io=True),
        Bar(0, 16, bits=64, io=True),
        Bar(0, 16, io=True, prefetchable=True),
    ]
)
def test_a_bar_may_be_nothing_else(bar: Bar) -> None:
    with pytest.raises(ValueError, match="BAR"):
        bar.check()
