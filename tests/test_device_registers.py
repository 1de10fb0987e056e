"""Registers as authors declare them, reached by accesses of every width and alignment."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.cases import for_each_row
from vfio_user import Bar, MsiX, PciDevice, PciIds, ProtocolError, memory, register, state, stored_register
from vfio_user.device import function_of
from vfio_user.testing import Vectors, read_register, write_register

MSIX = 2


class Doorbell(PciDevice):
    """Adds up what the guest writes, and interrupts it on every ring."""

    ids = PciIds(vendor=0x1AF4, device=0x10F0)
    interrupts = MsiX(vectors=1)
    total: int = state(0)

    @register(bar=0, offset=0x0, width=4)
    def ring(self, value: int) -> None:
        self.total += value
        self.interrupts.trigger(0)

    @ring.reader
    def _(self) -> int:
        return self.total


class Board(PciDevice):
    """Registers of every kind in BAR 0, behind each other."""

    ids = PciIds(vendor=0x1AF4, device=0x10F1)
    log: list[tuple[str, int]] = state([])
    bells: list[int] = state([0, 0, 0, 0])

    word: int = stored_register(bar=0, offset=0x00, width=4, default=0x44332211)
    wide: int = stored_register(bar=0, offset=0x08, width=8)
    half: int = stored_register(bar=0, offset=0x10, width=2, default=0xBEEF)
    byte: int = stored_register(bar=0, offset=0x12, width=1)
    partly: int = stored_register(bar=0, offset=0x14, width=4, default=0xFFFF0000, writable=0x0000FFFF)
    fixed: int = stored_register(bar=0, offset=0x18, width=4, default=7, writable=0)
    ram: memoryview = memory(0x20, bar=0, offset=0x40)

    @register(bar=0, offset=0x20, width=4)
    def command(self, value: int) -> None:
        self.log.append(("command", value))

    @register(bar=0, offset=0x24, width=4)
    def identify(self) -> int:
        self.log.append(("identify", 0))
        return 0x01020304

    @register(bar=0, offset=0x28, width=4, merge=False)
    def acknowledge(self, value: int) -> None:
        self.log.append(("acknowledge", value))

    @acknowledge.reader
    def _(self) -> int:
        return 0xFFFFFFFF

    @register(bar=0, offset=0x30, width=(4, 8))
    def address(self, value: int) -> None:
        self.log.append(("address", value))

    @address.reader
    def _(self) -> int:
        return 0x1122334455667788

    @register(bar=0, offset=0x80, width=4, count=4, stride=8)
    def bell(self, index: int, value: int) -> None:
        self.bells[index] = value

    @bell.reader
    def _(self, index: int) -> int:
        return self.bells[index] + index


@pytest.fixture
def board() -> Iterator[Board]:
    with closing(Board()) as board:
        yield board


def test_a_device_of_25_lines_adds_up_and_interrupts() -> None:
    device = Doorbell()
    wires = Vectors(device, MSIX)
    for value in (5, 6):
        write_register(device, 0, 0, 4, value)
    assert read_register(device, 0, 0, 4) == 11
    assert wires.fired() == [2]
    wires.close()
    function_of(device).detach()
    device.close()


def test_every_whole_register_is_in_the_tables_of_the_hot_path(board: Board) -> None:
    assert function_of(board).readers[0, 0, 4]() == 0x44332211
    function_of(board).writers[0, 8, 8](1 << 63)
    assert board.wide == 1 << 63
    function_of(board).writers[0, 0x98, 4](9)
    assert board.bells == [0, 0, 0, 9]
    assert function_of(board).readers[0, 0x98, 4]() == 12
    assert function_of(board).readers.keys() == function_of(board).writers.keys()
    assert (0, 0x40, 4) not in function_of(board).readers


def test_a_register_without_reader_reads_as_zero(board: Board) -> None:
    assert read_register(board, 0, 0x20, 4) == 0


def test_a_register_without_writer_ignores_writes(board: Board) -> None:
    write_register(board, 0, 0x24, 4, 5)
    write_register(board, 0, 0x18, 4, 5)
    assert board.log == []
    assert board.fixed == 7


def test_a_stored_register_takes_only_its_writable_bits(board: Board) -> None:
    write_register(board, 0, 0x14, 4, 0x12345678)
    assert board.partly == 0xFFFF5678


@for_each_row(
    [(0, 1, 0x11), (1, 1, 0x22), (3, 1, 0x44), (2, 2, 0x4433), (1, 2, 0x3322), (0, 8, 0x44332211), (0x10, 4, 0xBEEF)]
)
def test_a_narrow_wide_or_unaligned_read_takes_the_bytes_it_covers(
    offset: int, width: int, value: int, board: Board
) -> None:
    assert read_register(board, 0, offset, width) == value


def test_a_read_across_registers_reads_each_once_and_gaps_as_zero(board: Board) -> None:
    assert function_of(board).region_read(0, 0x22, 8) == b"\0\0" + b"\x04\x03\x02\x01" + b"\xff\xff"
    assert board.log == [("identify", 0)]


def test_a_write_to_a_part_of_a_register_keeps_the_rest(board: Board) -> None:
    write_register(board, 0, 1, 1, 0xAA)
    assert board.word == 0x4433AA11
    write_register(board, 0, 0x0C, 4, 0xDEADBEEF)
    assert board.wide == 0xDEADBEEF << 32


def test_a_write_to_a_part_of_an_acknowledge_register_leaves_the_rest_zero(board: Board) -> None:
    write_register(board, 0, 0x29, 1, 0x80)
    assert board.log == [("acknowledge", 0x8000)]


def test_a_write_across_registers_writes_each_once_in_ascending_order(board: Board) -> None:
    function_of(board).region_write(0, 0x1C, b"\0\0\0\0" + b"\1\0\0\0" + b"\2\0\0\0" + b"\3\0")
    assert board.log == [("command", 1), ("acknowledge", 3)]


def test_registers_of_several_widths_take_the_whole_value_by_each(board: Board) -> None:
    write_register(board, 0, 0x30, 4, 0x1234)
    write_register(board, 0, 0x30, 8, 1 << 40)
    assert board.log == [("address", 0x1234), ("address", 1 << 40)]
    assert read_register(board, 0, 0x30, 4) == 0x55667788


def test_the_upper_half_of_such_a_register_is_a_part_of_it(board: Board) -> None:
    write_register(board, 0, 0x34, 4, 0xAAAAAAAA)
    assert board.log == [("address", 0xAAAAAAAA55667788)]


def test_memory_and_registers_meet_in_one_access(board: Board) -> None:
    function_of(board).region_write(0, 0x3E, b"\1\2\3\4")
    assert bytes(board.ram[:3]) == b"\3\4\0"
    assert function_of(board).region_read(0, 0x40, 4) == b"\3\4\0\0"


def test_an_array_passes_the_index(board: Board) -> None:
    for index in range(4):
        write_register(board, 0, 0x80 + 8 * index, 4, 10 * index)
    assert board.bells == [0, 10, 20, 30]
    assert read_register(board, 0, 0x90, 4) == 22
    assert read_register(board, 0, 0x94, 4) == 0


def test_a_bar_is_as_large_as_what_is_in_it_in_whole_pages(board: Board) -> None:
    assert function_of(board).regions[0].size == 0x1000
    assert [region.size for region in function_of(board).regions[1:7]] == [0] * 6


@for_each_row(
    [(0, 0x1000, 1), (0, 0xFFC, 8), (0, 1 << 63, 4), (1, 0, 1), (6, 0, 4), (8, 0, 4), (9, 0, 4), (1 << 31, 0, 4)]
)
def test_an_access_past_the_end_is_refused_and_changes_nothing(
    region: int, offset: int, count: int, board: Board
) -> None:
    before = board.digest()
    with pytest.raises(ProtocolError) as refusal:
        function_of(board).region_read(region, offset, count)
    assert refusal.value.errno == errno.EINVAL
    with pytest.raises(ProtocolError) as refusal:
        function_of(board).region_write(region, offset, b"\xff" * count)
    assert refusal.value.errno == errno.EINVAL
    assert board.digest() == before


class Careless(Board):
    """Returns what does not fit: as a number below zero, which is meant so, and by mistake."""

    value: int = state(0)

    @register(bar=0, offset=0xC0, width=4)
    def given(self) -> int:
        return self.value

    @register(bar=0, offset=0xC8, width=(2, 4))
    def either(self) -> int:
        return self.value


FITS = {-1: 0xFFFFFFFF, ~5: 0xFFFFFFFA, -(1 << 31): 0x80000000, 0: 0, 0xFFFFFFFF: 0xFFFFFFFF, True: 1}
TOO_WIDE = {1 << 32: 0, 0x123456789: 0x23456789, -(1 << 31) - 1: 0x7FFFFFFF}


@for_each_row(FITS.items())
def test_a_negative_value_is_its_twos_complement(value: int, read: int, caplog: pytest.LogCaptureFixture) -> None:
    device = Careless()
    device.value = value
    assert read_register(device, 0, 0xC0, 4) == read
    assert read_register(device, 0, 0xC1, 2) == read >> 8 & 0xFFFF
    assert read_register(device, 0, 0xC8, 2) == read & 0xFFFF
    assert not caplog.records


@for_each_row([(*row0, *row1) for row0 in [(0xC0, 4), (0xC0, 2), (0xBE, 8), (0xC8, 2)] for row1 in TOO_WIDE.items()])
def test_a_value_that_is_too_wide_for_its_register_is_cut_and_said_once(
    offset: int, width: int, value: int, read: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = Careless()
    device.value = value
    for _ in range(3):
        assert read_register(device, 0, max(offset, 0xC0), 2) == read & 0xFFFF
        function_of(device).region_read(0, offset, width)
    (said,) = caplog.messages
    assert f"Careless.{'given' if offset < 0xC8 else 'either'} is {value:#x}" in said
    assert caplog.records[0].levelname == "ERROR"


class Strict(PciDevice):
    """Registers that answer only to their own widths."""

    ids = PciIds(vendor=1, device=2)
    bars = (Bar(0, size=0x2000, exact=True),)
    value: int = stored_register(bar=0, offset=0, width=(4, 8))
    refused: list[tuple[int, int]] = state([])

    def unclaimed_read(self, region: int, offset: int, count: int) -> bytes:
        return b"\xee" * count

    def unclaimed_write(self, region: int, offset: int, data: bytes) -> None:
        self.refused.append((offset, len(data)))


def test_an_exact_bar_serves_only_accesses_that_are_exactly_a_register() -> None:
    device = Strict()
    write_register(device, 0, 0, 8, 5)
    write_register(device, 0, 0, 4, 6)
    for offset, width in ((0, 2), (4, 4), (2, 4)):
        write_register(device, 0, offset, width, 0xFF)
        assert read_register(device, 0, offset, width) == int.from_bytes(b"\xee" * width, "little")
    assert device.value == 6
    assert device.refused == [(0, 2), (4, 4), (2, 4)]


def test_a_subclass_has_the_registers_of_its_base_and_may_replace_one() -> None:
    class More(Doorbell):
        scratch: int = stored_register(bar=0, offset=0x10, width=4)

        @register(bar=0, offset=0x0, width=4)
        def ring(self, value: int) -> None:  # type: ignore[override]
            self.total -= value

    device = More()
    write_register(device, 0, 0, 4, 3)
    write_register(device, 0, 0x10, 4, 9)
    assert (device.total, device.scratch) == (-3, 9)


def test_a_subclass_keeps_every_register_of_its_base_that_was_completed_under_the_name_underscore() -> None:
    class Base(PciDevice):
        ids = PciIds(vendor=1, device=2)
        first: int = state(1)
        second: int = state(2)

        @register(bar=0, offset=0, width=4)
        def one(self, value: int) -> None:
            self.first = value

        @one.reader
        def _(self) -> int:
            return self.first

        @register(bar=0, offset=4, width=4)
        def two(self, value: int) -> None:
            self.second = value

        @two.reader
        def _(self) -> int:
            return self.second

    class More(Base):
        @register(bar=0, offset=8, width=4)
        def three(self, value: int) -> None:
            """Nothing."""

        @three.reader
        def _(self) -> int:  # type: ignore[override]
            return 3

        @register(bar=0, offset=12, width=4)
        def four(self, value: int) -> None:
            """Nothing."""

        @four.reader
        def _(self) -> int:  # type: ignore[override]
            return 4

    device = More()
    assert [read_register(device, 0, offset, 4) for offset in (0, 4, 8, 12)] == [1, 2, 3, 4]


def test_a_reader_may_have_the_name_of_its_register() -> None:
    class Same(PciDevice):
        ids = PciIds(vendor=1, device=2)

        @register(bar=0, offset=0, width=4)
        def ring(self, value: int) -> None:
            """Nothing."""

        @ring.reader  # type: ignore[no-redef]
        def ring(self) -> int:
            return 42

    assert read_register(Same(), 0, 0, 4) == 42


def test_declarations_that_contradict_each_other_are_refused() -> None:
    class Overlapping(Doorbell):
        other: int = stored_register(bar=0, offset=0x2, width=4)

    class TooSmall(Doorbell):
        bars = (Bar(0, size=16),)
        other: int = stored_register(bar=0, offset=0x10, width=4)

    class Elsewhere(Doorbell):
        other: int = stored_register(bar=9, offset=0, width=4)

    for wrong in (Overlapping, TooSmall, Elsewhere):
        with pytest.raises(ValueError, match=r"overlap|declarations|region"):
            wrong()
