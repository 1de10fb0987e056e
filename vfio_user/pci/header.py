"""The type 0 header, and the layout of a whole configuration space: header, then the two chains of capabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vfio_user.pci.bar import ROM_OFFSET, Bar
from vfio_user.pci.capabilities import Capability, PciExpress
from vfio_user.pci.config import (
    CAPABILITY_POINTER,
    CONVENTIONAL_SIZE,
    EXPRESS_SIZE,
    ConfigSpace,
    Field,
    check_bits,
)
from vfio_user.pci.placement import Placed, place_capabilities

COMMAND = 0x04
STATUS = 0x06

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_BUS_MASTER = 1 << 2
COMMAND_PARITY = 1 << 6
COMMAND_SERR = 1 << 8
COMMAND_INTX_DISABLE = 1 << 10

STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
STATUS_RW1C = 0xF900
"""Parity errors, target and master aborts, system error."""


ID_BITS = {"vendor": 16, "device": 16, "class_code": 24, "revision": 8, "subsystem_vendor": 16, "subsystem": 16}


@dataclass(frozen=True)
class PciIds:
    """The identity of the function. `class_code` is the 24 bits class, subclass, programming interface."""

    vendor: int
    device: int
    class_code: int = 0xFF0000
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0

    def __post_init__(self) -> None:
        """Compare each number with the bits of its place.

        Raises:
            TypeError: it is none.
            ValueError: it has more.
        """
        check_bits(self, ID_BITS)


def build_config_space(
    ids: PciIds,
    *,
    bars: Sequence[Bar] = (),
    rom_size: int = 0,
    interrupt_pin: int = 0,
    capabilities: Sequence[Capability | Placed] = (),
) -> tuple[ConfigSpace, dict[int, int]]:
    """A function's configuration space as it is after reset, and {conventional capability's id: its offset}.

    4096 bytes if there is a PCI Express or an extended capability, else 256. `rom_size` is a power of two or 0,
    `interrupt_pin` 1 (INTA) to 4, or 0. Of several vendor-specific capabilities the last one's offset is given;
    `ConfigSpace.find_capability` finds each.

    Raises:
        ValueError: the capabilities do not fit, or overlap.
    """
    placed = place_capabilities(capabilities)
    conventional = [each for each in placed if not each.capability.extended]
    extended = [each for each in placed if each.capability.extended]
    express = bool(extended) or any(isinstance(each.capability, PciExpress) for each in conventional)
    config = ConfigSpace(EXPRESS_SIZE if express else CONVENTIONAL_SIZE)

    config.define(0, _header(ids, bars, rom_size, interrupt_pin, bool(conventional)))
    for each in placed:
        config.define(each.place, each.fields())
    for each, following in _chained(conventional):
        config.define(each.place, [Field(0, 1, each.capability.id), Field(1, 1, following)])
    if conventional:
        config.define(0, [Field(CAPABILITY_POINTER, 1, conventional[0].place)])
    for each, following in _chained(extended):
        header = each.capability.id | each.capability.version << 16 | following << 20
        config.define(each.place, [Field(0, 4, header)])
    return config, {each.capability.id: each.place for each in conventional}


def _chained(placed: Sequence[Placed]) -> Iterator[tuple[Placed, int]]:
    """Each with the offset of the one behind it, 0 behind the last."""
    yield from zip(placed, [*(each.place for each in placed[1:]), 0], strict=False)


def _header(ids: PciIds, bars: Sequence[Bar], rom_size: int, pin: int, has_capabilities: bool) -> Iterator[Field]:
    command = COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR
    if any(bar.io for bar in bars):
        command |= COMMAND_IO
    if rom_size or any(not bar.io for bar in bars):
        command |= COMMAND_MEMORY
    if pin:
        command |= COMMAND_INTX_DISABLE
    yield Field(0x00, 2, ids.vendor)
    yield Field(0x02, 2, ids.device)
    yield Field(COMMAND, 2, 0, command)
    yield Field(STATUS, 2, STATUS_CAPABILITIES if has_capabilities else 0, rw1c=STATUS_RW1C)
    yield Field(0x08, 1, ids.revision)
    yield Field(0x09, 3, ids.class_code)
    yield Field(0x0C, 1, 0, 0xFF)
    yield Field(0x0D, 1, 0, 0xFF)
    for bar in bars:
        yield from bar.fields()
    yield Field(0x2C, 2, ids.subsystem_vendor)
    yield Field(0x2E, 2, ids.subsystem)
    if rom_size:
        yield Field(ROM_OFFSET, 4, 0, (~(rom_size - 1) & 0xFFFF_F800) | 1)
    yield Field(0x3C, 1, 0, 0xFF)
    yield Field(0x3D, 1, pin)
