"""Whoever reads and writes files does it whole, however little each system call does of it (read(2), write(2)).

A row is a place that does: it moves `DATA` in its own way, and returns what came of it.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import re
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import open_fds
from tests.interposer_bench import Bench, dma_map
from tests.piecemeal import Piecemeal, piecemeal
from userdev.documents import read_regular_file
from userdev.errors import ProtocolError
from userdev.relay.outlet import Outlet
from userdev.trace import Note, TraceReader, TraceWriter
from userdev.transport import Stream, close_all
from userdev.whole import read_whole, write_whole
from userdev_servers.block import backing as block
from userdev_servers.block.backing import Backing
from vfio_user.client.channel import Channel
from vfio_user.device import Dma
from vfio_user.harness.migration.link import StateSpool
from vfio_user.interposer import restore
from vfio_user.interposer.control import migration as control
from vfio_user.interposer.guest_memory import read_memory, write_memory
from vfio_user.interposer.trace.files import NAME, PROTOCOL
from vfio_user.migration.memory import Memfd, MemfdMemory
from vfio_user.testing import memory_file

DATA = bytes(range(1, 251)) * 5
"""No zeros: what was not moved is seen."""
SIZE = len(DATA)
IOVA = 0x1000

Place = Callable[[Path], bytes]


def content(fd: int) -> bytes:
    """All of a file, without its place and without `os.read`."""
    return Path(f"/proc/self/fd/{fd}").read_bytes()


def whole(folder: Path) -> bytes:
    fd = os.memfd_create("whole")
    try:
        write_whole(fd, DATA[:500])
        write_whole(fd, memoryview(DATA)[500:], 500)
        return content(fd)
    finally:
        os.close(fd)


def trace(folder: Path) -> bytes:
    path = folder / "trace"
    said: list[str] = []
    writer = TraceWriter(path, NAME, {}, warn=said.append)
    writer.note("data", text=DATA.decode("latin-1"))
    writer.close()
    if said:
        raise OSError(errno.EIO, said[0])
    reader = TraceReader(io.BufferedReader(Raw(path.read_bytes())), "trace", PROTOCOL)
    (note,) = [entry for entry in reader if isinstance(entry, Note)]
    assert not reader.truncated
    return bytes(note.details["text"].encode("latin-1"))


class Raw(io.RawIOBase):
    """A stream that gives seven bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece, self._data = self._data[: min(7, len(buffer))], self._data[min(7, len(buffer)) :]
        buffer[: len(piece)] = piece
        return len(piece)


def image(folder: Path, write: Callable[[Backing], None], read: Callable[[Backing], bytes]) -> bytes:
    backing = Backing(folder / "image", 1 << 16)
    try:
        write(backing)
        return read(backing)
    finally:
        backing.close()


PIECES = (slice(0, 3), slice(3, 700), slice(700, SIZE))


def write_pieces(backing: Backing) -> None:
    backing.write([memoryview(DATA)[piece] for piece in PIECES], 100)


def read_pieces(backing: Backing) -> bytes:
    into = bytearray(SIZE)
    backing.read([memoryview(into)[piece] for piece in PIECES], 100)
    return bytes(into)


def image_in_many_pieces(folder: Path) -> bytes:
    """More than a system call takes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(block, "MAX_PIECES", 1)
        return image(folder, write_pieces, read_pieces)


def image_cleared(folder: Path) -> bytes:
    """Zeros are written where the file system has no other way, and nowhere else."""

    def clear(backing: Backing) -> None:
        Path(backing.path).write_bytes(b"\1" * (1 << 16))
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(backing, "_fallocate", lambda *_: False)
            backing.zero(100, SIZE)

    found = image(folder, clear, lambda backing: Path(backing.path).read_bytes())
    assert found == b"\1" * 100 + bytes(SIZE) + b"\1" * ((1 << 16) - 100 - SIZE)
    return DATA


def dma_file(folder: Path) -> bytes:
    """Memory that may be read and written, and not mapped."""
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 0x2000)
    dma = Dma()
    dma.map(IOVA, 0x2000, 3 | 8, os.dup(fd))
    try:
        dma.write(IOVA + 5, DATA)
        assert content(fd)[5 : 5 + SIZE] == DATA
        return dma.read(IOVA + 5, SIZE)
    finally:
        dma.unmap_all()
        os.close(fd)


def device_memory(folder: Path) -> bytes:
    file = Memfd("ram", 1 << 16)
    try:
        memory = MemfdMemory("ram", file, 0, 1 << 16)
        memory.write(100, DATA)
        assert bytes(memory.view[100 : 100 + SIZE]) == DATA
        found = memory.read(100, SIZE)
        memory.view.release()
        return found
    finally:
        file.close()


def guest_memory(folder: Path) -> bytes:
    """Of two mappings that are neighbours."""
    with Bench() as bench:
        bench.negotiate()
        for iova in (IOVA, 0x2000):
            fd = os.memfd_create("ram")
            os.ftruncate(fd, 0x1000)
            bench.exchange(dma_map(iova, 0x1000, fd))
            os.close(fd)
        write_memory(bench.session, 0x2000 - 600, DATA)
        return read_memory(bench.session, 0x2000 - 600, SIZE)


class Migrating:
    """A device that gives its state in two pieces."""

    piece_size = 1 << 20

    def __init__(self) -> None:
        self._left = [DATA[:1000], DATA[1000:], b""]

    async def set_state(self, state: object) -> None:
        pass

    async def read(self, size: int) -> bytes:
        return self._left.pop(0)


def run(coroutine: Any) -> Any:
    """The result of a coroutine that waits for nothing."""
    with pytest.raises(StopIteration) as end:
        coroutine.send(None)
    return end.value.value


def with_state(module: Any, take: Callable[[], bytes]) -> bytes:
    async def migration_of(session: object) -> Migrating:
        return Migrating()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "migration_of", migration_of)
        monkeypatch.setattr(module.own_calls, "data_limit", lambda session: 1 << 20)
        return take()


def state_of_an_old_server(folder: Path) -> bytes:
    def take() -> bytes:
        fd = run(restore.save_state(None))  # type: ignore[arg-type]
        try:
            return content(fd)
        finally:
            os.close(fd)

    return with_state(restore, take)


def state_into_a_file(folder: Path) -> bytes:
    def take() -> bytes:
        command = control.MigDataRead(command="mig_data_read", file=str(folder / "state"))
        run(command.run(SimpleNamespace(current=lambda: None), []))
        return (folder / "state").read_bytes()

    return with_state(control, take)


class Lines:
    """A server on another host, whose state comes in lines."""

    shares_memory = False

    def __init__(self) -> None:
        self.control = self
        self._left = [DATA[:1000], DATA[1000:]]
        self.given = b""

    def call(self, command: str, **_: object) -> dict[str, object]:
        piece = self._left.pop(0)
        return {"raw": piece, "bytes": len(piece), "complete": not self._left}

    def post(self, command: str, behind: bytes) -> Any:
        self.given += behind
        return SimpleNamespace(result=lambda: None)


def spool(folder: Path) -> bytes:
    server, spool = Lines(), StateSpool()
    try:
        assert spool.fill(server) == SIZE  # type: ignore[arg-type]
        spool.begin_to_drain(server)  # type: ignore[arg-type]
        return server.given
    finally:
        spool.close()


def scenario(folder: Path) -> bytes:
    (folder / "scenario").write_bytes(DATA)
    return read_regular_file(folder / "scenario", SIZE)


def memory_for_tests(folder: Path) -> bytes:
    fd = memory_file(SIZE, DATA)
    try:
        return content(fd)
    finally:
        os.close(fd)


READING: Mapping[str, Place] = {"scenario": scenario}
WRITING: Mapping[str, Place] = {
    "whole": whole,
    "trace": trace,
    "image in pieces": lambda folder: image(folder, write_pieces, read_pieces),
    "image at once": lambda folder: image(folder, write_pieces, lambda backing: backing.read_bytes(SIZE, 100)),
    "image in many pieces": image_in_many_pieces,
    "image cleared": image_cleared,
    "DMA by a file": dma_file,
    "memory of a device": device_memory,
    "memory of a guest": guest_memory,
    "state of an old server": state_of_an_old_server,
    "state into a file": state_into_a_file,
    "state on its way": spool,
    "memory for tests": memory_for_tests,
}


@for_each([1, 7, 300], [*WRITING, *READING])
def test_a_call_that_does_a_part_is_followed_by_others(most: int, place: str, tmp_path: Path) -> None:
    with piecemeal(most) as cut:
        assert {**WRITING, **READING}[place](tmp_path) == DATA
    assert cut.calls


@for_each(WRITING)
def test_a_write_that_does_nothing_is_an_error_and_not_tried_for_ever(place: str, tmp_path: Path) -> None:
    with piecemeal(SIZE, stops=700), pytest.raises((OSError, ProtocolError)):
        WRITING[place](tmp_path)


def test_a_read_that_brings_nothing_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert read_whole(fd, 2 * SIZE, 1) == DATA[1:]
        assert read_whole(fd, 2 * SIZE) == DATA
        assert read_whole(fd, 1) == b""
    finally:
        os.close(fd)


@for_each_row(
    [
        *((each, True) for each in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)),
        *((each, False) for each in (errno.ENOSPC, errno.EIO, errno.EPERM)),
    ]
)
def test_zeros_are_written_where_the_file_system_cannot_make_them_and_nowhere_else(
    number: int, is_written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(*_: int) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(block, "_libc", SimpleNamespace(fallocate=fallocate))

    def clear(backing: Backing) -> None:
        write_pieces(backing)
        if is_written:
            backing.discard(100, SIZE)
            return
        with pytest.raises(OSError, match=os.strerror(number)) as told:
            backing.discard(100, SIZE)
        assert (told.value.errno, told.value.strerror) == (number, os.strerror(number))

    kept = image(tmp_path, clear, lambda backing: backing.read_bytes(SIZE, 100))
    assert kept == (bytes(SIZE) if is_written else DATA)


def test_an_interrupted_call_of_the_c_library_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python does so with its own; ctypes does not."""
    real, interrupted = block._libc.fallocate, iter([True, True, False])

    def fallocate(*arguments: Any) -> int:
        if next(interrupted):
            ctypes.set_errno(errno.EINTR)
            return -1
        return int(real(*arguments))

    monkeypatch.setattr(block, "_libc", SimpleNamespace(fallocate=fallocate))

    def clear(backing: Backing) -> None:
        write_pieces(backing)
        backing.discard(100, SIZE)

    assert image(tmp_path, clear, lambda backing: backing.read_bytes(SIZE, 100)) == bytes(SIZE)
    assert next(interrupted, None) is None


# Sockets, which take a part of a message, and its descriptors with the first byte


def by_stream(ours: socket.socket, data: bytes, fds: list[int]) -> None:
    Stream(ours).send(data, fds)


def by_outlet(ours: socket.socket, data: bytes, fds: list[int]) -> None:
    ours.setblocking(False)
    outlet = Outlet(Stream(ours))
    outlet.send(data, fds)
    outlet.send(data, fds)
    while outlet.waiting:
        select.select([], [ours], [], 10)
        outlet.flush()
    assert not outlet.broken


def by_channel(ours: socket.socket, data: bytes, fds: list[int]) -> None:
    Channel(Stream(ours), lambda _: None, timeout=10).send_bytes(data, fds)


@pytest.mark.parametrize(("send", "times"), [(by_stream, 1), (by_channel, 1), (by_outlet, 2)])
def test_descriptors_of_a_message_that_a_socket_takes_in_parts_go_once(
    send: Callable[[socket.socket, bytes, list[int]], None], times: int
) -> None:
    data, before = DATA * 1000, open_fds()
    ours, theirs = socket.socketpair()
    came, given = bytearray(), list[int]()

    def read() -> None:
        theirs.settimeout(10)
        while len(came) < times * len(data):
            piece, fds, _, _ = socket.recv_fds(theirs, 1 << 14, 253)
            came.extend(piece)
            given.extend(fds)

    reading = threading.Thread(target=read)
    reading.start()
    with open(os.devnull) as file:
        send(ours, data, [file.fileno()])
    reading.join(20)
    assert (bytes(came) == data * times, len(given)) == (True, times)
    close_all(given)
    ours.close()
    theirs.close()
    assert open_fds() == before


def test_nobody_writes_without_a_look_at_how_much_was_written() -> None:
    """But for a byte into a pipe that wakes somebody up."""
    careless = re.compile(r"^ *os\.p?writev?\((?!.*b\"\\0\"\))", re.MULTILINE)
    rooms = [Path(block.__file__).parents[3] / room for room in ("userdev", "vfio_user", "vhost_user", "servers")]
    files = [file for room in rooms for file in room.rglob("*.py") if "guest_images" not in file.parts]
    assert len(files) > 300
    assert [str(file) for file in files if careless.search(file.read_text())] == []


def test_the_cutting_itself_cuts() -> None:
    """Else the table above would show nothing."""
    fd = os.memfd_create("file")
    try:
        with piecemeal(3, stops=5):
            assert [os.write(fd, b"abcdef"), os.pwrite(fd, b"def", 3), os.write(fd, b"x")] == [3, 2, 0]
            assert os.pread(fd, 5, 0) == b"abc"
    finally:
        os.close(fd)
    assert os.write.__module__ != Piecemeal.__module__
