"""Capabilities at chosen places: what is where, what cannot be, and who answers for it."""

from __future__ import annotations

import errno
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.device_kit import CONFIG
from vfio_user import (
    Capability,
    ExtendedVendor,
    Msi,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    Placed,
    PowerManagement,
    ProtocolError,
    ResetKind,
    SerialNumber,
    VendorSpecific,
)
from vfio_user.device import function_of
from vfio_user.pci import build_config_space, place_capabilities
from vfio_user.testing import RecordingLink, read_register, write_register

IDS = PciIds(vendor=1, device=2)


def places(*capabilities: Capability | Placed) -> list[int]:
    return [each.place for each in place_capabilities(capabilities)]


def test_what_has_no_place_goes_into_the_gaps() -> None:
    taken = Placed(VendorSpecific(bytes(13)), offset=0x44)
    assert places(VendorSpecific(b"a"), taken, PowerManagement(), VendorSpecific(bytes(20))) == [0x40, 0x44, 0x54, 0x5C]


def test_the_chain_is_in_the_order_of_writing_wherever_each_is() -> None:
    first, last = Placed(PowerManagement(), offset=0xF0), Placed(PciExpress(), offset=0x60)
    config, offsets = build_config_space(IDS, capabilities=[first, VendorSpecific(b"a"), last])
    assert offsets == {0x01: 0xF0, 0x09: 0x40, 0x10: 0x60}
    assert (config.get(0x34, 1), config.get(0xF1, 1), config.get(0x41, 1), config.get(0x61, 1)) == (0xF0, 0x40, 0x60, 0)


@for_each(
    [
        [Placed(PowerManagement(), offset=0x3C)],
        [Placed(PowerManagement(), offset=0x42)],
        [Placed(PowerManagement(), offset=0xFC)],
        [Placed(PowerManagement(), offset=0x100)],
        [Placed(PowerManagement(), offset=0x40), Placed(VendorSpecific(b"a"), offset=0x44)],
        [Placed(SerialNumber(1), offset=0x40)],
        [Placed(SerialNumber(1), offset=0x200)],
        [Placed(VendorSpecific(bytes(100)), offset=0x80), VendorSpecific(bytes(62))],
    ],
    ids=["in the header", "askew", "past the end", "too far", "on another", "too near", "not the first", "no gap"],
)
def test_where_a_capability_cannot_be_it_is_refused(capabilities: list[Capability | Placed]) -> None:
    with pytest.raises(ValueError, match=r"cannot be at|does not fit|has to be at"):
        build_config_space(IDS, capabilities=capabilities)


def test_extended_capabilities_begin_where_software_does() -> None:
    capabilities: list[Capability | Placed] = [Placed(ExtendedVendor(7, b"abcd"), offset=0x200), SerialNumber(1)]
    config, _ = build_config_space(IDS, capabilities=capabilities)
    assert config.find_capability(SerialNumber.id, extended=True) == 0x100
    assert config.find_capability(ExtendedVendor.id, extended=True) == 0x200
    assert config.get(0x200, 4) >> 20 == 0


@for_each([0x01, 0x03, 0x10])
def test_the_two_chains_have_numbers_of_their_own(id: int) -> None:
    """Number 1 is power management in the one, and advanced error reporting in the other."""

    class Conventional(VendorSpecific):
        repeatable = False

    class Extended(SerialNumber):
        pass

    Conventional.id = Extended.id = id
    wanted = [Conventional(b"a"), Extended(1)]
    config, _ = build_config_space(IDS, capabilities=wanted)
    assert (config.find_capability(id), config.find_capability(id, extended=True)) == (0x40, 0x100)
    for one in wanted:
        with pytest.raises(ValueError, match="there twice"):
            build_config_space(IDS, capabilities=[*wanted, one])


@given(st.lists(st.tuples(st.integers(1, 20), st.none() | st.integers(16, 60)), max_size=6))
def test_no_two_capabilities_share_a_byte(wanted: list[tuple[int, int | None]]) -> None:
    capabilities = [Placed(VendorSpecific(bytes(size)), None if at is None else 4 * at) for size, at in wanted]
    try:
        placed = place_capabilities(capabilities)
    except ValueError:
        return
    taken = sorted((each.place, each.place + each.capability.size) for each in placed)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(taken))
    assert [each.capability for each in placed] == [each.capability for each in capabilities]


def test_the_next_capability_of_an_id_is_found() -> None:
    config, _ = build_config_space(
        IDS, capabilities=[VendorSpecific(b"a"), PowerManagement(), VendorSpecific(b"b"), SerialNumber(1)]
    )
    first = config.find_capability(0x09)
    assert first == 0x40
    second = config.find_capability(0x09, after=first)
    assert second == 0x4C
    assert config.find_capability(0x09, after=second) is None
    assert config.find_capability(0x10) is None
    assert config.find_capability(0x03) is None
    assert config.find_capability(0x03, extended=True) == 0x100


def test_a_chain_that_is_a_loop_ends() -> None:
    config, _ = build_config_space(IDS, capabilities=[PowerManagement()])
    config.set(0x41, 1, 0x40)
    assert config.find_capability(0x05) is None
    assert build_config_space(IDS)[0].find_capability(0x03, extended=True) is None


class Card(PciDevice):
    """A capability of each kind."""

    ids = IDS
    interrupts = Msi(2, capability=0xD0) | MsiX(2, capability=0xC0)
    capabilities = (
        Placed(PciExpress(flr=True), offset=0x50, read_only=True),
        Placed(VendorSpecific(b"abcdef", writable=b"\xff" * 6), offset=0x90, callback=True),
        Placed(VendorSpecific(b"open", writable=b"\xff" * 4), offset=0xA0),
    )

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[object, ...]] = []

    def capability_read(self, capability: Capability, offset: int, count: int) -> bytes:
        self.log.append(("read", offset, count))
        return super().capability_read(capability, offset, count)

    def capability_write(self, capability: Capability, offset: int, data: bytes) -> None:
        self.log.append(("write", offset, data))
        super().capability_write(capability, offset, data.upper())

    def on_config_read(self, offset: int, count: int) -> None:
        if offset == 0xFC:
            raise ProtocolError("not for reading", errno.EPERM)

    def on_config_write(self, offset: int, data: bytes) -> None:
        self.log.append(("written", offset, self.config.read(offset, len(data))))

    def on_reset(self, kind: ResetKind) -> None:
        self.log.append(("reset", kind))


def test_what_is_read_only_takes_nothing_and_resets_nothing() -> None:
    card = Card()
    before = function_of(card).region_read(CONFIG, 0x50, 0x3C)
    for offset in range(0x52, 0x8C, 2):
        write_register(card, CONFIG, offset, 2, 0xFFFF)
    assert function_of(card).region_read(CONFIG, 0x50, 0x3C) == before
    assert not any(entry[0] == "reset" for entry in card.log)


def test_a_capability_with_callbacks_is_asked_for_its_registers_and_not_for_its_header() -> None:
    card = Card()
    assert function_of(card).region_read(CONFIG, 0x90, 9) == bytes([0x09, 0xA0, 9]) + b"abcdef"
    assert card.log == [("read", 0x92, 7)]
    card.log.clear()
    function_of(card).region_write(CONFIG, 0x8E, b"1234567x")  # from before it into it
    assert card.log == [("write", 0x92, b"567x"), ("written", 0x8E, bytes(2) + bytes([0x09, 0xA0, 9]) + b"67X")]


def test_the_others_are_as_they_were() -> None:
    card = Card()
    function_of(card).region_write(CONFIG, 0xA3, b"shut")
    assert function_of(card).region_read(CONFIG, 0xA3, 4) == b"shut"
    assert card.log == [("written", 0xA3, b"shut")]


def test_a_read_is_refused_with_the_errno_of_the_hook() -> None:
    with pytest.raises(ProtocolError) as refused:
        read_register(Card(), CONFIG, 0xFC, 4)
    assert refused.value.errno == errno.EPERM


def test_interrupts_have_their_capabilities_at_chosen_places_too() -> None:
    card = Card()
    function_of(card).attach(RecordingLink(in_band_interrupts=True))
    assert (card.config.find_capability(0x05), card.config.find_capability(0x11)) == (0xD0, 0xC0)
    write_register(card, CONFIG, 0xD2, 2, 1 | 1 << 4)
    assert card.interrupts.active == "msi"
    function_of(card).detach()
    card.close()


@for_each_row([(False, 0x40, 0x100), (True, 0x100, 0x1000)])
def test_a_capability_may_take_all_the_room_there_is_and_end_with_it(extended: bool, first: int, end: int) -> None:
    def capability(size: int) -> Capability:
        return ExtendedVendor(1, bytes(size - 8)) if extended else VendorSpecific(bytes(size - 3))

    assert place_capabilities([capability(end - first)])[0].place == first
    beginning = Placed(capability(16), first)
    assert [each.place for each in place_capabilities([beginning, Placed(capability(16), end - 16)])] == [
        first,
        end - 16,
    ]
    assert [each.place for each in place_capabilities([beginning, capability(end - first - 16)])] == [first, first + 16]
    for placed in ([capability(end - first + 1)], [beginning, Placed(capability(17), end - 16)]):
        with pytest.raises(ValueError, match=r"fit|cannot be at"):
            place_capabilities(placed)


def test_of_a_capability_that_is_read_only_no_bit_can_be_cleared_either() -> None:
    config, places = build_config_space(PciIds(1, 2), capabilities=[Placed(PciExpress(), read_only=True)])
    status = places[PciExpress.id] + 0x0A
    config.set(status, 2, 0x000F)
    config.write(status, b"\xff\xff")
    assert config.get(status, 2) == 0x000F


@for_each_row([(b"", b"\0\0\0\0"), (b"ab", b"ab\0\0"), (b"abcdef", b"abcd")])
def test_what_a_device_answers_for_a_capability_is_as_long_as_what_was_asked_for(given: bytes, read: bytes) -> None:
    class Terse(PciDevice):
        ids = IDS
        capabilities = (Placed(VendorSpecific(bytes(13)), offset=0x40, callback=True),)

        def capability_read(self, capability: Capability, offset: int, count: int) -> bytes:
            return given

    device = Terse()
    assert function_of(device).region_read(CONFIG, 0x44, 4) == read
    device.close()
