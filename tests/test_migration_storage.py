"""What migrates beside memory, a disk's image: it arrives whole, is told when it begins and ends, and may fail."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest

from tests.cases import for_each
from tests.migration_device import Adder, read_all, read_data, save, set_state, write_data
from userdev.errors import ProtocolError
from vfio_user.migration import Migration, Storage
from vfio_user.migration.memory import PIECE
from vfio_user.migration.stream import CHECKSUM, HEAD, PLACE
from vfio_user.wire.constants import MigrationState

STOP, RUNNING, STOP_COPY = MigrationState.STOP, MigrationState.RUNNING, MigrationState.STOP_COPY
RESUMING, PRE_COPY = MigrationState.RESUMING, MigrationState.PRE_COPY
SIZE = 3 * PIECE + 1000


class Disk:
    """Bytes with a name, which remembers what it was told; `fails` has what a call of that name raises."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.told: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.written: list[tuple[int, int]] = []
        self.name = "disk"

    @property
    def size(self) -> int:
        return len(self.content)

    def next_data(self, offset: int) -> int:
        while offset < len(self.content) and not any(self.content[offset : offset + 512]):
            offset += 512
        return min(offset, len(self.content))

    def read(self, offset: int, size: int) -> bytes:
        self._may_fail(f"read {offset}")
        return bytes(self.content[offset : offset + size])

    def begin_saving(self) -> None:
        self.told.append("begin saving")

    def take_written(self) -> list[tuple[int, int]]:
        taken, self.written = self.written, []
        return taken

    def begin_loading(self, size: int) -> None:
        self.told.append(f"begin loading {size}")
        self.content = bytearray(b"?" * size)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self._may_fail("write")
        self.content[offset : offset + len(data)] = data

    def clear(self, offset: int, size: int) -> None:
        self.content[offset : offset + size] = bytes(size)

    def settle(self) -> None:
        self._may_fail("settle")
        self.told.append("settle")

    def end(self) -> None:
        self.told.append("end")

    def change(self, offset: int, data: bytes) -> None:
        """As the device would."""
        self.content[offset : offset + len(data)] = data
        self.written.append((offset, len(data)))

    def _may_fail(self, call: str) -> None:
        if call in self.fails:
            raise self.fails[call]


class WithDisk(Adder):
    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.disk = Disk(content)

    def storages(self) -> Sequence[Storage]:
        return [self.disk]


def content() -> bytes:
    """Data, a hole over a piece's border, data up to an end that is no multiple of anything."""
    return b"a" * 5000 + bytes(PIECE + 7000) + b"b" * (SIZE - 12000 - PIECE)


def carry(source: Migration, target: Migration) -> None:
    while data := read_data(source):
        write_data(target, data)


def test_a_disk_arrives_with_all_that_was_written_while_it_was_read() -> None:
    here, there = WithDisk(content()), WithDisk()
    source, target = Migration(here), Migration(there)
    set_state(target, RESUMING)
    set_state(source, PRE_COPY)
    carry(source, target)
    here.disk.change(4000, b"c" * 3000)
    here.disk.change(2 * PIECE - 5, bytes(10))
    here.disk.change(SIZE - 3, b"ddd")
    here.disk.change(6000, bytes(2 * PIECE))
    carry(source, target)
    here.disk.change(100, b"e")
    set_state(source, STOP_COPY)
    carry(source, target)
    set_state(target, STOP)
    assert there.disk.content == here.disk.content


@for_each([True, False])
def test_a_disk_that_grows_meanwhile_arrives_as_large_as_it_is(running: bool) -> None:
    here, there = WithDisk(content()), WithDisk()
    source, target = Migration(here), Migration(there)
    set_state(target, RESUMING)
    set_state(source, PRE_COPY)
    carry(source, target)
    here.disk.content += bytes(5000)
    here.disk.change(SIZE + 2000, b"f" * 3000)
    there.disk.content += b"?" * 5000  # its owner has made it larger
    if running:
        carry(source, target)
    set_state(source, STOP_COPY)
    carry(source, target)
    set_state(target, STOP)
    assert there.disk.content[:SIZE] == here.disk.content[:SIZE]
    assert there.disk.content[SIZE + 2000 :] == b"f" * 3000


def test_of_a_disk_what_was_written_is_sent_again_and_nothing_beside_it() -> None:
    here, there = WithDisk(content()), WithDisk()
    source, target = Migration(here), Migration(there)
    set_state(target, RESUMING)
    set_state(source, PRE_COPY)
    carry(source, target)
    here.disk.change(100, b"e" * 1000)
    assert len(read_all(source)) == HEAD.size + CHECKSUM.size + PLACE.size + 1000


def cancel(source: Migration, target: Migration) -> None:
    set_state(source, RUNNING)


def let_the_client_go(source: Migration, target: Migration) -> None:
    source.detach()


def finish(source: Migration, target: Migration) -> None:
    carry(source, target)
    set_state(source, STOP_COPY)
    carry(source, target)
    set_state(source, STOP)


@for_each([cancel, let_the_client_go, finish])
def test_a_disk_that_is_read_is_told_once_when_that_begins_and_ends(
    leave: Callable[[Migration, Migration], None],
) -> None:
    here, there = WithDisk(content()), WithDisk()
    source, target = Migration(here), Migration(there)
    set_state(target, RESUMING)
    set_state(source, PRE_COPY)
    assert here.disk.told == ["begin saving"]
    leave(source, target)
    assert here.disk.told == ["begin saving", "end"]
    source.close()
    assert here.disk.told == ["begin saving", "end"]


@for_each([True, False])
def test_a_disk_that_is_written_is_told_when_that_begins_and_ends_and_is_durable_before_the_device_is_there(
    whole: bool,
) -> None:
    there = WithDisk()
    target = Migration(there)
    set_state(target, RESUMING)
    write_data(target, save(WithDisk(content()))[: None if whole else -1])
    begun = [f"begin loading {SIZE}"]
    assert there.disk.told == begun
    if whole:
        set_state(target, STOP)
        assert there.disk.told == [*begun, "settle", "end"]
    else:
        with pytest.raises(ProtocolError, match="cut short"):
            set_state(target, STOP)
        assert there.disk.told == [*begun, "end"]


@for_each([OSError(errno.EIO, "broken"), RuntimeError("a mistake of the author's")], [0, 2 * PIECE], [700, 1 << 20])
def test_of_a_disk_that_cannot_be_read_all_is_there_that_could_and_nothing_twice(
    failure: Exception, at: int, transfer: int
) -> None:
    good = save(WithDisk(content()))
    here = WithDisk(content())
    source = Migration(here)
    here.disk.fails[f"read {at}"] = failure
    set_state(source, STOP_COPY)
    came = bytearray()
    refusals: list[Exception] = []
    while len(refusals) < 3:
        try:
            came += read_data(source, transfer)
        except (ProtocolError, RuntimeError) as error:
            refusals.append(error)
    assert good.startswith(came)
    if isinstance(failure, OSError):
        assert [getattr(error, "errno", None) for error in refusals] == [errno.EIO] * 3
    set_state(source, RUNNING)
    here.disk.fails.clear()
    assert save(here) == good


@for_each(["write", "settle"])
def test_a_disk_that_cannot_be_written_leaves_the_device_what_it_was_and_the_state_refused(call: str) -> None:
    here = WithDisk(content())
    here.values["total"] = 5
    there = WithDisk()
    target = Migration(there)
    set_state(target, RESUMING)
    there.disk.fails[call] = OSError(errno.ENOSPC, "full")
    stream = save(here)
    if call == "write":
        with pytest.raises(ProtocolError, match="cannot be written"):
            write_data(target, stream)
        there.disk.fails.clear()  # which comes too late for this stream
        with pytest.raises(ProtocolError, match="cannot be written"):
            target.write_state(stream[-100:])
    else:
        write_data(target, stream)
    with pytest.raises(ProtocolError, match="cannot be written"):
        set_state(target, STOP)
    assert there.values["total"] == 0
    assert there.disk.told[-1] == "end"


def test_a_disk_comes_before_values_whatever_the_size_of_transfers() -> None:
    source = Migration(WithDisk(content()))
    set_state(source, STOP_COPY)
    assert read_all(source, 700) == save(WithDisk(content()))
