"""A source that does not mean well: whatever it sends has good checksums, and is refused by the one error there is."""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.cases import for_each
from tests.migration_device import Adder, get_state, load, read_data, save, set_state, write_data
from userdev.declare.values import MAX_ITEMS, encode
from userdev.errors import ProtocolError
from vfio_user.migration import Migration, Storage
from vfio_user.migration.stream import FrameKind, FrameWriter
from vfio_user.wire.constants import MigrationState


class Disk:
    """A storage in a bytearray, which grows where it is written."""

    def __init__(self, content: bytes = b"") -> None:
        self.name = "disk"
        self.content = bytearray(content)
        self.written: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return len(self.content)

    def next_data(self, offset: int) -> int:
        return offset

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def begin_saving(self) -> None:
        self.written.clear()

    def take_written(self) -> list[tuple[int, int]]:
        written, self.written = self.written, []
        return written

    def begin_loading(self, size: int) -> None:
        self.content = bytearray(size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.content.extend(bytes(max(0, offset + len(data) - self.size)))
        self.content[offset : offset + len(data)] = data
        self.written.append((offset, len(data)))

    def clear(self, offset: int, size: int) -> None:
        self.write(offset, bytes(size))

    def settle(self) -> None:
        pass

    def end(self) -> None:
        pass


class WithDisk(Adder):
    def __init__(self, content: bytes = b"") -> None:
        super().__init__(0x20)
        self.disk = Disk(content)

    def storages(self) -> Sequence[Storage]:
        return [self.disk]


HEADER: dict[str, Any] = {"identity": dict(Adder().identity()), "memories": [("ram", 0x20)], "storages": [("disk", 16)]}
VALUES = (FrameKind.STATE, encode(Adder().values), 0)
DISK = 1


def stream(*frames: tuple[FrameKind, bytes, int], header: object = HEADER) -> bytes:
    """A stream for `WithDisk`, right but for what is given."""
    writer = FrameWriter()
    data = writer.preamble + writer.frame(FrameKind.IDENTITY, encode(header))
    for kind, payload, section in frames:
        data += writer.frame(kind, payload, section)
    end = {"frames": writer.frames, "digests": dict(WithDisk().digests())}
    return data + writer.frame(FrameKind.END, encode(end))


def with_identity(**changes: object) -> dict[str, Any]:
    return {**HEADER, "identity": {**HEADER["identity"], **changes}}


def with_storages(storages: object) -> dict[str, Any]:
    return {**HEADER, "storages": storages}


def refusal(device: Adder, data: bytes) -> str:
    """Why a state is refused; the device is what it was."""
    before = dict(device.values), bytes(device.ram)
    migration = Migration(device)
    set_state(migration, MigrationState.RESUMING)
    with pytest.raises(ProtocolError) as refused:
        _resume(migration, data)
    assert refused.value.errno == errno.EINVAL
    assert (dict(device.values), bytes(device.ram)) == before
    assert get_state(migration) in (MigrationState.ERROR, MigrationState.RESUMING)
    migration.close()
    return str(refused.value)


def _resume(migration: Migration, data: bytes) -> None:
    write_data(migration, data)
    set_state(migration, MigrationState.RUNNING)


HEADERS: dict[str, object] = {
    "a class of a long text": with_identity(**{"class": "x" * 100_000}),
    "a class of a large number": with_identity(**{"class": 1 << 8000}),
    "a key of a long text": with_identity(**{"y" * 100_000: 1}),
    "keys of other types": {**HEADER, "identity": {**HEADER["identity"], 5: 1, b"x": 2, (1, "a"): 3, None: 4}},
    "memories of all sorts": {**HEADER, "memories": [("ram", 1 << 8000), None, {}, [[[]]]]},
    "many memories": {**HEADER, "memories": [("ram", 0x20)] * 10_000},
    "storages that are a number": with_storages(5),
    "storages that are text": with_storages("disk"),
    "a storage of no size": with_storages([("disk", -1)]),
    "a storage of a size that no file has": with_storages([("disk", 1 << 63)]),
    "a storage of a huge size": with_storages([("disk", 1 << 8000)]),
    "a storage that is none": with_storages([("disk", 16, 1)]),
    "a storage twice": with_storages([("disk", 16), ("disk", 17)]),
    "a storage by another name": with_storages([("z" * 100_000, 16)]),
}


@for_each(HEADERS.values(), ids=HEADERS)
def test_an_identity_of_all_sorts_is_refused_in_a_line(header: object) -> None:
    assert len(refusal(WithDisk(), stream(VALUES, header=header))) < 1000


def place(offset: int, data: bytes = b"") -> bytes:
    return struct.pack("<Q", offset) + data


BEYOND = {
    "bytes behind what was announced": (FrameKind.MEMORY, place(15, b"ab"), DISK),
    "bytes far behind": (FrameKind.MEMORY, place((1 << 64) - 1, b"ab"), DISK),
    "zeros behind": (FrameKind.ZERO, struct.pack("<QQ", 0, 17), DISK),
    "zeros far behind": (FrameKind.ZERO, struct.pack("<QQ", 1 << 63, 1 << 63), DISK),
    "growth of memory": (FrameKind.GREW, place(0x40), 0),
    "growth of no section": (FrameKind.GREW, place(0x40), 7),
    "growth to less": (FrameKind.GREW, place(15), DISK),
    "growth to what no file has": (FrameKind.GREW, place(1 << 63), DISK),
    "growth without a size": (FrameKind.GREW, b"1234567", DISK),
}


@for_each(BEYOND.values(), ids=BEYOND)
def test_nothing_goes_beyond_a_storage_as_it_was_announced(frame: tuple[FrameKind, bytes, int]) -> None:
    device = WithDisk()
    refusal(device, stream(frame, VALUES))
    assert device.disk.size <= 16


def test_the_stream_would_be_good_otherwise() -> None:
    device = WithDisk()
    load(device, stream((FrameKind.MEMORY, place(14, b"ab"), DISK), (FrameKind.GREW, place(20), DISK), VALUES))
    assert device.disk.content == bytes(14) + b"ab"


def test_a_storage_may_grow_while_it_is_saved() -> None:
    source, target = WithDisk(b"small"), WithDisk()
    migration = Migration(source)
    set_state(migration, MigrationState.PRE_COPY)
    data = read_data(migration)
    source.disk.write(5, b" and grown")
    set_state(migration, MigrationState.STOP_COPY)
    while piece := read_data(migration):
        data += piece
    load(target, data)
    assert target.disk.content == b"small and grown"


@for_each(
    ["check_state", "load_state"], [ValueError("x" * 10_000), KeyError("y"), ZeroDivisionError("z"), RecursionError()]
)
def test_values_that_a_device_stumbles_over_are_refused_and_the_author_sees_where(
    method: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    device = WithDisk()
    good: Callable[..., None] = getattr(device, method)

    def stumble(state: object) -> None:
        setattr(device, method, good)
        raise error

    setattr(device, method, stumble)
    with caplog.at_level(logging.WARNING):
        said = refusal(device, stream(VALUES))
    assert type(error).__name__ in said
    assert len(said) < 400
    assert any(record.exc_info and record.exc_info[1] is error for record in caplog.records)


def test_a_state_with_more_than_a_destination_takes_is_refused_before_the_device_stops() -> None:
    device = Adder()
    device.values["queue"] = [None] * MAX_ITEMS
    for state in (MigrationState.PRE_COPY, MigrationState.STOP_COPY):
        with pytest.raises(ProtocolError, match="items") as refused:
            set_state(Migration(device), state)
        assert refused.value.errno == errno.EIO
    assert not device.actions
    device.values["queue"] = [None] * 1000
    assert save(device)
