"""Reading a PCI config space as `lspci` does: header, BARs, and both chains of capabilities.

Not built on `vfio_user.pci`, which writes what this reads: a mistake there would otherwise be invisible here.
Sources: PCI Local Bus 3.0 chapter 6; PCI Express Base chapter 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Details = dict[str, Any]

COMMAND_IO, COMMAND_MEMORY, COMMAND_INTX_DISABLE = 1, 1 << 1, 1 << 10
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
LARGEST_IO = 256
"""Bytes of an I/O BAR (PCI 3.0, 6.2.5.1)."""
EXTENDED = 0x100

_BASE_CLASSES = {
    0x00: "unclassified device",
    0x01: "storage controller",
    0x02: "network controller",
    0x03: "display controller",
    0x04: "multimedia controller",
    0x05: "memory controller",
    0x06: "bridge",
    0x07: "communication controller",
    0x08: "system peripheral",
    0x09: "input device",
    0x0C: "serial bus controller",
    0x0D: "wireless controller",
    0x10: "encryption controller",
    0x11: "signal processing controller",
    0x12: "processing accelerator",
    0xFF: "unassigned class",
}
_CLASSES = {0x0108: "non-volatile memory controller", 0x0200: "Ethernet controller", 0x0700: "serial controller"}

CAPABILITY_NAMES = {
    0x01: "Power Management",
    0x02: "AGP",
    0x03: "Vital Product Data",
    0x05: "MSI",
    0x09: "Vendor Specific",
    0x0D: "Subsystem Id",
    0x10: "PCI Express",
    0x11: "MSI-X",
    0x12: "SATA",
    0x13: "Advanced Features",
    0x14: "Enhanced Allocation",
}
EXTENDED_NAMES = {
    0x01: "Advanced Error Reporting",
    0x02: "Virtual Channel",
    0x03: "Device Serial Number",
    0x0B: "Vendor Specific",
    0x0D: "Access Control Services",
    0x0E: "Alternative Routing-ID",
    0x0F: "Address Translation Service",
    0x10: "Single Root I/O Virtualization",
    0x13: "Page Request Interface",
    0x15: "Resizable BAR",
    0x18: "Latency Tolerance Reporting",
    0x19: "Secondary PCI Express",
    0x1B: "Process Address Space Id",
    0x1E: "L1 PM Substates",
}


@dataclass(frozen=True)
class FoundCapability:
    """One capability. `details` has what its registers say, by name."""

    offset: int
    id: int
    name: str
    extended: bool = False
    details: Details = field(default_factory=dict)


@dataclass(frozen=True)
class BaseAddress:
    """One BAR as its register's type bits have it; its size is the region's."""

    index: int
    kind: str
    prefetchable: bool


class ConfigSpaceDump:
    """A config space that was read whole, 64 to 4096 bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data.ljust(64, b"\xff")
        self.problems: list[str] = []
        """What is wrong with the chains, in words; filled by `capabilities`."""

    def word(self, offset: int, width: int) -> int:
        """The little-endian register at `offset`; all-ones behind the end, as on a bus."""
        found = self.data[offset : offset + width]
        return int.from_bytes(found.ljust(width, b"\xff"), "little")

    @property
    def ids(self) -> tuple[int, int]:
        """Vendor and device."""
        return self.word(0x00, 2), self.word(0x02, 2)

    @property
    def subsystem(self) -> tuple[int, int]:
        """The subsystem's vendor and its id."""
        return self.word(0x2C, 2), self.word(0x2E, 2)

    @property
    def revision(self) -> int:
        """The device's revision."""
        return self.word(0x08, 1)

    @property
    def class_code(self) -> int:
        """Base class, subclass and programming interface, in 24 bits."""
        return self.word(0x09, 3)

    @property
    def class_name(self) -> str:
        """The class in words, as far as it is known here."""
        code = self.class_code
        return _CLASSES.get(code >> 8) or _BASE_CLASSES.get(code >> 16, "unknown class")

    @property
    def interrupt_pin(self) -> str | None:
        """A to D; None: the function has no line."""
        pin = self.word(0x3D, 1)
        return "ABCD"[pin - 1] if 1 <= pin <= 4 else None

    @property
    def interrupt_status(self) -> bool:
        """Whether the function says that it has raised its line."""
        return bool(self.word(0x06, 2) & STATUS_INTERRUPT)

    def bars(self) -> Iterator[BaseAddress]:
        """The BARs that could exist; the upper half of a 64-bit one is not one."""
        index = 0
        while index < 6:
            value = self.word(0x10 + 4 * index, 4)
            if value & 1:
                yield BaseAddress(index, "I/O", prefetchable=False)
            else:
                wide = value & 6 == 4
                yield BaseAddress(index, "64-bit" if wide else "32-bit", bool(value & 8))
                index += wide
            index += 1

    def capabilities(self) -> list[FoundCapability]:
        """Both chains, in the order in which they are linked."""
        found: list[FoundCapability] = []
        if self.word(0x06, 2) & STATUS_CAPABILITIES:
            self._walk(self.word(0x34, 1) & 0xFC, 0x40, 0x100, self._conventional, found)
        if len(self.data) > EXTENDED and self.word(EXTENDED, 4) not in (0, 0xFFFF_FFFF):
            self._walk(EXTENDED, EXTENDED, len(self.data), self._extended, found)
        return found

    def _walk(
        self,
        at: int,
        first: int,
        end: int,
        step: Callable[[int], tuple[FoundCapability, int]],
        found: list[FoundCapability],
    ) -> None:
        seen: set[int] = set()
        while at:
            if not first <= at < end or at in seen:
                reason = "leads back to" if at in seen else "leads outside, to"
                self.problems.append(f"the chain of capabilities {reason} {at:#x}")
                return
            seen.add(at)
            capability, at = step(at)
            found.append(capability)

    def _conventional(self, at: int) -> tuple[FoundCapability, int]:
        id = self.word(at, 1)
        decode = _DETAILS.get(id)
        name = CAPABILITY_NAMES.get(id, f"capability {id:#04x}")
        return FoundCapability(at, id, name, False, decode(self, at) if decode else {}), self.word(at + 1, 1) & 0xFC

    def _extended(self, at: int) -> tuple[FoundCapability, int]:
        header = self.word(at, 4)
        id = header & 0xFFFF
        decode = _EXTENDED_DETAILS.get(id)
        name = EXTENDED_NAMES.get(id, f"extended capability {id:#06x}")
        details = {"version": header >> 16 & 0xF} | (decode(self, at) if decode else {})
        return FoundCapability(at, id, name, True, details), header >> 20 & 0xFFC


def _power_management(config: ConfigSpaceDump, at: int) -> Details:
    capabilities, control = config.word(at + 2, 2), config.word(at + 4, 2)
    return {
        "version": capabilities & 7,
        "d1": bool(capabilities & 1 << 9),
        "d2": bool(capabilities & 1 << 10),
        "no_soft_reset": bool(control & 1 << 3),
        "state": f"D{control & 3}",
    }


def _msi(config: ConfigSpaceDump, at: int) -> Details:
    control = config.word(at + 2, 2)
    return {
        "vectors": 1 << (control >> 1 & 7),
        "enabled": bool(control & 1),
        "vectors_enabled": 1 << (control >> 4 & 7),
        "address_64": bool(control & 1 << 7),
        "maskable": bool(control & 1 << 8),
    }


def _msix(config: ConfigSpaceDump, at: int) -> Details:
    control, table, pba = config.word(at + 2, 2), config.word(at + 4, 4), config.word(at + 8, 4)
    return {
        "vectors": (control & 0x7FF) + 1,
        "enabled": bool(control & 1 << 15),
        "function_masked": bool(control & 1 << 14),
        "table_bar": table & 7,
        "table_offset": table & ~7,
        "pba_bar": pba & 7,
        "pba_offset": pba & ~7,
    }


_PORT_TYPES = {0: "endpoint", 1: "legacy endpoint", 4: "root port", 9: "integrated endpoint"}
_LINK_SPEEDS = {1: "2.5", 2: "5", 3: "8", 4: "16", 5: "32", 6: "64"}


def _pci_express(config: ConfigSpaceDump, at: int) -> Details:
    capabilities, device, link = config.word(at + 2, 2), config.word(at + 4, 4), config.word(at + 12, 4)
    kind = capabilities >> 4 & 0xF
    return {
        "version": capabilities & 0xF,
        "type": _PORT_TYPES.get(kind, f"type {kind}"),
        "function_level_reset": bool(device & 1 << 28),
        "max_payload": 128 << (device & 7),
        "link_gts": _LINK_SPEEDS.get(link & 0xF, "?"),
        "link_width": link >> 4 & 0x3F,
    }


def _vendor(config: ConfigSpaceDump, at: int) -> Details:
    return {"length": config.word(at + 2, 1)}


def _subsystem(config: ConfigSpaceDump, at: int) -> Details:
    return {"vendor": config.word(at + 4, 2), "device": config.word(at + 6, 2)}


def _serial_number(config: ConfigSpaceDump, at: int) -> Details:
    serial = config.word(at + 8, 4) << 32 | config.word(at + 4, 4)
    return {"serial": "-".join(f"{byte:02x}" for byte in serial.to_bytes(8, "big"))}


def _extended_vendor(config: ConfigSpaceDump, at: int) -> Details:
    header = config.word(at + 4, 4)
    return {"id": header & 0xFFFF, "revision": header >> 16 & 0xF, "length": header >> 20}


Decode = Callable[[ConfigSpaceDump, int], Details]

_DETAILS: Mapping[int, Decode] = {
    0x01: _power_management,
    0x05: _msi,
    0x09: _vendor,
    0x0D: _subsystem,
    0x10: _pci_express,
    0x11: _msix,
}
_EXTENDED_DETAILS: Mapping[int, Decode] = {0x03: _serial_number, 0x0B: _extended_vendor}
