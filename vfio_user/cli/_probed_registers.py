"""The registers that a probed device has as every PCI device has them: a register map to begin one's own with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vfio_user.client.description import Description
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
from vfio_user.wire.constants import RegionIndex

Row = tuple[int, int, str]
"""Offset in the capability, size in bytes, name."""

CAPABILITIES: Mapping[int, tuple[str, tuple[Row, ...]]] = {
    0x01: ("pm", ((2, 2, "capabilities"), (4, 2, "control"))),
    0x05: ("msi", ((2, 2, "control"), (4, 4, "address"))),
    0x10: (
        "pcie",
        (
            (2, 2, "capabilities"),
            (4, 4, "device_capabilities"),
            (8, 2, "device_control"),
            (10, 2, "device_status"),
            (12, 4, "link_capabilities"),
            (16, 2, "link_control"),
            (18, 2, "link_status"),
        ),
    ),
    0x11: ("msix", ((2, 2, "control"), (4, 4, "table"), (8, 4, "pba"))),
}
"""By the capability's id: PCI Local Bus Specification 3.0, 6.8 (MSI, MSI-X); PCI Power Management 1.2, 3.2; PCI Express
Base Specification 4.0, 7.5.3."""

MSIX = 0x11
_ENTRY: tuple[Row, ...] = ((0, 8, "address"), (8, 4, "data"), (12, 4, "vector_control"))
_ENTRY_SIZE = 16


def probed_registers(description: Description) -> RegisterMap:
    """The registers of all capabilities of PCI that are known here, and those of the MSI-X table."""
    return RegisterMap(_registers(description))


def _registers(description: Description) -> Iterator[NamedRegister]:
    seen: set[int] = set()
    for capability in description.pci_capabilities:
        name, rows = ("", ()) if capability.extended else CAPABILITIES.get(capability.id, ("", ()))
        if rows and capability.id not in seen:  # of two alike one name would be another's
            seen.add(capability.id)
            for offset, size, register in rows:
                yield NamedRegister(RegionIndex.CONFIG, capability.offset + offset, f"{name}_{register}", size)
            if capability.id == MSIX:
                yield from _table(capability.details)


def _table(msix: Mapping[str, Any]) -> Iterator[NamedRegister]:
    """Those of the table and of the pending bits, in whichever BAR they are."""
    vectors = int(msix["vectors"])
    for offset, size, name in _ENTRY:
        place = int(msix["table_offset"]) + offset
        yield NamedRegister(int(msix["table_bar"]), place, f"msix_{name}", size, vectors, _ENTRY_SIZE)
    pending = (vectors + 63) // 64
    yield NamedRegister(int(msix["pba_bar"]), int(msix["pba_offset"]), "msix_pending", 8, pending, 8)


def as_yaml(registers: RegisterMap) -> str:
    """The map as `--registers` reads it: a line for each."""
    return "registers:\n" + "".join(f"  - {{{_fields(entry)}}}\n" for entry in registers.plain)


def _fields(entry: Mapping[str, Any]) -> str:
    said = {
        "region": entry["region"],
        "offset": f"{entry['offset']:#x}",
        "width": entry["width"],
        "name": entry["name"],
    }
    if entry["count"] > 1:
        said |= {"count": entry["count"], "stride": entry["stride"]}
    return ", ".join(f"{name}: {value}" for name, value in said.items())
