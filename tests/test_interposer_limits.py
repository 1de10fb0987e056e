"""What costs a session at most: descriptors that nobody can keep, faults that nobody foresaw, and a stop that hangs."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cases import for_each
from tests.descriptors import fd_count
from tests.device_kit import descriptors_left
from tests.interposed import Interposed, interposed_edu
from tests.interposer_bench import Bench, dma_map, request
from userdev import descriptors
from userdev.errors import UserError
from userdev.eventfd import signal_eventfd
from userdev.interposer.interposer import BaseInterposer
from userdev.relay.direction import Direction
from userdev.relay.loop import Task
from userdev.transport import Stream, close_all
from vfio_user.client import Disconnected
from vfio_user.interposer.control.migration import DmaLoggingReport
from vfio_user.interposer.errors import IncompatibleServer, RequestRefused
from vfio_user.interposer.guest_memory import read_bytes, read_memory
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.restore import restore
from vfio_user.interposer.survival import Policy
from vfio_user.interposer.trace import MessageRecord, Note, read_trace
from vfio_user.wire import HEADER, Command, Message
from vfio_user.wire import layouts as at

LIVENESS = 0x04


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Bench() as bench:
        bench.negotiate()
        yield bench


def mapped(fd: int, offset: int = 0) -> Message:
    """A DMA_MAP with a file."""
    return request(Command.DMA_MAP, at.DMA_MAP.pack(at.DMA_MAP.size, 3, offset, 0x1000, 0x1000), fds=[fd])


# descriptors


def test_a_descriptor_that_cannot_be_kept_is_passed_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is what it would be without us; only a new server could not be told of it any more."""
    monkeypatch.setattr(descriptors, "RESERVE", 1 << 30)
    with memory() as fd:
        bench.client.send(mapped(fd))
    asked = bench.server.receive()
    assert len(asked.fds) == 1
    close_all(asked.fds)
    bench.server.send(asked.reply())
    assert not bench.client.receive().failed
    with pytest.raises(IncompatibleServer, match="DMA_MAP"):
        bench.run(restore(bench.session))


def test_more_descriptors_than_one_send_takes_arrive_with_their_message(tmp_path: Path) -> None:
    """They come in several sends of a message; of those that are sent nothing may be left out, or told otherwise."""
    for counts, as_sent in (((253,), 253), ((127, 127), 254), ((128, 128), 255), ((253, 1, 253), 255)):
        with Bench(trace=tmp_path / "trace") as bench, open(os.devnull) as file:
            before = fd_count()
            for wanted in (False, True):
                if wanted:
                    bench.session.holding.hold()
                in_several_sends(bench, request(Command.SET_IRQS, bytes(20), id=4), counts, file.fileno())
                bench.settle()
                if wanted:
                    bench.session.holding.resume()
                arrived = bench.server.receive()
                close_all(arrived.fds)
                assert (arrived.id, len(arrived.fds)) == (4, sum(counts)), (counts, wanted)
                bench.server.send(arrived.error(errno.EINVAL))
                assert bench.client.receive().id == 4
                bench.exchange(request(Command.DEVICE_RESET))
            assert fd_count() == before, counts
        entries = read_trace(tmp_path / "trace").entries
        asked = [entry for entry in entries if isinstance(entry, MessageRecord) and not entry.message.is_reply]
        assert {len(entry.fds) for entry in asked if entry.message.id == 4} == {as_sent}, counts
        more = {entry.details["count"] for entry in entries if isinstance(entry, Note) and "count" in entry.details}
        assert more == {sum(counts) - as_sent} - {0}, counts


def in_several_sends(bench: Bench, message: Message, counts: tuple[int, ...], fd: int) -> None:
    data = message.encode()
    for place, count in enumerate(counts):
        bench.client.stream.try_send(data[place : place + 1], [fd] * count)
    bench.client.stream.send(data[len(counts) :])


@for_each([errno.EINVAL, errno.ETOOMANYREFS])
def test_a_message_whose_descriptors_the_kernel_passes_to_nobody_is_not_left_out_of_its_session(
    number: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer would go on in the belief that it was sent, and what comes behind it would arrive."""
    try_send = Stream.try_send

    def refusing(stream: Stream, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> int:
        if fds:
            raise OSError(number, os.strerror(number))
        return try_send(stream, data, fds)

    bench.loop.on_error = lambda error: told.append(error) or True  # type: ignore[func-returns-value]
    told: list[Exception] = []
    with open(os.devnull) as file:
        bench.client.send(mapped(file.fileno()))
        monkeypatch.setattr(Stream, "try_send", refusing)
        before = fd_count()
        bench.settle()
    assert [getattr(error, "errno", 0) for error in told] == [number]
    assert fd_count() == before - 1, "the file's own"


def test_a_request_whose_descriptor_is_lost_is_refused_in_the_servers_place(bench: Bench) -> None:
    """Passed on without it would be a request for something else: memory that is reached by messages."""
    with memory() as fd:
        bench.client.send(mapped(fd))
    with descriptors_left(0):
        bench.settle()
    reply = bench.client.receive()
    assert (reply.failed, reply.errno) == (True, errno.EMFILE)
    assert bench.server.is_silent()
    bench.exchange(dma_map(0x2000, 4096))


def test_a_reply_whose_descriptor_is_lost_is_an_error(bench: Bench) -> None:
    bench.client.send(request(Command.GET_REGION_INFO, at.REGION_INFO.pack(32, 0, 0, 0, 0, 0)))
    asked = bench.server.receive()
    with memory() as fd:
        bench.server.send(Message(asked.id, asked.command, 1, payload=asked.payload, fds=[fd]))
    with descriptors_left(0):
        bench.settle()
    reply = bench.client.receive()
    assert (reply.id, reply.failed, reply.errno, reply.fds) == (asked.id, True, errno.EMFILE, [])
    bench.exchange(dma_map(0x2000, 4096))


def test_memory_that_is_mapped_beyond_any_file_is_not_read(bench: Bench) -> None:
    with memory() as fd:
        bench.exchange(mapped(fd, offset=(1 << 64) - 0x1000))
    with pytest.raises(RequestRefused):
        read_memory(bench.session, 0x1000, 16)
    with pytest.raises(RequestRefused):
        read_bytes(bench.session, [0x1000])


def test_bytes_of_many_pages_are_each_from_its_own_mapping(bench: Bench) -> None:
    """Wherever in its file that begins; and one that has none is told."""
    with memory() as fd:
        os.pwrite(fd, bytes(range(256)) * 16, 0)
        bench.exchange(dma_map(0x1000, 0x800, fd, offset=0x10))
        bench.exchange(dma_map(0x1800, 0x800, fd, offset=0x23))
        bench.exchange(dma_map(0x4000, 0x2000, fd))
    bench.exchange(dma_map(0x3000, 0x1000))
    places = [0x1000, 0x1001, 0x17FF, 0x1800, 0x1801, 0x4002, 0x1002]
    found = [0x10, 0x11, 0x0F, 0x23, 0x24, 0x02, 0x12]
    assert b"".join(read_bytes(bench.session, places)) == bytes(found)
    for unmapped in (0xFFF, 0x2000, 0x3000, 0x5000):
        with pytest.raises(RequestRefused):
            read_bytes(bench.session, [0x1000, unmapped])


def test_a_full_eventfd_is_not_waited_for() -> None:
    """A client can fill one that blocks: whoever writes to it then waits for the client."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(fd, (1 << 64) - 3)
    signal_eventfd(fd, 5)
    assert os.eventfd_read(fd) == (1 << 64) - 2
    os.close(fd)


class memory:
    """A file of memory, for as long as it takes to send it."""

    def __enter__(self) -> int:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, 4096)
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


# what nobody foresaw


def test_a_defect_of_ours_costs_one_session(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Unforeseen(Exception):
        pass

    class Failing:
        def __call__(self, passing: Passing) -> Message:
            raise Unforeseen

        def closed(self) -> None:
            pass

    with interposed_edu(tmp_path) as edu:
        client = edu.client()
        edu.interposer.current().add_stage(Failing(), Direction.TO_SERVER)
        edu.control().call("hold")  # from now on messages are looked at
        edu.control().call("resume")
        with pytest.raises(Disconnected):
            client.load(0, LIVENESS, 4)
        assert edu.client().load(0, LIVENESS, 4) == 0
    assert "Unforeseen" in capfd.readouterr().err


@for_each(["time.sleep(60)", "while True: pass"])
def test_a_program_that_is_told_to_stop_ends_whatever_it_waits_for(work: str) -> None:
    program = f"""
import signal, time
from userdev.relay import loop
loop.STOP_SECONDS = 0.3
here = loop.Loop()
here.stop_on(signal.SIGTERM)
def stuck():
    print("stuck", flush=True)
    {work}
here.after(0, stuck)
here.run()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as stuck:
        try:
            assert stuck.stdout is not None
            assert stuck.stdout.readline()
            stuck.send_signal(signal.SIGTERM)
            _, told = stuck.communicate(timeout=60)
        finally:
            stuck.kill()
    assert stuck.returncode == 1
    assert b"in stuck" in told


# servers that are right to hang up


def test_a_server_that_ends_a_connection_on_purpose_is_not_replaced(tmp_path: Path) -> None:
    """A message larger than was agreed on: the server answers, hangs up, and waits for the next client."""
    with Interposed(tmp_path, survive=Policy()) as edu, socket.socket(socket.AF_UNIX) as client:
        pid = edu.control().server_pid()
        client.settimeout(60)
        client.connect(str(tmp_path / "listen"))
        client.sendall(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0")).encode())
        assert client.recv(1 << 16)
        client.sendall(HEADER.pack(2, 1, 48 << 20, 0, 0) + bytes(48 << 20))
        while client.recv(1 << 16):
            pass
        assert edu.client().load(0, LIVENESS, 4) == 0
        assert edu.control().server_pid() == pid


def test_a_server_that_is_sent_no_message_is_not_replaced(tmp_path: Path) -> None:
    with Interposed(tmp_path, survive=Policy()) as edu, socket.socket(socket.AF_UNIX) as client:
        pid = edu.control().server_pid()
        client.settimeout(60)
        client.connect(str(tmp_path / "listen"))
        client.sendall(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0")).encode())
        assert client.recv(1 << 16)
        client.sendall(b"\xff" * 16)
        while client.recv(1 << 16):
            pass
        assert edu.control().server_pid() == pid


def test_what_nobody_foresaw_costs_the_session_under_way_and_nothing_where_none_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error, said in ((OSError(errno.EIO, "the disk"), "the disk"), (KeyError("x"), "internal: KeyError")):
        for is_there, is_closed, is_closing in itertools.product((True, False), repeat=3):
            done: list[str] = []
            session = SimpleNamespace(closed=is_closed, close=lambda done=done: done.append("close"))
            interposer: Any = SimpleNamespace(
                session=session if is_there else None,
                _closing=is_closing,
                warn=done.append,
                note=lambda event, why, done=done: done.append(f"{event}: {why}"),
            )
            goes_on = is_there and not is_closed and not is_closing
            assert BaseInterposer._end_session(interposer, error) is goes_on
            assert len(done) == (3 if goes_on else 0)
            assert all(said in each for each in done[:2])
            assert done[2:] == ["close"] * goes_on
            assert ("KeyError" in capsys.readouterr().err) is (goes_on and isinstance(error, KeyError))


def test_a_bitmap_is_asked_for_as_long_as_an_answer_can_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def report(*_: object) -> bytes:
        return bytes(16)

    async def migration_of(_: object) -> SimpleNamespace:
        return SimpleNamespace(report=report)

    module = "vfio_user.interposer.control.migration"
    monkeypatch.setattr(f"{module}.migration_of", migration_of)
    monkeypatch.setattr(f"{module}.MAX_DATA", 16)
    for pages, fits in ((128, True), (129, False)):
        asked = {"command": "dma_logging_report", "ranges": [{"iova": 0, "size": pages * 4096}]}
        running = DmaLoggingReport.model_validate(asked).run(cast(Any, SimpleNamespace(current=lambda: None)), [])
        with nullcontext() if fits else pytest.raises(UserError):
            assert Task(running).result()["bytes"] == 0
