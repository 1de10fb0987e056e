"""Saved states: any transfer size works, and whatever is wrong with one is refused before anything changes."""

from __future__ import annotations

import copy
import io
import re
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from tests.migration_device import Adder, get_state, load, save, set_state, write_data
from userdev.declare.values import encode
from userdev.errors import ProtocolError
from vfio_user.migration import Migration
from vfio_user.migration.stream import (
    MAX_FRAME,
    PREAMBLE,
    VERSION,
    FrameKind,
    FrameReader,
    FrameWriter,
    digests_in,
)
from vfio_user.wire.constants import MigrationState


def device() -> Adder:
    """Little memory, so that every byte of its stream can be tried."""
    found = Adder(0x20)
    found.values = {"total": 7, "label": "seven", "queue": [1, b"two", None]}
    found.ram[:5] = b"bytes"
    return found


def look(found: Adder) -> tuple[dict[str, Any], bytes]:
    return copy.deepcopy(found.values), bytes(found.ram)


def resume(migration: Migration, data: bytes) -> None:
    write_data(migration, data, 50)
    set_state(migration, MigrationState.RUNNING)


def assert_refused(data: bytes, target: Adder | None = None, match: str = "") -> None:
    """The state is refused with a reason, at the latest where RESUMING ends, and the device is what it was."""
    target = target or Adder(0x20)
    before = look(target)
    migration = Migration(target)
    set_state(migration, MigrationState.RESUMING)
    with pytest.raises(ProtocolError) as refused:
        resume(migration, data)
    assert re.search(match, str(refused.value))
    assert look(target) == before
    assert "load" not in target.actions
    with pytest.raises(ProtocolError):
        set_state(migration, MigrationState.RUNNING)
    assert get_state(migration) is MigrationState.ERROR


@for_each([1, 3, 17, 4096, 1 << 20], [1, 5, 1000, 1 << 20])
def test_a_state_arrives_whatever_the_transfers(read: int, write: int) -> None:
    source, target = device(), Adder(0x20)
    data = save(source, read)
    assert data == save(source)
    load(target, data, write)
    assert look(target) == look(source)
    assert target.digests() == source.digests()


def test_a_small_state_makes_a_small_stream() -> None:
    found = Adder(0)
    found.values = {"total": 7, "label": "", "queue": []}
    assert len(save(found)) < 400


def test_a_state_cut_at_any_byte_is_refused() -> None:
    data = save(device())
    for end in range(len(data)):
        assert_refused(data[:end])


def test_a_state_with_any_byte_flipped_is_refused() -> None:
    data = save(device())
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            assert_refused(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_state_with_any_bytes_replaced_is_refused(choose: st.DataObject) -> None:
    data = save(device())
    start = choose.draw(st.integers(0, len(data)))
    end = choose.draw(st.integers(start, min(len(data), start + 64)))
    new = choose.draw(st.binary(max_size=64))
    if data[start:end] != new:
        assert_refused(data[:start] + new + data[end:])


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    assert_refused(data)


@for_each([b"\0", b"more", b"VFUSTATE"])
def test_bytes_behind_the_end_are_refused(more: bytes) -> None:
    assert_refused(save(device()) + more, match=r"behind its end")


def test_a_state_twice_is_refused() -> None:
    assert_refused(save(device()) * 2, match=r"behind its end")


@for_each([0, VERSION + 1, 0xFFFFFFFF])
def test_an_unknown_version_is_refused(version: int) -> None:
    data = bytearray(save(device()))
    struct.pack_into("<I", data, 8, version)
    assert_refused(bytes(data), match=f"version {version}")


WRONG_TARGETS = {
    "class": (Adder(0x20, device_class="multiplier"), "another device: class is 'adder' there"),
    "configuration": (Adder(0x20, color="blue"), "configured differently: color is 'red' there and 'blue' here"),
    "memory": (Adder(0x40), "other memory"),
}


@for_each_row(WRONG_TARGETS.values(), ids=WRONG_TARGETS)
def test_the_state_of_another_device_is_refused(target: Adder, reason: str) -> None:
    assert_refused(save(device()), target, match=reason)


def test_the_state_of_another_device_is_refused_with_its_first_bytes() -> None:
    source = Adder(1 << 20)
    source.ram[:] = b"\xa5" * len(source.ram)
    migration = Migration(Adder(1 << 20, color="blue"))
    set_state(migration, MigrationState.RESUMING)
    with pytest.raises(ProtocolError, match="configured differently"):
        write_data(migration, save(source)[:4096])


def test_values_that_the_device_does_not_take_are_refused() -> None:
    source = device()
    source.values["extra"] = 1
    assert_refused(save(source), match="other values")


def made(*frames: tuple[FrameKind, bytes, int], end: dict[str, Any] | None = None) -> bytes:
    """A stream with these frames behind a good identity, and good checksums."""
    writer, target = FrameWriter(), Adder(0x20)
    identity = {"identity": dict(target.identity()), "memories": [("ram", 0x20)]}
    data = writer.preamble + writer.frame(FrameKind.IDENTITY, encode(identity))
    for kind, payload, section in frames:
        data += writer.frame(kind, payload, section)
    good = {"frames": writer.frames, "digests": target.digests()}
    return data + writer.frame(FrameKind.END, encode(good if end is None else end))


GOOD_VALUES = (FrameKind.STATE, encode(Adder().values), 0)
MALFORMED = {
    "memory behind its end": made((FrameKind.MEMORY, struct.pack("<Q", 0x1C) + b"bytes", 0), GOOD_VALUES),
    "zeros behind its end": made((FrameKind.ZERO, struct.pack("<QQ", 0, 0x21), 0), GOOD_VALUES),
    "zeros without end": made((FrameKind.ZERO, struct.pack("<QQ", 1 << 63, 1 << 63), 0), GOOD_VALUES),
    "memory of no section": made((FrameKind.MEMORY, struct.pack("<Q", 0) + b"bytes", 1), GOOD_VALUES),
    "memory without offset": made((FrameKind.MEMORY, b"1234567", 0), GOOD_VALUES),
    "zeros without length": made((FrameKind.ZERO, bytes(15), 0), GOOD_VALUES),
    "a second identity": made((FrameKind.IDENTITY, encode({"identity": {}, "memories": []}), 0), GOOD_VALUES),
    "values that are no dict": made((FrameKind.STATE, encode([1, 2]), 0)),
    "no values": made(),
    "values that end early": made((FrameKind.STATE, encode(Adder().values)[:-1], 0)),
    "an end without digests": made(GOOD_VALUES, end={"frames": 2}),
    "an end with another count": made(GOOD_VALUES, end={"frames": 9, "digests": {}}),
    "an end after more frames than it says": made(GOOD_VALUES, end={"frames": 1, "digests": Adder(0x20).digests()}),
    "an end after fewer frames than it says": made(GOOD_VALUES, end={"frames": 3, "digests": Adder(0x20).digests()}),
}


@for_each(MALFORMED.values(), ids=MALFORMED)
def test_malformed_streams_with_good_checksums_are_refused(data: bytes) -> None:
    assert_refused(data)


def test_the_malformed_streams_would_be_good_otherwise() -> None:
    load(Adder(0x20), made((FrameKind.MEMORY, struct.pack("<Q", 0x1B) + bytes(5), 0), GOOD_VALUES))


def test_a_frame_that_claims_to_be_huge_is_refused_before_it_comes() -> None:
    reader = FrameReader()
    with pytest.raises(ProtocolError, match="corrupt"):
        list(reader.feed(FrameWriter().preamble + struct.pack("<HHII", FrameKind.STATE, 0, 0xFFFFFFFF, 0)))


def test_a_frame_of_a_kind_that_there_is_not_is_refused_when_it_is_there() -> None:
    """And not taken for one that has still to come."""
    writer = FrameWriter()
    unknown: Any = max(FrameKind) + 1
    with pytest.raises(ProtocolError, match="unknown"):
        list(FrameReader().feed(writer.preamble + writer.frame(unknown, b"")))


def test_the_largest_frame_arrives_and_one_that_is_larger_by_a_byte_does_not() -> None:
    writer = FrameWriter()
    stream = writer.preamble + writer.frame(FrameKind.STATE, bytes(MAX_FRAME))
    assert [len(frame.payload) for frame in FrameReader().feed(stream)] == [MAX_FRAME]
    too_large = struct.pack("<HHII", FrameKind.STATE, 0, MAX_FRAME + 1, 0)
    with pytest.raises(ProtocolError, match="corrupt"):
        list(FrameReader().feed(FrameWriter().preamble + too_large))


class InPieces(io.BytesIO):
    """A stream that nobody may read whole."""

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 < size <= MAX_FRAME
        return super().read(size)


def test_the_digests_are_found_in_a_stream_and_in_nothing_else() -> None:
    source = device()
    stream = save(source)
    assert digests_in(InPieces(stream)) == dict(source.digests())
    for other in (b"", b"no state", stream[:-1], stream[: len(stream) // 2]):
        assert digests_in(io.BytesIO(other)) == {}


def test_frames_out_of_order_are_refused() -> None:
    writer = FrameWriter()
    first, second = writer.frame(FrameKind.STATE, b"first"), writer.frame(FrameKind.STATE, b"other")
    assert [frame.payload for frame in FrameReader().feed(writer.preamble + first + second)] == [b"first", b"other"]
    for wrong in (second + first, second, first + first):
        with pytest.raises(ProtocolError, match="checksum"):
            list(FrameReader().feed(writer.preamble + wrong))


def test_the_preamble_is_what_it_is_documented_to_be() -> None:
    assert save(device())[: PREAMBLE.size] == b"VFUSTATE" + (2).to_bytes(4, "little")


def test_a_device_that_fails_while_it_loads_is_what_it_was() -> None:
    source, target = device(), Adder(0x20)
    before = look(target)
    migration = Migration(target)
    set_state(migration, MigrationState.RESUMING)
    write_data(migration, save(source))

    def fail_once(state: object) -> None:
        del target.load_state
        target.values["total"] = 1234
        raise OSError(28, "no space")

    target.load_state = fail_once  # type: ignore[method-assign]
    with pytest.raises(ProtocolError) as refused:
        set_state(migration, MigrationState.RUNNING)
    assert refused.value.errno == 28
    assert look(target) == before
    assert get_state(migration) is MigrationState.ERROR


def test_a_device_that_loads_something_else_than_was_saved_is_refused_and_put_back() -> None:
    source, target = device(), Adder(0x20)
    target.ram[:] = b"\x11" * 0x20
    before = look(target)
    load_state = target.load_state

    def forget_label(state: Any) -> None:
        load_state({**state, "label": ""})

    target.load_state = forget_label  # type: ignore[method-assign]
    migration = Migration(target)
    set_state(migration, MigrationState.RESUMING)
    write_data(migration, save(source))
    with pytest.raises(ProtocolError, match="what differs: label"):
        set_state(migration, MigrationState.RUNNING)
    assert look(target) == before
