"""Devices with a BAR larger than most, in each form in which a machine has to find a place for it."""

from __future__ import annotations

from vfio_user import Bar, PciDevice, PciIds

MIB = 1 << 20


class Prefetchable32(PciDevice):
    """The smallest that QEMU's default for a slot does not hold."""

    ids = PciIds(0x1AF4, 0x10F8)
    bars = (Bar(0, size=32 * MIB, bits=64, prefetchable=True),)


class Prefetchable64(PciDevice):
    ids = PciIds(0x1AF4, 0x10F8)
    bars = (Bar(0, size=64 * MIB, bits=64, prefetchable=True),)


class Prefetchable1024(PciDevice):
    ids = PciIds(0x1AF4, 0x10F8)
    bars = (Bar(0, size=1024 * MIB, bits=64, prefetchable=True),)


class Narrow64(PciDevice):
    """Of 32 bits: it has to be below 4 GiB."""

    ids = PciIds(0x1AF4, 0x10F8)
    bars = (Bar(0, size=64 * MIB, bits=32),)


class Narrow512(PciDevice):
    """For which no slot has room."""

    ids = PciIds(0x1AF4, 0x10F8)
    bars = (Bar(0, size=512 * MIB, bits=32),)
