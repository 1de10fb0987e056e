"""Every structure has its fields where the specification and the reference implementations have them.

The numbers are written down here a second time, by hand, from the tables of the specification: offsets and sizes
within the structure, which begins behind the 16-byte header.
"""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each
from userdev.errors import ProtocolError, UserError
from userdev.layout import Layout
from vfio_user.wire import CURRENT, DIALECTS, DRAFT_V6, HEADER, REGION_MIGRATION, Command, Message, Sender, layouts
from vfio_user.wire.dialects import dialect_named

# structure: ((offset, size) of each field in order), size of the whole
FIELDS: dict[str, tuple[tuple[tuple[int, int], ...], int]] = {
    "VERSION": (((0, 2), (2, 2)), 4),
    "DMA_MAP": (((0, 4), (4, 4), (8, 8), (16, 8), (24, 8)), 32),
    "DMA_ENTRY_V6": (((0, 8), (8, 8), (16, 8), (24, 4), (28, 4)), 32),
    "DMA_UNMAP": (((0, 4), (4, 4), (8, 8), (16, 8)), 24),
    "BITMAP": (((0, 8), (8, 8)), 16),
    "BITMAP_V6": (((0, 8), (8, 8), (16, 8)), 24),
    "DEVICE_INFO": (((0, 4), (4, 4), (8, 4), (12, 4)), 16),
    "REGION_INFO": (((0, 4), (4, 4), (8, 4), (12, 4), (16, 8), (24, 8)), 32),
    "CAPABILITY_HEADER": (((0, 2), (2, 2), (4, 4)), 8),
    "SPARSE_MMAP": (((0, 4), (4, 4)), 8),
    "SPARSE_AREA": (((0, 8), (8, 8)), 16),
    "REGION_TYPE": (((0, 4), (4, 4)), 8),
    "REGION_IO_FDS": (((0, 4), (4, 4), (8, 4), (12, 4)), 16),
    "IO_FD": (((0, 8), (8, 8), (16, 4), (20, 4), (24, 4), (28, 4), (32, 8), (40, 8)), 48),
    "IRQ_INFO": (((0, 4), (4, 4), (8, 4), (12, 4)), 16),
    "IRQ_SET": (((0, 4), (4, 4), (8, 4), (12, 4), (16, 4)), 20),
    "VM_INTERRUPT": (((0, 4),), 4),
    "REGION_ACCESS": (((0, 8), (8, 4), (12, 4)), 16),
    "WRITE_MULTI": (((0, 8),), 8),
    "DMA_ACCESS": (((0, 8), (8, 8)), 16),
    "DMA_ACCESS_32": (((0, 8), (8, 4)), 12),
    "DIRTY_PAGES": (((0, 4), (4, 4)), 8),
    "DIRTY_RANGE": (((0, 8), (8, 8), (16, 8), (24, 8)), 32),
    "DIRTY_RANGE_V6": (((0, 8), (8, 8), (16, 8), (24, 8), (32, 8)), 40),
    "FEATURE": (((0, 4), (4, 4)), 8),
    "MIGRATION_FLAGS": (((0, 8),), 8),
    "DEVICE_STATE": (((0, 4), (4, 4)), 8),
    "LOGGING_CONTROL": (((0, 8), (8, 4), (12, 4)), 16),
    "LOGGING_RANGE": (((0, 8), (8, 8)), 16),
    "LOGGING_REPORT": (((0, 8), (8, 8), (16, 8)), 24),
    "MIGRATION_DATA": (((0, 4), (4, 4)), 8),
    "MIGRATION_REGION": (((0, 4), (4, 4), (8, 8), (16, 8), (24, 8)), 32),
}

# command: number in the draft, in `current`, in `region-migration`; None where the dialect lacks it
NUMBERS: dict[Command, tuple[int | None, int | None, int | None]] = {
    Command.VERSION: (1, 1, 1),
    Command.DMA_MAP: (2, 2, 2),
    Command.DMA_UNMAP: (3, 3, 3),
    Command.GET_INFO: (4, 4, 4),
    Command.GET_REGION_INFO: (5, 5, 5),
    Command.GET_REGION_IO_FDS: (None, 6, 6),
    Command.GET_IRQ_INFO: (6, 7, 7),
    Command.SET_IRQS: (7, 8, 8),
    Command.REGION_READ: (8, 9, 9),
    Command.REGION_WRITE: (9, 10, 10),
    Command.DMA_READ: (10, 11, 11),
    Command.DMA_WRITE: (11, 12, 12),
    Command.VM_INTERRUPT: (12, None, None),
    Command.DEVICE_RESET: (13, 13, 13),
    Command.DIRTY_PAGES: (14, None, 14),
    Command.REGION_WRITE_MULTI: (None, 15, 15),
    Command.DEVICE_FEATURE: (None, 16, None),
    Command.MIG_DATA_READ: (None, 17, None),
    Command.MIG_DATA_WRITE: (None, 18, None),
}

ALL_LAYOUTS = {name: value for name, value in vars(layouts).items() if isinstance(value, Layout)}
INTEGER_LAYOUTS = {name: layout for name, layout in ALL_LAYOUTS.items() if name != "WRITE_MULTI_ENTRY"}


def test_every_structure_has_its_offsets_written_down() -> None:
    assert FIELDS.keys() == INTEGER_LAYOUTS.keys()


@for_each(FIELDS)
def test_each_field_is_where_the_table_says(name: str) -> None:
    layout = INTEGER_LAYOUTS[name]
    fields, size = FIELDS[name]
    assert layout.size == size
    assert len(layout.record._fields) == len(fields)
    for index, (offset, width) in enumerate(fields):
        value = (1 << 8 * width) - 1
        values = [value if i == index else 0 for i in range(len(fields))]
        expected = bytearray(size)
        expected[offset : offset + width] = b"\xff" * width
        assert layout.pack(*values) == bytes(expected)
        assert list(layout.unpack(bytes(expected))) == values


def test_an_entry_of_write_multi_is_24_bytes_with_its_data_last() -> None:
    """Specification, REGION_WRITE_MULTI: offset +0/8, region +8/4, count +12/4, data +16/8."""
    entry = layouts.WRITE_MULTI_ENTRY.unpack(bytes([1]) + bytes(7) + b"\2\0\0\0" + b"\3\0\0\0" + b"abc\0\0\0\0\0")
    assert (layouts.WRITE_MULTI_ENTRY.size, entry) == (24, (1, 2, 3, b"abc\0\0\0\0\0"))


def test_integers_are_little_endian_and_the_header_has_16_bytes() -> None:
    message = Message(0x0201, 0x0403, 0x0C0B0A09, 0x100F0E0D, bytes(2))
    assert message.encode() == bytes([1, 2, 3, 4, 18, 0, 0, 0, 9, 10, 11, 12, 13, 14, 15, 16, 0, 0])


@given(
    id=st.integers(0, 0xFFFF),
    command=st.integers(0, 0xFFFF),
    flags=st.integers(0, 0xFFFFFFFF),
    errno_=st.integers(0, 0xFFFFFFFF),
    payload=st.binary(max_size=64),
)
def test_a_message_encodes_to_what_it_was_decoded_from(
    id: int, command: int, flags: int, errno_: int, payload: bytes
) -> None:
    message = Message(id, command, flags, errno_, payload)
    data = message.encode()
    assert HEADER.unpack_from(data) == (id, command, len(data), flags, errno_)
    assert data[16:] == payload


@given(st.data())
def test_packing_undoes_unpacking(data: Any) -> None:
    layout = data.draw(st.sampled_from(list(ALL_LAYOUTS.values())))
    payload = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    assert layout.struct.pack(*layout.unpack(payload)) == payload


@given(st.data())
def test_a_payload_that_is_too_short_is_einval(data: Any) -> None:
    layout = data.draw(st.sampled_from(list(ALL_LAYOUTS.values())))
    payload = data.draw(st.binary(max_size=layout.size - 1))
    with pytest.raises(ProtocolError) as caught:
        layout.unpack(payload)
    assert caught.value.errno == errno.EINVAL


def test_structures_that_fill_a_payload_come_one_by_one_and_a_rest_is_einval() -> None:
    table = layouts.SPARSE_AREA.pack(1, 2) + layouts.SPARSE_AREA.pack(3, 4)
    assert list(layouts.SPARSE_AREA.unpack_all(b"xx" + table, 2)) == [(1, 2), (3, 4)]
    with pytest.raises(ProtocolError):
        list(layouts.SPARSE_AREA.unpack_all(table + b"x"))


# dialects


@for_each(NUMBERS)
def test_each_command_has_its_number_in_each_dialect(command: Command) -> None:
    for dialect, number in zip((DRAFT_V6, CURRENT, REGION_MIGRATION), NUMBERS[command], strict=True):
        if number is None:
            assert command not in dialect
        else:
            assert dialect.number(command) == number
            assert dialect.command(number) is command


def test_no_command_is_missing_from_the_numbers() -> None:
    assert set(NUMBERS) == set(Command)


@for_each(DIALECTS.values(), ids=DIALECTS)
def test_only_dma_and_vm_interrupt_are_the_servers_to_send(dialect: Any) -> None:
    sent = {command for command, shape in dialect.shapes.items() if shape.sender is Sender.SERVER}
    assert sent <= {Command.DMA_READ, Command.DMA_WRITE, Command.VM_INTERRUPT}
    assert sent >= {Command.DMA_READ, Command.DMA_WRITE}


def test_numbers_nobody_gave_are_unknown() -> None:
    for dialect in DIALECTS.values():
        assert dialect.command(0) is None
        assert dialect.command(19) is None
    assert CURRENT.command(14) is None


def test_dma_counts_have_64_bits_but_where_they_are_said_to_have_32() -> None:
    sizes = {name: d.shapes[Command.DMA_READ].request.size for name, d in DIALECTS.items()}  # type: ignore[union-attr]
    wide = {"current": 16, "region-migration": 16}
    assert sizes == wide | {"draft-v6": 12, "current-dma32": 12, "region-migration-dma32": 12}


def test_an_unknown_dialect_is_named_with_the_known_ones() -> None:
    assert dialect_named("draft-v6") is DRAFT_V6
    with pytest.raises(UserError) as caught:
        dialect_named("klingon")
    assert "current" in caught.value.hint
