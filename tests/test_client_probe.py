"""What `vfio-user probe` reads out of a config space, and what it warns of."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.everything_device import Everything
from vfio_user.client import Client
from vfio_user.client.config_space import ConfigSpaceDump
from vfio_user.client.description import _not_survived, describe, render
from vfio_user.client.regions import Region
from vfio_user.server import Server
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at


def config(capabilities: dict[int, bytes] | None = None, *, first: int = 0, size: int = 4096) -> bytearray:
    """A config space of an edu-like device, with these bytes at these offsets."""
    data = bytearray(size)
    struct.pack_into("<HHHHBBBB", data, 0, 0x1234, 0x11E8, 0, 0x10 if first else 0, 0x10, 0, 0, 0xFF)
    struct.pack_into("<6I", data, 0x10, 0x0000_0000, 0x0000_0001, 0x0000_000C, 0, 0x0000_0008, 0)
    struct.pack_into("<HH", data, 0x2C, 0x1AF4, 0x1100)
    data[0x34], data[0x3D] = first, 1
    for offset, content in (capabilities or {}).items():
        data[offset : offset + len(content)] = content
    return data


def test_the_header_says_who_it_is() -> None:
    space = ConfigSpaceDump(bytes(config()))
    assert space.ids == (0x1234, 0x11E8)
    assert space.subsystem == (0x1AF4, 0x1100)
    assert (space.revision, space.class_code, space.interrupt_pin) == (0x10, 0xFF0000, "A")


def test_bars_have_their_kinds_and_a_64_bit_bar_takes_two() -> None:
    assert [(bar.index, bar.kind, bar.prefetchable) for bar in ConfigSpaceDump(bytes(config())).bars()] == [
        (0, "32-bit", False),
        (1, "I/O", False),
        (2, "64-bit", True),
        (4, "32-bit", True),
        (5, "32-bit", False),
    ]


@pytest.mark.parametrize(
    ("registers", "name", "expected"),
    [
        (b"\x01\0\x03\x06\x0b\0\0\0", "Power Management", {"d1": True, "no_soft_reset": True, "state": "D3"}),
        (b"\x05\0\x86\x01", "MSI", {"vectors": 8, "address_64": True, "maskable": True, "enabled": False}),
        (
            b"\x11\0\x03\xc0" + struct.pack("<II", 0x2000 | 1, 0x3000 | 1),
            "MSI-X",
            {"vectors": 4, "enabled": True, "function_masked": True, "table_bar": 1, "pba_offset": 0x3000},
        ),
        (
            b"\x10\0\x02\0" + struct.pack("<IIII", 0x1000_8001, 0, 0x11, 0),
            "PCI Express",
            {"function_level_reset": True, "max_payload": 256, "type": "endpoint", "link_width": 1},
        ),
        (b"\x09\0\x14", "Vendor Specific", {"length": 20}),
    ],
    ids=["pm", "msi", "msix", "pcie", "vendor"],
)
def test_a_capability_is_taken_apart(registers: bytes, name: str, expected: dict[str, object]) -> None:
    (capability,) = ConfigSpaceDump(bytes(config({0x40: registers}, first=0x40))).capabilities()
    assert (capability.offset, capability.name) == (0x40, name)
    assert expected.items() <= capability.details.items()


def test_both_chains_are_followed() -> None:
    serial = struct.pack("<IQ", 3 | 1 << 16 | 0x110 << 20, 0x0123_4567_89AB_CDEF)
    vendor = struct.pack("<II", 0x0B | 1 << 16, 0x42 | 2 << 16 | 0x18 << 20)
    data = config({0x40: b"\x09\x60\x10", 0x60: b"\x01\0", 0x100: serial, 0x110: vendor}, first=0x40)
    found = ConfigSpaceDump(bytes(data)).capabilities()
    assert [(c.offset, c.extended) for c in found] == [(0x40, False), (0x60, False), (0x100, True), (0x110, True)]
    assert found[2].details["serial"] == "01-23-45-67-89-ab-cd-ef"
    assert found[3].details == {"version": 1, "id": 0x42, "revision": 2, "length": 0x18}


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (config({0x40: b"\x09\x60", 0x60: b"\x09\x40"}, first=0x40), 2),
        (config({0x40: b"\x09\x40"}, first=0x40), 1),
        (config({0x40: b"\x09\x08"}, first=0x40), 1),
        (config({0x100: struct.pack("<I", 3 | 0x100 << 20)}), 1),
        (config({0x100: struct.pack("<I", 3 | 0x40 << 20)}), 1),
    ],
    ids=["two in a circle", "to itself", "into the header", "extended to itself", "extended into the first page"],
)
def test_a_chain_that_leads_nowhere_ends_and_is_a_problem(data: bytearray, count: int) -> None:
    space = ConfigSpaceDump(bytes(data))
    assert len(space.capabilities()) == count
    assert len(space.problems) == 1


def test_a_short_config_space_reads_as_ones_behind_its_end() -> None:
    space = ConfigSpaceDump(b"\x34\x12")
    assert space.ids == (0x1234, 0xFFFF)
    space.capabilities()


# what is asked and told


def test_what_a_request_has_no_use_for_is_zero_and_all_of_a_region_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(Everything(), str(tmp_path / "s")) as server, Client.connect(str(server.listener.address)) as client:
        sent: list[Message] = []
        submit = client.channel.submit

        def watched(message: Message, what: str) -> Any:
            sent.append(message)
            return submit(message, what)

        monkeypatch.setattr(client.channel, "submit", watched)
        found = describe(client)
        client.store(0, 0, 4, 1, posted=True)
    assert {message.errno for message in sent} == {0}
    number = CURRENT.number(Command.GET_REGION_INFO)
    infos = [at.REGION_INFO.unpack(message.payload) for message in sent if message.command == number]
    assert {(info.flags, info.cap_offset, info.size, info.offset) for info in infos} == {(0, 0, 0, 0)}
    assert {region.index: region.type for region in found.regions if region.type} == {9: (0x8000_1AF4, 7)}


def test_who_made_a_device_is_told_by_the_numbers_that_lists_of_ids_have(tmp_path: Path) -> None:
    with Server(Everything(), str(tmp_path / "s")) as server, Client.connect(str(server.listener.address)) as client:
        found = describe(client)
    registers = config({0x40: struct.pack("<BBxxHH", 0x0D, 0, 0x1AF4, 0x1100)}, first=0x40)
    bridged = replace(found, pci_capabilities=ConfigSpaceDump(bytes(registers)).capabilities())
    assert "Subsystem Id: vendor 0x1af4, device 0x1100\n" in render(bridged)


@pytest.mark.parametrize(("vectors", "fits"), [(128, True), (129, False)])
def test_a_table_of_interrupts_has_16_bytes_for_each(vectors: int, fits: bool) -> None:
    """QEMU ends at one that is not within its BAR."""
    capability = struct.pack("<BBHII", 0x11, 0, vectors - 1, 0x800, 0x000)
    found = ConfigSpaceDump(bytes(config({0x40: capability}, first=0x40))).capabilities()
    told = list(_not_survived([Region(0, 0x1000, 3, 0)], list(found)))
    assert (told == []) is fits
