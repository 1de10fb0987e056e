"""Capabilities, conventional (id of one byte) and extended (id of two): their registers as data.

A capability is a frozen description; `fields()` gives its registers with offsets from its own start, without the
header, which the layout writes. Sources: PCI Local Bus 3.0 chapter 6, PCI Express Base chapter 7, PM Interface 1.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from vfio_user.pci.config import Field, check_bits


class Capability:
    """Base of all. `id` and `size` (bytes, header included) are what the layout needs."""

    id: ClassVar[int]
    extended: ClassVar[bool] = False
    version: ClassVar[int] = 1
    """Of an extended capability's header."""
    repeatable: ClassVar[bool] = False
    """A function may have several of this id."""

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        raise NotImplementedError

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        raise NotImplementedError


@dataclass(frozen=True)
class PowerManagement(Capability):
    """Power states D0 and D3hot, and D1 and D2 if asked for.

    no_soft_reset: the function keeps its state on the way from D3hot to D0; otherwise the way back resets it.
    """

    no_soft_reset: bool = False
    d1: bool = False
    d2: bool = False

    id: ClassVar[int] = 0x01
    PMCSR: ClassVar[int] = 4
    NO_SOFT_RESET: ClassVar[int] = 1 << 3
    POWER_STATE: ClassVar[int] = 0x3
    D3HOT: ClassVar[int] = 3

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return 8

    @property
    def states(self) -> frozenset[int]:
        """The power states that PMCSR takes; a write of another is ignored (PCI PM 1.2, 3.2.4)."""
        return frozenset({0, self.D3HOT} | ({1} if self.d1 else set()) | ({2} if self.d2 else set()))

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        yield Field(2, 2, 3 | self.d1 << 9 | self.d2 << 10)
        yield Field(self.PMCSR, 2, self.NO_SOFT_RESET if self.no_soft_reset else 0, self.POWER_STATE)


@dataclass(frozen=True)
class PciExpress(Capability):
    """A PCI Express endpoint, capability version 2, link 2.5 GT/s x1.

    flr: the function can be reset by Initiate Function Level Reset in Device Control.
    """

    flr: bool = True

    id: ClassVar[int] = 0x10
    DEVICE_CONTROL: ClassVar[int] = 8
    INITIATE_FLR: ClassVar[int] = 1 << 15

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return 0x3C

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        role_based_errors = 1 << 15
        link = 1 | 1 << 4
        yield Field(0x02, 2, 2)
        yield Field(0x04, 4, role_based_errors | self.flr << 28)
        yield Field(0x08, 2, 0x2810, 0x7FFF | (self.INITIATE_FLR if self.flr else 0))
        yield Field(0x0A, 2, rw1c=0x000F)
        yield Field(0x0C, 4, link)
        yield Field(0x10, 2, 0, 0x01CB)
        yield Field(0x12, 2, link)
        yield Field(0x28, 2, 0, 0x7FFF)
        yield Field(0x2C, 4, 1 << 1)
        yield Field(0x30, 2, 1, 0x0FFF)


@dataclass(frozen=True)
class MsiCapability(Capability):
    """Message signalled interrupts: 1, 2, 4, 8, 16 or 32 vectors."""

    vectors: int = 1
    address64: bool = True
    maskable: bool = False

    id: ClassVar[int] = 0x05
    CONTROL: ClassVar[int] = 2
    ENABLE: ClassVar[int] = 1

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return (14 if self.address64 else 10) + (10 if self.maskable else 0)

    @property
    def mask_offset(self) -> int:
        """The place of the mask bits, in bytes from the capability's start (PCI 3.0, 6.8.1)."""
        return 16 if self.address64 else 12

    @property
    def pending_offset(self) -> int:
        """The place of the pending bits, in bytes from the capability's start."""
        return self.mask_offset + 4

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        exponent = (self.vectors - 1).bit_length()
        control = exponent << 1 | self.address64 << 7 | self.maskable << 8
        yield Field(self.CONTROL, 2, control, 0x0071)
        yield Field(4, 4, 0, 0xFFFF_FFFC)
        if self.address64:
            yield Field(8, 4, 0, 0xFFFF_FFFF)
        yield Field(12 if self.address64 else 8, 2, 0, 0xFFFF)
        if self.maskable:
            yield Field(self.mask_offset, 4, 0, (1 << self.vectors) - 1)


@dataclass(frozen=True)
class MsiXCapability(Capability):
    """MSI-X: where the table and the pending bits are. Offsets are in their BAR, multiples of 8."""

    vectors: int
    table_bar: int
    table_offset: int
    pba_bar: int
    pba_offset: int

    id: ClassVar[int] = 0x11
    CONTROL: ClassVar[int] = 2
    FUNCTION_MASK: ClassVar[int] = 1 << 14
    ENABLE: ClassVar[int] = 1 << 15

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return 12

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        yield Field(self.CONTROL, 2, self.vectors - 1, self.FUNCTION_MASK | self.ENABLE)
        yield Field(4, 4, self.table_offset | self.table_bar)
        yield Field(8, 4, self.pba_offset | self.pba_bar)


@dataclass(frozen=True)
class VendorSpecific(Capability):
    """Vendor-specific bytes behind id, next and length. `writable` is a mask of `payload`, which ends no later."""

    payload: bytes
    writable: bytes = b""

    id: ClassVar[int] = 0x09
    repeatable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_mask(self.payload, self.writable)

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return 3 + len(self.payload)

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        yield Field(2, 1, self.size)
        yield from _bytes_field(3, self.payload, self.writable)


@dataclass(frozen=True)
class SerialNumber(Capability):
    """Extended capability 3: the 64-bit device serial number."""

    serial: int

    id: ClassVar[int] = 0x0003
    extended: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bits(self, {"serial": 64})

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return 12

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        yield Field(4, 8, self.serial)


@dataclass(frozen=True)
class ExtendedVendor(Capability):
    """VSEC, extended capability 0xb: a vendor's own id and revision, and bytes. `writable` as in VendorSpecific."""

    vsec_id: int
    payload: bytes
    revision: int = 0
    writable: bytes = b""

    id: ClassVar[int] = 0x000B
    repeatable: ClassVar[bool] = True
    extended: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bits(self, {"vsec_id": 16, "revision": 4})
        _check_mask(self.payload, self.writable)

    @property
    def size(self) -> int:
        """Bytes that the capability takes, its header included."""
        return 8 + len(self.payload)

    def fields(self) -> Iterator[Field]:
        """Yield the fields behind the header, with what software may write of them."""
        yield Field(4, 4, self.vsec_id | self.revision << 16 | self.size << 20)
        yield from _bytes_field(8, self.payload, self.writable)


def _check_mask(payload: bytes, writable: bytes) -> None:
    """Raise ValueError for a mask that reaches beyond what it is of."""
    if len(writable) > len(payload):
        raise ValueError(f"writable has {len(writable)} bytes, and is of {len(payload)}")


def _bytes_field(offset: int, payload: bytes, writable: bytes) -> Iterator[Field]:
    if payload:
        yield Field(
            offset, len(payload), int.from_bytes(payload, "little"), int.from_bytes(writable[: len(payload)], "little")
        )
