"""What `vfio-user probe` reads out of a config space, and what it warns of."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.everything_device import Everything
from vfio_user.client import Client
from vfio_user.client.config_space import ConfigSpaceDump, FoundCapability
from vfio_user.client.description import (
    Description,
    IrqFacts,
    _header_problems,
    _not_survived,
    _problems,
    describe,
    render,
)
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


REGISTERS = {
    "Power Management": b"\x01\0\x03\x06\x0b\0\0\0",
    "MSI": b"\x05\0\xa6\x01",
    "MSI-X": b"\x11\0\x03\xc0" + struct.pack("<II", 0x2000 | 1, 0x3000 | 2),
    "PCI Express": b"\x10\0\x02\0" + struct.pack("<IIII", 0x1000_8001, 0, 0x13, 0),
    "Vendor Specific": b"\x09\0\x14",
    "Subsystem Id": struct.pack("<BBxxHH", 0x0D, 0, 0x1AF4, 0x1100),
}
"""Of a capability each, as they are in a config space."""


@for_each_row(
    [
        (
            "Power Management",
            {"version": 3, "d1": True, "d2": True, "no_soft_reset": True, "state": "D3"},
            "version 3, d1+, d2+, no soft reset+, state D3",
        ),
        (
            "MSI",
            {"vectors": 8, "vectors_enabled": 4, "address_64": True, "maskable": True, "enabled": False},
            "vectors 8, enabled-, vectors enabled 4, address 64+, maskable+",
        ),
        (
            "MSI-X",
            {
                "vectors": 4,
                "enabled": True,
                "function_masked": True,
                "table_bar": 1,
                "table_offset": 0x2000,
                "pba_bar": 2,
                "pba_offset": 0x3000,
            },
            "vectors 4, enabled+, function masked+, table bar 1, table offset 0x2000, pba bar 2, pba offset 0x3000",
        ),
        (
            "PCI Express",
            {
                "version": 2,
                "type": "endpoint",
                "function_level_reset": True,
                "max_payload": 256,
                "link_gts": "8",
                "link_width": 1,
            },
            "version 2, type endpoint, function level reset+, max payload 256, link gts 8, link width 1",
        ),
        ("Vendor Specific", {"length": 20}, "length 20"),
        ("Subsystem Id", {"vendor": 0x1AF4, "device": 0x1100}, "vendor 0x1af4, device 0x1100"),
    ]
)
def test_a_capability_is_taken_apart_and_shown(
    name: str, expected: dict[str, object], rendered: str, described: Description
) -> None:
    (capability,) = ConfigSpaceDump(bytes(config({0x40: REGISTERS[name]}, first=0x40))).capabilities()
    assert capability == FoundCapability(0x40, REGISTERS[name][0], name, details=expected)
    assert f"    Capabilities: [40] {name}: {rendered}\n" in render(replace(described, pci_capabilities=[capability]))


def test_an_msi_capability_says_no_more_than_it_can() -> None:
    (capability,) = ConfigSpaceDump(bytes(config({0x40: b"\x05\0\x01\0"}, first=0x40))).capabilities()
    assert capability.details == {
        "vectors": 1,
        "vectors_enabled": 1,
        "enabled": True,
        "address_64": False,
        "maskable": False,
    }


@pytest.mark.parametrize(
    ("pin", "can_reset", "shown"),
    [
        ("C", True, "interrupt pin C, can be reset"),
        (None, True, "no interrupt pin, can be reset"),
        ("A", False, "interrupt pin A, cannot be reset"),
    ],
)
def test_the_pin_and_the_reset_are_shown(described: Description, pin: str | None, can_reset: bool, shown: str) -> None:
    assert f"    Device: {shown}\n" in render(replace(described, interrupt_pin=pin, can_reset=can_reset))


def test_an_extended_capability_is_shown_with_its_ids_as_such(described: Description) -> None:
    vendor = struct.pack("<II", 0x0B | 1 << 16, 0x42 | 2 << 16 | 0x18 << 20)
    found = ConfigSpaceDump(bytes(config({0x100: vendor}))).capabilities()
    shown = render(replace(described, pci_capabilities=found))
    assert "    Capabilities: [100] Vendor Specific: version 1, id 0x42, revision 2, length 24\n" in shown


def test_both_chains_are_followed() -> None:
    serial = struct.pack("<IQ", 3 | 1 << 16 | 0x110 << 20, 0x0123_4567_89AB_CDEF)
    vendor = struct.pack("<II", 0x0B | 1 << 16, 0x42 | 2 << 16 | 0x18 << 20)
    data = config({0x40: b"\x09\x60\x10", 0x60: b"\x01\0", 0x100: serial, 0x110: vendor}, first=0x40)
    found = ConfigSpaceDump(bytes(data)).capabilities()
    assert [(c.offset, c.extended) for c in found] == [(0x40, False), (0x60, False), (0x100, True), (0x110, True)]
    assert found[2].details["serial"] == "01-23-45-67-89-ab-cd-ef"
    assert found[3].details == {"version": 1, "id": 0x42, "revision": 2, "length": 0x18}


@for_each_row(
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
    with (
        closing(Everything()) as device,
        Server(device, str(tmp_path / "s")) as server,
        Client.connect(str(server.listener.address)) as client,
    ):
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


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Description:
    """The description of some device."""
    path = str(tmp_path_factory.mktemp("described") / "s")
    with Server(Everything(), path), Client.connect(path) as client:
        return describe(client)


# what is wrong with a device


class Wrong:
    """What is known of a device with nothing wrong, for a test to change."""

    def __init__(self) -> None:
        self.registers = {0x40: b"\x05\x50\x04\0", 0x50: b"\x11\0\x03\0" + struct.pack("<II", 0x000, 0x800)}
        self.data = config(self.registers, first=0x40)
        self.regions = [Region(index, 0, 0, 0) for index in range(9)]
        self.regions[0] = Region(0, 0x1000, 3, 0)
        self.regions[7] = Region(7, 0x1000, 3, 0)
        self.vectors = {0: 1, 1: 4, 2: 4, 3: 0, 4: 0}
        self.class_code = 0xFF0000

    def region(self, index: int, size: int, flags: int = 3, **said: Any) -> None:
        self.regions[index] = Region(index, size, flags, said.pop("offset", 0), **said)

    def problems(self) -> list[str]:
        space = ConfigSpaceDump(bytes(self.data))
        found, irqs = space.capabilities(), [IrqFacts(*each, []) for each in self.named_vectors()]
        return [
            *space.problems,
            *_problems(self.regions, irqs, found, self.class_code),
            *_header_problems(space, self.regions, irqs, found),
            *_not_survived(self.regions, found),
        ]

    def named_vectors(self) -> list[tuple[int, str, int]]:
        return [(index, f"irq {index}", vectors) for index, vectors in self.vectors.items()]

    def store(self, at: int, layout: str, value: int) -> None:
        struct.pack_into(layout, self.data, at, value)

    def only(self, *, regions: int = 9, irqs: int = 5) -> None:
        del self.regions[regions:]
        self.vectors = {index: vectors for index, vectors in self.vectors.items() if index < irqs}


def with_extended(wrong: Wrong) -> None:
    wrong.store(0x100, "<I", 0x14010005)
    wrong.store(0x140, "<I", 0x00010011)


RIGHT: dict[str, Callable[[Wrong], object]] = {
    "nothing": lambda wrong: None,
    "as many regions as QEMU wants": lambda wrong: wrong.only(regions=8),
    "as many interrupt types as QEMU wants": lambda wrong: wrong.only(irqs=3),
    "a config space of PCI": lambda wrong: wrong.region(7, 0x100),
    "a region that is no BAR may have any size": lambda wrong: wrong.region(8, 0x180),
    "its last page mapped": lambda wrong: wrong.region(0, 0x2000, 7, sparse=((0x1000, 0x1000),)),
    "a large I/O BAR": lambda wrong: wrong.region(1, 256),
    "a descriptor": lambda wrong: wrong.region(2, 0x4000, descriptors=1),
    "more vectors than the capabilities": lambda wrong: wrong.vectors.update({1: 5, 2: 5}),
    "extended capabilities with the numbers of MSI and MSI-X": with_extended,
}


@for_each(RIGHT.values(), ids=RIGHT)
def test_what_is_right_is_no_problem(change: Callable[[Wrong], object]) -> None:
    wrong = Wrong()
    change(wrong)
    assert wrong.problems() == []


@for_each_row(
    [
        (lambda wrong: setattr(wrong, "class_code", 0x0000FF), "no class: "),
        (lambda wrong: wrong.region(7, 0x200), "a config space of 512 bytes instead of 256 or 4096"),
        (lambda wrong: wrong.vectors.update({1: 3}), "MSI has 4 vectors, and the interrupt type 3"),
        (lambda wrong: wrong.vectors.update({2: 3}), "MSI-X has 4 vectors, and the interrupt type 3"),
        (lambda wrong: wrong.vectors.update({0: 0}), "there is an interrupt pin A, and the interrupt type INTx has no"),
        (lambda wrong: wrong.region(5, 0x180), "BAR5 has 0x180 bytes, which is no power of two"),
        (lambda wrong: wrong.region(2, 0x2000, 7, offset=0x800), "region 2 is to be mapped at 0x800 of its descriptor"),
        (lambda wrong: wrong.region(2, 0x2000, 7, sparse=((0x800, 0x1000),)), "region 2 lets 0x800+0x1000 be mapped"),
        (lambda wrong: wrong.region(2, 0x2000, 7, sparse=((0, 0x800),)), "region 2 lets 0x0+0x800 be mapped"),
        (lambda wrong: wrong.region(2, 0x2000, 7, sparse=((0x1000, 0x2000),)), "region 2 lets 0x1000+0x2000 be"),
        (lambda wrong: wrong.region(3, 0x1000), "region 3 has 0x1000 bytes, and its BAR is the upper half of BAR2"),
        (lambda wrong: wrong.region(1, 512), "the I/O BAR1 has 512 bytes, and PCI allows 256"),
        (lambda wrong: (wrong.store(6, "<H", 0x18), wrong.store(0x3D, "<B", 0)), "the status says that an interrupt"),
        (lambda wrong: wrong.store(0x54, "<I", 0xFC8), "MSI-X table at 0xfc8 is not within BAR0 of 0x1000 bytes"),
        (lambda wrong: wrong.store(0x58, "<I", 0x1000), "MSI-X pba at 0x1000 is not within BAR0 of 0x1000 bytes"),
        (lambda wrong: wrong.store(0x58, "<I", 4), "MSI-X pba at 0x0 is not within BAR4 of 0x0 bytes"),
        (lambda wrong: wrong.region(2, 0x4000, descriptors=2), "region 2 comes with 2 descriptors, and QEMU takes one"),
    ]
)
def test_each_problem_of_a_device_is_told_alone_and_with_its_numbers(
    change: Callable[[Wrong], object], said: str
) -> None:
    wrong = Wrong()
    change(wrong)
    (told,) = wrong.problems()
    assert told.startswith(said)


@for_each_row(
    [
        ({"regions": 7}, ["7 regions: QEMU wants at least 8", "a config space of 0 bytes instead of 256 or 4096"]),
        ({"irqs": 2}, ["2 interrupt types: QEMU wants at least 3", "MSI-X has 4 vectors, and the interrupt type 0"]),
    ]
)
def test_what_is_not_there_is_told_with_what_lacks_it(there: dict[str, int], said: list[str]) -> None:
    wrong = Wrong()
    wrong.only(**there)
    assert wrong.problems() == said


@for_each_row([(128, True), (129, False)])
def test_a_table_of_interrupts_has_16_bytes_for_each(vectors: int, fits: bool) -> None:
    """QEMU ends at one that is not within its BAR."""
    capability = struct.pack("<BBHII", 0x11, 0, vectors - 1, 0x800, 0x000)
    found = ConfigSpaceDump(bytes(config({0x40: capability}, first=0x40))).capabilities()
    told = list(_not_survived([Region(0, 0x1000, 3, 0)], list(found)))
    assert (told == []) is fits


def test_no_more_regions_and_interrupts_are_asked_for_than_qemu_takes(tmp_path: Path) -> None:
    """A server may answer for every number that there is."""

    class Endless(Client):
        def device_info(self) -> at.VfioDeviceInfo:
            return super().device_info()._replace(num_regions=101, num_irqs=51)

        def region_info(self, index: int) -> Region:
            return super().region_info(index) if index < 9 else Region(index, 0, 0, 0)

        def irq_info(self, index: int) -> at.VfioIrqInfo:
            return super().irq_info(min(index, 4))

    address = str(tmp_path / "s")
    with closing(Everything()) as device, Server(device, address), Endless.connect(address) as client:
        found = describe(client)
    assert (len(found.regions), len(found.irqs)) == (100, 50)
    told = [problem.partition(":")[0] for problem in found.problems[:2]]
    assert told == ["101 regions", "51 interrupt types"]


@for_each_row(
    [
        (0x010802, "non-volatile memory controller"),
        (0x0108FF, "non-volatile memory controller"),
        (0x010900, "storage controller"),
        (0x020000, "Ethernet controller"),
        (0x020100, "network controller"),
        (0x000000, "unclassified device"),
        (0xFF0000, "unassigned class"),
        (0x420000, "unknown class"),
    ]
)
def test_a_class_is_named_by_its_subclass_where_that_is_known_and_by_its_base_class_else(code: int, name: str) -> None:
    data = config()
    data[9:12] = code.to_bytes(3, "little")
    assert ConfigSpaceDump(bytes(data)).class_name == name
