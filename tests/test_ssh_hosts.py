"""Hosts reached by SSH: how they are named, and the agent that starts programs there, on pipes in SSH's place."""

from __future__ import annotations

import errno
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from vfio_user.harness.hosts import LocalHost, SshHost, namespace, relay
from vfio_user.harness.hosts.relay import AgentConnection, WrittenFile, agent_source, serve
from vfio_user.harness.hosts.remote_agent import (
    CLOSE,
    DATA,
    EXIT,
    LISTENING,
    LOG,
    OPEN,
    SIGNAL,
    SPAWN,
    STARTED,
    STOPPED,
    Folder,
    Frames,
    Outgoing,
    Streams,
    _has_stopped,
)

LIMIT = 20.0


class Near:
    """The near end: what the relay is."""

    def __init__(self) -> None:
        source = agent_source()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        read, write = self.process.stdout.fileno(), self.process.stdin.fileno()
        self.frames = Frames(lambda count: os.read(read, count), lambda data: void(os.write(write, data)))
        self._watch = threading.Timer(LIMIT, self.process.kill)
        self._watch.start()

    def spawn(self, *argv: str, **more: Any) -> int:
        """Start a program; its process id."""
        wanted = {"argv": argv, "streams": [], "listeners": {}, "environment": {}, "grace": relay.GRACE_SECONDS, **more}
        self.frames.send(SPAWN, data=json.dumps(wanted).encode())
        kind, _, data = self.frames.receive()
        assert kind == STARTED
        return int(data)

    def until(self, wanted: int) -> tuple[int, bytes]:
        """Stream and data of the next frame of that kind; of LOG, all up to the last."""
        while True:
            kind, stream, data = self.frames.receive()
            if kind == wanted:
                return stream, data

    def close(self) -> None:
        self._watch.cancel()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(LIMIT)
        self.process.stdout.close()


def void(_: object) -> None:
    return None


@pytest.fixture
def near() -> Iterator[Near]:
    end = Near()
    try:
        yield end
    finally:
        end.close()


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_what_a_program_prints_and_how_it_ends_arrives(near: Near) -> None:
    near.spawn(*python("import os; os.write(1, b'hello'); os._exit(7)"))
    assert near.until(LOG)[1] == b"hello"
    assert near.until(EXIT)[1] == b"7"


def test_the_end_of_a_program_is_told_though_what_it_has_started_holds_its_output(near: Near) -> None:
    """As a server's helper does; it goes with the connection."""
    near.spawn("sh", "-c", "sleep 600 & echo $!; exit 7")
    helper = os.pidfd_open(int(near.until(LOG)[1]))
    try:
        assert near.until(EXIT)[1] == b"7"
        near.close()
        assert select.select([helper], [], [], LIMIT)[0]
    finally:
        os.close(helper)


def test_a_program_that_cannot_be_started_is_an_answer(near: Near, tmp_path: Path) -> None:
    listeners = {"7": str(tmp_path / "made" / "socket")}
    wanted = {"argv": ["/nonexistent"], "streams": [], "listeners": listeners, "environment": {}}
    near.frames.send(SPAWN, data=json.dumps(wanted).encode())
    assert b"/nonexistent" in near.until(LOG)[1]
    assert near.until(EXIT)[1] == b"127"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("how", ["listeners", "socket"])
def test_a_socket_that_another_program_has_there_stays(near: Near, tmp_path: Path, how: str) -> None:
    path = tmp_path / "made" / "socket"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as others:
        others.bind(str(path))
        others.listen()
        wanted: dict[str, Any] = {"argv": ["true"], "streams": [], "listeners": {}, "environment": {}}
        wanted[how] = {"7": str(path)} if how == "listeners" else str(path)
        near.frames.send(SPAWN, data=json.dumps(wanted).encode())
        near.until(EXIT)
        near.close()
        assert path.is_socket()


def test_all_that_a_program_wrote_into_its_socket_arrives_before_its_end_is_told(near: Near) -> None:
    """What it wrote last is still on its way when it has ended: nobody has read anything of it by then."""
    program = near.spawn(*python("import os; os.read(9, 1); os.write(9, bytes(150_000)); os._exit(0)"), streams=[9])
    ended = os.pidfd_open(program)
    near.frames.send(DATA, 9, b"!")
    assert select.select([ended], [], [], LIMIT)[0]
    os.close(ended)
    came, kinds = 0, [STARTED]
    while kinds[-1] != EXIT:
        kind, _, data = near.frames.receive()
        kinds.append(kind)
        came += len(data) * (kind == DATA)
    assert (came, kinds[-2:]) == (150_000, [CLOSE, EXIT])


def test_a_signal_ends_the_program_and_its_number_is_told(near: Near) -> None:
    near.spawn(*python("import signal; print(flush=True); signal.pause()"))
    near.until(LOG)
    near.frames.send(SIGNAL, signal.SIGKILL)
    assert near.until(EXIT)[1] == str(-signal.SIGKILL).encode()


def test_a_program_that_is_to_stand_still_does_when_that_is_told_and_goes_on(near: Near) -> None:
    program = psutil.Process(near.spawn(*python("import signal; print(flush=True); signal.pause()")))
    near.until(LOG)
    for _ in range(2):
        near.frames.send(SIGNAL, signal.SIGSTOP)
        near.until(STOPPED)
        assert program.status() == psutil.STATUS_STOPPED
        near.frames.send(SIGNAL, signal.SIGCONT)
    near.frames.send(SIGNAL, signal.SIGTERM)
    assert near.until(EXIT)[1] == str(-signal.SIGTERM).encode(), "it has gone on"


def test_a_program_that_ended_instead_is_none_that_has_stopped() -> None:
    """Else its near end would stand still for ever."""
    program = subprocess.Popen(["true"])
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    assert not _has_stopped(program.pid)
    program.wait()
    assert not _has_stopped(program.pid), "and somebody has asked how"


def test_a_program_that_reads_nothing_of_what_it_is_sent_can_be_killed_and_others_are_served(near: Near) -> None:
    near.spawn(*python("import os, time; os.write(201, os.read(201, 5)); time.sleep(60)"), streams=[200, 201])

    def send_much() -> None:
        for _ in range(32):
            near.frames.send(DATA, 200, bytes(1 << 16))

    flood = threading.Thread(target=send_much)
    flood.start()
    flood.join(LIMIT / 4)
    assert not flood.is_alive(), "nothing behind it can be said"
    near.frames.send(DATA, 201, b"hello")
    assert near.until(DATA) == (201, b"hello")
    near.frames.send(SIGNAL, signal.SIGKILL)
    assert near.until(EXIT) == (0, b"-9")


def test_what_a_socket_does_not_take_at_once_arrives_in_its_order_and_then_the_end() -> None:
    ours, theirs = socket.socketpair()
    streams = Streams(Frames(lambda _: b"", void))
    streams.add(7, ours)
    data = [bytes([n]) * (1 << 16) for n in range(32)]
    for piece in data:
        streams.arrived(7, piece)
    streams.closed(7)
    with theirs, theirs.makefile("rb") as file:
        assert file.read() == b"".join(data)
    streams.drain(LIMIT)


def test_what_comes_while_something_waits_goes_behind_it_though_the_socket_has_room_by_then() -> None:
    class Slow:
        """A socket that is full at first, and has room before what it did not take is written."""

        def __init__(self) -> None:
            self.written: list[bytes] = []
            self.full, self.goes_on = True, threading.Event()

        def send(self, data: bytes, flags: int) -> int:
            if self.full:
                raise BlockingIOError
            self.written.append(bytes(data))
            return len(data)

        def sendall(self, data: bytes) -> None:
            assert self.goes_on.wait(LIMIT)
            self.written.append(bytes(data))

        def shutdown(self, how: int) -> None:
            self.written.append(b"end")

    end = Slow()
    way = Outgoing(cast(socket.socket, end))
    way.sendall(b"first")
    end.full = False
    way.sendall(b"second")
    way.shutdown(socket.SHUT_RDWR)
    end.goes_on.set()
    way.flush(LIMIT)
    assert end.written == [b"first", b"second", b"end"]


def test_a_folder_goes_with_the_last_that_holds_it_and_stays_where_something_is_in_it(
    tmp_path: Path,
) -> None:
    for left in ("", "a socket of somebody's"):
        path = tmp_path / "folder" / str(len(left))
        holders = [Folder(path) for _ in range(3)]
        for holder in holders[:2]:
            holder.release()
            assert path.exists()
        if left:
            (path / left).touch()
        holders[2].release()
        assert path.exists() is bool(left)


def test_a_near_end_that_falls_silent_has_gone_and_nothing_of_its_program_is_left(near: Near) -> None:
    """The connection is there all the while, as where what is sent over it is dropped."""
    program = near.spawn(*python("import signal; signal.pause()"), silence=0.3)
    ended = os.pidfd_open(program)
    assert select.select([ended], [], [], LIMIT)[0]
    os.close(ended)
    assert near.process.wait(LIMIT) == 0


def test_an_inherited_socket_has_its_number_and_carries_both_ways(near: Near) -> None:
    echo = "import socket; s = socket.socket(fileno=9); s.sendall(s.recv(100).upper()); s.close()"
    near.spawn(*python(echo), streams=[9])
    near.frames.send(DATA, 9, b"question")
    assert near.until(DATA) == (9, b"QUESTION")
    assert near.until(CLOSE)[0] == 9


def test_several_inherited_sockets_are_not_mixed_up(near: Near) -> None:
    code = "import socket\nfor n in (5, 3, 4): socket.socket(fileno=n).sendall(str(n).encode())"
    near.spawn(*python(code), streams=[3, 4, 5])
    assert {near.until(DATA) for _ in range(3)} == {(3, b"3"), (4, b"4"), (5, b"5")}


def test_a_socket_listens_at_its_path_before_the_program_does_anything(near: Near, tmp_path: Path) -> None:
    path = tmp_path / "made" / "socket"
    near.spawn(*python("import signal; signal.pause()"), listeners={"7": str(path)})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_connection_from_the_near_end_reaches_the_program(near: Near, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    code = "import socket; s, _ = socket.socket(fileno=7).accept(); s.sendall(s.recv(9)[::-1])"
    near.spawn(*python(code), listeners={"7": path})
    near.frames.send(OPEN, 1000, path.encode())
    near.frames.send(DATA, 1000, b"abc")
    assert near.until(DATA) == (1000, b"cba")


def test_a_connection_to_nobody_is_closed(near: Near, tmp_path: Path) -> None:
    near.spawn(*python("import signal; signal.pause()"))
    near.frames.send(OPEN, 1000, str(tmp_path / "nobody").encode())
    assert near.until(CLOSE)[0] == 1000


def test_what_is_answered_before_anything_else_happens_is_for_the_connection(tmp_path: Path) -> None:
    """A server that speaks first and hangs up: all of it may be there before whoever told of the connection goes on."""

    class Prompt(Frames):
        def send(self, kind: int, stream: int = 0, data: bytes = b"") -> None:
            if kind == OPEN:
                streams.arrived(stream, data)
                streams.closed(stream)

    streams = Streams(Prompt(lambda _: b"", void))
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        taking = threading.Thread(target=relay.accept, args=(listener, streams, itertools.count(1)))
        taking.start()
        client.settimeout(LIMIT)
        client.connect(path)
        try:
            with client.makefile("rb") as said:
                assert said.read() == path.encode()
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            taking.join(LIMIT)


def test_a_connection_for_which_there_was_no_room_is_carried_later() -> None:
    ours, theirs = socket.socketpair()
    said: Iterator[int | socket.socket] = iter([errno.EMFILE, errno.ECONNABORTED, ours, errno.EBADF])

    class Listening:
        def getsockname(self) -> str:
            return "path"

        def accept(self) -> tuple[socket.socket, str]:
            what = next(said)
            if isinstance(what, int):
                raise OSError(what, os.strerror(what))
            return what, ""

    added: list[tuple[int, socket.socket, str]] = []
    streams: Any = SimpleNamespace(add=lambda *connection: added.append(connection))
    listening: Any = Listening()
    relay.accept(listening, streams, itertools.count(1))
    assert added == [(1, ours, "path")]
    ours.close()
    theirs.close()


def test_a_program_that_makes_its_socket_itself_is_ready_when_it_listens(near: Near, tmp_path: Path) -> None:
    path = tmp_path / "made" / "socket"
    code = f"""
import os, signal, socket
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
made = socket.socket(socket.AF_UNIX)
made.bind({str(path)!r})
os.write(1, b"made")
signal.sigwait([signal.SIGUSR1])
made.listen()
signal.pause()
"""
    near.spawn(*python(code), socket=str(path))
    kind, _, data = near.frames.receive()
    assert (kind, data) == (LOG, b"made"), "a socket at which nobody listens yet is no news"
    near.frames.send(SIGNAL, signal.SIGUSR1)
    assert near.until(LISTENING)[1] == str(path).encode()
    near.close()
    assert not path.parent.exists(), "what a program leaves behind is removed"


def test_the_program_and_its_sockets_do_not_outlive_the_connection(tmp_path: Path) -> None:
    near = Near()
    path = tmp_path / "made" / "socket"
    pid = near.spawn(*python("import signal; print(flush=True); signal.pause()"), listeners={"7": str(path)})
    near.until(LOG)
    near.close()
    assert not path.parent.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_a_program_whose_connection_ended_may_clean_up_and_is_killed_where_it_does_not_end(tmp_path: Path) -> None:
    """An interposer has made a folder for the socket of its server."""
    clean, stubborn = Near(), Near()
    made = tmp_path / "made"
    waits = "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
    waits += "os.mkdir({!r})\nprint(flush=True)"
    removes = f"\nsignal.sigwait([signal.SIGTERM])\nos.rmdir({str(made)!r})"
    clean.spawn(*python(waits.format(str(made)) + removes))
    clean.until(LOG)
    clean.close()
    assert not made.exists()
    pid = stubborn.spawn(*python(waits.format(str(made)) + "\nsignal.pause()"), grace=0.1)
    stubborn.until(LOG)
    stubborn.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_the_last_program_of_a_folder_removes_it(tmp_path: Path) -> None:
    """Whoever made it: on a host many programs have their sockets in one."""
    first, second = Near(), Near()
    folder = tmp_path / "made"
    waits = python("import signal; signal.pause()")
    first.spawn(*waits, listeners={"7": str(folder / "first")})
    second.spawn(*waits, listeners={"7": str(folder / "second")})
    first.close()
    assert [path.name for path in folder.iterdir()] == ["second"]
    second.close()
    assert not folder.exists()


@pytest.mark.parametrize("made", [0, 1])
def test_of_namespaces_that_cannot_be_made_whole_nothing_is_left(monkeypatch: pytest.MonkeyPatch, made: int) -> None:
    left, writers = iter(range(made)), list[int]()

    def enter() -> int:
        reader, writer = os.pipe()
        writers.append(writer)
        return reader

    def routes(work: object) -> None:
        if next(left, None) is None:
            raise OSError("no netlink")

    monkeypatch.setattr(namespace, "_enter_new_namespace", enter)
    monkeypatch.setattr(namespace, "_with_routes", routes)
    with pytest.raises(OSError, match="no netlink"), namespace.joined_namespaces():
        raise AssertionError("unreachable")
    assert len(writers) == made + 1
    for writer in writers:
        with pytest.raises(BrokenPipeError):
            os.write(writer, b".")
        os.close(writer)
    assert not any(thread.name.startswith("host-") for thread in threading.enumerate())


def test_what_a_program_writes_into_a_file_that_it_inherits_is_in_that_file_here(near: Near, tmp_path: Path) -> None:
    """As it is written, and all of it once the program has ended, however it did."""
    with (tmp_path / "file").open("wb") as file:
        relay = Streams(near.frames)
        relay.keep(9, WrittenFile(file.fileno()))
        near.spawn(*python("import os; os.write(9, bytes(150_000)); os.kill(os.getpid(), 9)"), streams=[9])
        assert serve(cast(AgentConnection, near.frames), relay, "there") == -9
    assert (tmp_path / "file").read_bytes() == bytes(150_000)


def test_a_file_that_takes_no_more_has_no_hole(near: Near, capfd: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "wb") as full:
        relay = Streams(near.frames)
        relay.keep(9, WrittenFile(full.fileno()))
        near.spawn(*python("import os; [os.write(9, b'some') for _ in range(9)]"), streams=[9])
        assert serve(cast(AgentConnection, near.frames), relay, "there") == 0
    assert capfd.readouterr().out.count("kept no longer: No space left on device") == 1


def test_descriptors_are_not_sent_to_a_host_that_is_reached_by_ssh() -> None:
    assert LocalHost().shares_memory
    assert not SshHost("b", "host.example", "192.0.2.7").shares_memory
