"""A trace tells what crossed the wire, and is readable however its writer ended."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.interposer_bench import Bench, answer, dma_map, read, request, write
from userdev.descriptors import FdKind
from userdev.errors import UserError
from userdev.relay.direction import Direction
from userdev.trace import TraceReader, TraceWriter
from userdev.trace.format import encode_body
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.trace import MessageRecord, Note, Raw, RecordKind, read_trace
from vfio_user.interposer.trace.files import NAME, PROTOCOL
from vfio_user.wire import CURRENT, Command, Message


def records(path: Path) -> list[MessageRecord]:
    return [entry for entry in read_trace(path).entries if isinstance(entry, MessageRecord)]


def test_every_message_is_there_with_its_direction_and_in_order(tmp_path: Path) -> None:
    with Bench(trace=tmp_path / "t") as bench:
        bench.client.send(read(0, 0x10))
        asked = bench.server.receive()
        bench.server.send(answer(asked, b"data"))
        bench.client.receive()
    found = records(tmp_path / "t")
    assert [record.message for record in found] == [read(0, 0x10), answer(read(0, 0x10), b"data")]
    assert [record.direction for record in found] == [Direction.TO_SERVER, Direction.TO_CLIENT]
    assert all(record.unchanged for record in found)
    assert found[0].time <= found[1].time


def test_a_reply_names_the_record_of_its_request(tmp_path: Path) -> None:
    """Also where an id is used twice at the same time, and where both sides use the same id."""
    with Bench(trace=tmp_path / "t") as bench:
        bench.client.send(read(0, 0, id=5))
        bench.client.send(read(0, 4, id=5))
        bench.server.send(request(Command.DMA_READ, bytes(16), id=5))
        first, second = bench.server.receive(), bench.server.receive()
        bench.client.send(bench.client.receive().reply(bytes(16)))
        bench.server.receive()
        bench.server.send(answer(first, b"1111"))
        bench.server.send(answer(second, b"2222"))
        bench.client.receive(), bench.client.receive()
    found = records(tmp_path / "t")
    by_number = {record.number: record for record in found}
    asked = [(by_number[record.pair].message.payload, record.message.payload) for record in found if record.pair]
    assert (first.payload, first.payload + b"1111") in asked
    assert (second.payload, second.payload + b"2222") in asked
    assert (bytes(16), bytes(16)) in asked


def test_descriptors_are_described(tmp_path: Path) -> None:
    memory, event = os.memfd_create("guest"), os.eventfd(0)
    os.truncate(memory, 12288)
    inode = os.fstat(memory).st_ino
    with Bench(trace=tmp_path / "t") as bench:
        bench.exchange(dma_map(0, 4096, memory))
        bench.exchange(request(Command.SET_IRQS, bytes(20), fds=[event]))
    os.close(memory)
    os.close(event)
    kinds = [fd for record in records(tmp_path / "t") for fd in record.fds]
    assert kinds[0] == (FdKind.MEMFD, 12288, inode)
    assert kinds[1].kind is FdKind.EVENTFD


def test_garbage_is_recorded_as_bytes_with_the_reason(tmp_path: Path) -> None:
    with Bench(trace=tmp_path / "t") as bench:
        bench.client.socket.send(b"\xff" * 40)
        bench.server.receive_bytes(40)
    entries = read_trace(tmp_path / "t").entries
    assert b"".join(entry.data for entry in entries if isinstance(entry, Raw)) == b"\xff" * 40
    assert [entry.details["why"] for entry in entries if isinstance(entry, Note) and entry.event == "unframed"]


@pytest.mark.parametrize("lost", [1, 7, 40])
def test_a_file_that_ends_within_a_record_is_read_up_to_there(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "t"
    with Bench(trace=path) as bench:
        for n in range(10):
            bench.client.send(write(0, n, b"data", id=n, posted=True))
            bench.server.receive()
    whole = [record.message for record in records(path)]
    os.truncate(path, path.stat().st_size - lost)
    trace = read_trace(path)
    assert trace.truncated
    left = [entry.message for entry in trace.entries if isinstance(entry, MessageRecord)]
    assert left == whole[: len(left)]
    assert len(left) >= 8


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\x7fELF and so on")
    for name in ("t", "missing"):
        with pytest.raises(UserError, match=str(tmp_path / name)):
            read_trace(tmp_path / name)


def test_a_damaged_length_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with Bench(trace=path) as bench:
        bench.client.send(read(0, 0))
        bench.server.receive()
    with open(path, "ab") as file:
        file.write(b"\xff\xff\xff\xff and more")
    trace = read_trace(path)
    assert "damaged" in trace.truncated
    assert len([entry for entry in trace.entries if isinstance(entry, MessageRecord)]) == 1


@for_each_row(
    {
        "of no kind": (9, 0, 3, 1, bytes(16)),
        "seen on no side": (RecordKind.MESSAGE, 0, 0, 1, bytes(16)),
        "in no direction": (RecordKind.MESSAGE, 4, 3, 1, bytes(16)),
        "at no time": (RecordKind.MESSAGE, 0, 3, 1 << 63, bytes(16)),
        "half a header": (RecordKind.MESSAGE, 0, 3, 1, b"x"),
        "a list for a note": (RecordKind.NOTE, 0, 0, 1, b"[]"),
        "too many levels": (RecordKind.NOTE, 0, 0, 1, b"[" * 100_000),
        "half a character": (RecordKind.NOTE, 0, 0, 1, b'{"event": "\\ud800"}'),
        "no number": (RecordKind.NOTE, 0, 0, 1, b'{"event": 1e999}'),
        "a header without sense": (RecordKind.HEADER, 0, 0, 1, b'{"realtime": "x"}'),
    }
)
def test_a_damaged_record_ends_the_reading_and_what_was_before_it_is_there(
    kind: RecordKind, direction: int, view: int, time: int, body: bytes, tmp_path: Path
) -> None:
    TraceWriter(tmp_path / "trace", NAME, {"program": "x"}).close()
    with (tmp_path / "trace").open("ab") as file:
        file.write(encode_body(kind, direction, view, time, body))
    trace = read_trace(tmp_path / "trace")
    assert "record 2" in trace.truncated
    assert not trace.entries


def test_a_full_disk_stops_the_trace_and_not_the_session(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t"
    with Bench(trace=path) as bench, files_of_at_most(2000):
        for n in range(100):
            bench.exchange(write(0, n, b"data"))
        assert bench.trace is not None
        assert bench.trace.stopped
    trace = read_trace(path)
    assert not trace.truncated
    assert 0 < len(trace.entries) < 100
    assert "STOPPED" in capfd.readouterr().err


def test_what_was_in_a_file_before_its_trace_is_there_when_the_disk_is_full(tmp_path: Path) -> None:
    """Of a descriptor that was handed on the end of the file is the trace's beginning."""
    for mode in ("ab", "r+b"):
        path, said = tmp_path / mode, list[str]()
        path.write_bytes(bytes(1000))
        with path.open(mode) as file:
            file.seek(0, os.SEEK_END)
            writer = TraceWriter(f"fd:{os.dup(file.fileno())}", PROTOCOL.name, {}, warn=said.append)
            with files_of_at_most(3000):
                while not writer.stopped:
                    writer.note("something")
                    writer.flush()
            writer.close()
        data = path.read_bytes()
        assert data[:1000] == bytes(1000), mode
        (tmp_path / "trace").write_bytes(data[1000:])
        trace = read_trace(tmp_path / "trace")
        assert not trace.truncated, mode
        assert f"after {len(trace.entries) + 1} records" in said[-1], "the header is one"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE refuses a write just as a full disk does, only with another errno."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_disk_that_is_full_from_the_beginning_stops_the_trace_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """/dev/full takes nothing, as a disk does on which nothing is left: ENOSPC."""
    with Bench(trace=Path("/dev/full")) as bench:
        assert bench.exchange(read(0, 0)) == read(0, 0)
        assert bench.trace is not None
        assert bench.trace.stopped
    assert "STOPPED" in capfd.readouterr().err


def test_a_trace_that_ended_within_a_record_is_whole_once_the_rest_has_come(tmp_path: Path) -> None:
    """It grows while it is read: wherever it is looked at, it is cut there then, and not for ever."""
    writer = TraceWriter(tmp_path / "whole", PROTOCOL.name, {})
    begin = writer.size
    for text in ("one", "two"):
        writer.note(text)
    writer.close()
    data = (tmp_path / "whole").read_bytes()
    for cut in range(begin, len(data), 9):
        growing = tmp_path / "growing"
        growing.write_bytes(data[:cut])
        with growing.open("rb") as stream, growing.open("ab") as more:
            reader = TraceReader(stream, "growing", PROTOCOL)
            entries = list(reader)
            within = [bool(reader.truncated)]
            more.write(data[cut:])
            more.flush()
            entries += list(reader)
        assert [entry.event for entry in entries if isinstance(entry, Note)] == ["one", "two"]
        assert not reader.truncated, f"cut at {cut}, {within}"


def test_a_trace_that_has_stopped_keeps_nothing_of_what_still_comes() -> None:
    """The session may go on for days."""
    said: list[str] = []
    writer = TraceWriter("/dev/full", PROTOCOL.name, {}, warn=said.append)
    message = memoryview(read(0, 0).encode() + bytes(100_000))
    tracemalloc.start()
    for number in range(300):
        writer.passed(Direction.TO_SERVER, message)
        writer.note("something", number=number)
        writer.raw(Direction.TO_CLIENT, bytes(100_000))
        writer.flush()
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.close()
    assert len(said) == 1
    assert kept < 1 << 20 < most + (1 << 20)


@pytest.mark.usefixtures("plain_starts")
def test_what_was_written_before_a_sigkill_is_readable(tmp_path: Path) -> None:
    """The interposer as a process, killed while a client is being served."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "server"))
        listening.listen()
        options = ["--listen", tmp_path / "a", "--connect", tmp_path / "server", "--trace", tmp_path / "t"]
        program = subprocess.Popen(
            [sys.executable, "-m", "vfio_user", "interpose", *map(str, options)], stdout=subprocess.PIPE
        )
        with program:
            assert program.stdout is not None
            assert program.stdout.readline()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "a"))
                server = listening.accept()[0]
                for n in range(20):
                    client.send(write(0, n, b"data", posted=True).encode())
                    _take(server, 36)
                server.send(answer(read(0, 0), b"done").encode())
                _take(client, 36)
                deadline = time.monotonic() + 60
                while len(records(tmp_path / "t")) < 21:  # the reply is sent first, and written down then
                    assert time.monotonic() < deadline
                program.kill()
            server.close()
    trace = read_trace(tmp_path / "t")
    assert not trace.truncated
    assert [record.message for record in records(tmp_path / "t")][-1] == answer(read(0, 0), b"done")


def test_a_trace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        TraceWriter(tmp_path / "no" / "such" / "folder", NAME, {})
    assert "another place" in refused.value.hint


def test_a_changed_message_is_recorded_as_it_came_and_as_it_went(tmp_path: Path) -> None:
    class Change:
        def __call__(self, passing: Passing) -> Message:
            message = passing.message
            return Message(message.id, message.command, message.flags, 0, message.payload[:-4] + b"evil")

        def closed(self) -> None:
            pass

    with Bench(trace=tmp_path / "t") as bench:
        bench.session.add_stage(Change(), Direction.TO_SERVER)
        bench.client.send(write(0, 0, b"good"))
        assert bench.server.receive() == write(0, 0, b"evil")
    came, went = records(tmp_path / "t")
    assert (came.message, went.message) == (write(0, 0, b"good"), write(0, 0, b"evil"))
    assert (came.view.name, went.view.name) == ("RECEIVED", "SENT")


def _take(sock: socket.socket, count: int) -> None:
    sock.settimeout(60)
    while count:
        count -= len(sock.recv(count))


OLD = Path(__file__).parent / "traces" / "format-1-without-protocol.trace"
"""As the interposer wrote them before headers named the protocol."""


def test_a_trace_of_before_headers_named_the_protocol_is_read(tmp_path: Path) -> None:
    trace = read_trace(OLD)
    assert not trace.truncated
    assert trace.header.protocol == "vfio-user"
    assert trace.dialect is CURRENT
    found = [entry.message for entry in trace.entries if isinstance(entry, MessageRecord)]
    assert [CURRENT.command(message.command) for message in found] == [
        *[Command.VERSION] * 2,
        *[Command.DMA_MAP] * 2,
        *[Command.REGION_READ] * 2,
        Command.REGION_WRITE,
    ]
    [mapped] = [entry for entry in trace.entries if isinstance(entry, MessageRecord) and entry.fds]
    assert (mapped.fds[0].kind, mapped.fds[0].size) == (FdKind.MEMFD, 8192)
    assert [entry.data for entry in trace.entries if isinstance(entry, Raw)] == [b"half a"]
    assert "interrupt" in [entry.event for entry in trace.entries if isinstance(entry, Note)]


def test_a_trace_names_its_protocol_and_is_of_its_current_dialect_where_it_names_none(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "trace", NAME, {}).close()
    trace = read_trace(tmp_path / "trace")
    assert trace.header.about["protocol"] == "vfio-user"
    assert trace.dialect is CURRENT


def test_a_trace_can_be_written_to_a_descriptor_that_is_inherited(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    with near:
        writer = TraceWriter(f"fd:{far.detach()}", NAME, {})
        writer.message(Direction.TO_SERVER, 3, read(0, 0))
        writer.close()
        with near.makefile("rb") as stream:
            (tmp_path / "t").write_bytes(stream.read())
    assert [record.message for record in records(tmp_path / "t")] == [read(0, 0)]


@for_each(["fd:", "fd:x", "fd:-1", "fd:100000", "fd:99999999999999999999"])
def test_what_is_no_descriptor_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        TraceWriter(name, NAME, {})
