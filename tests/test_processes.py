"""How programs are started and waited for: their command lines, their sockets, what they print, their end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from userdev.process import (
    Child,
    Deadline,
    ProcessEnd,
    ServerCommand,
    Watch,
    await_listening,
    await_text,
    is_listening,
    listening,
)
from userdev.process.child import tail
from userdev.process.spawning import spawn

LISTENS = """
import os, socket, sys, time
sys.stdin.readline()
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
sys.stdin.readline()
"""
"""Listens at its argument when it is told to, and ends when it is told again."""


@contextmanager
def listener(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", LISTENS, str(path)], stdin=subprocess.PIPE, bufsize=0) as program:
        assert program.stdin is not None
        try:
            yield program
        finally:
            program.kill()


def tell(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin is not None
    program.stdin.write(b"\n")


def test_a_command_is_filled_in_word_by_word() -> None:
    command = ServerCommand.parse("serve --at {socket} --name 'of {host}' --fd={fd}")
    filled = command.argv(socket=Path("/a folder/s"), fd=7, host="a b")
    assert filled == ["serve", "--at", "/a folder/s", "--name", "of a b", "--fd=7"]
    assert command.program == "serve"


@for_each_row([("s {socket}", False), ("s --fd {fd}", True)])
def test_a_command_says_whether_its_server_can_be_connected_to_before_it_runs(text: str, inherits: bool) -> None:
    assert ServerCommand.parse(text).inherits is inherits


@for_each(["", "serve", "serve '{socket}", "serve {sockets}"])
def test_a_command_that_cannot_be_started_is_refused_before_it_is(text: str) -> None:
    with pytest.raises(UserError):
        ServerCommand.parse(text)


def test_a_socket_is_told_when_somebody_listens_on_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listener(path) as program, ProcessEnd(program.pid) as end:
        assert not await_listening(path, end, 0.05)
        tell(program)
        assert await_listening(path, end, 30)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_whether_somebody_listens_is_asked_of_the_program_that_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be in another network, where this process sees no socket of it."""
    asked: list[object] = []

    def is_listening(*what: object) -> bool:
        asked.append(what)
        return True

    monkeypatch.setattr(listening, "is_listening", is_listening)
    with ProcessEnd(os.getpid()) as end:
        assert await_listening(tmp_path / "socket", end, 60)
    assert asked == [(tmp_path / "socket", os.getpid())]


def test_nobody_waits_for_a_program_that_has_ended(tmp_path: Path) -> None:
    with listener(tmp_path / "socket") as program, ProcessEnd(program.pid) as end:
        program.kill()
        began = time.monotonic()
        assert not await_listening(tmp_path / "socket", end, 60)
        assert time.monotonic() - began < 30


def test_a_socket_that_is_bound_and_does_not_listen_is_not_taken_for_one_that_does(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound, listener(tmp_path / "other") as program:
        bound.bind(str(tmp_path / "socket"))
        with ProcessEnd(program.pid) as end:
            assert not await_listening(tmp_path / "socket", end, 0.05)
            bound.listen()
            assert await_listening(tmp_path / "socket", end, 30)


def test_who_listens_otherwise_or_elsewhere_is_not_who_is_waited_for(tmp_path: Path) -> None:
    """A socket of another type, one with another path or none, and one that is connected listen for nobody."""
    path = tmp_path / "a path of words"
    here, there = socket.socketpair()
    with (
        here,
        there,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other,
        socket.socket(socket.AF_UNIX) as it,
    ):
        other.bind(str(path))
        other.listen()
        assert not is_listening(path)
        path.unlink()
        it.bind(str(path))
        it.listen()
        assert is_listening(path)
        assert is_listening(path, os.getpid())
        assert not is_listening(tmp_path / "a path")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            served = it.accept()[0]
            it.close()
            assert not is_listening(path), "only its connection has the name yet"
            served.close()


@for_each_row([("print('ready now')", True), ("print('no')", False)])
def test_what_a_child_prints_is_waited_for_until_its_end(prints: str, found: bool, tmp_path: Path) -> None:
    child = Child("printer", [sys.executable, "-c", prints], log=tmp_path / "log")
    try:
        assert await_text(child, b"ready", 60) is found
    finally:
        child.stop()


def test_the_last_words_of_a_child_are_found_though_it_ended_between_two_looks(tmp_path: Path) -> None:
    class Ending:
        log = tmp_path / "log"

        @property
        def running(self) -> bool:
            self.log.write_bytes(b"ready, and gone")
            return False

    Ending.log.touch()
    assert await_text(Ending(), b"ready", 1)  # type: ignore[arg-type]
    Ending.log.write_bytes(b"")
    assert not await_text(Ending(), b"nothing", 1)  # type: ignore[arg-type]


def test_what_a_child_does_not_print_in_time_is_not_waited_for(tmp_path: Path) -> None:
    child = Child("silent", ["sleep", "60"], log=tmp_path / "log")
    try:
        assert not await_text(child, b"ready", Deadline(0.05))
        assert child.running
    finally:
        child.stop()


def test_a_child_has_no_end_until_it_has_ended(tmp_path: Path) -> None:
    began = time.time()
    child = Child("silent", ["sleep", "60"], log=tmp_path / "log")
    assert (child.ended, child.exit_code, child.running) == (None, None, True)
    child.stop()
    assert child.ended is not None
    assert began <= child.began <= child.ended <= time.time()
    assert not child.running


def test_a_child_wrote_nothing_before_its_start_on_the_clock_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child("silent", ["true"], log=tmp_path / "log")
    child.stop()
    began = child.began
    for seconds, put_back, wanted in ((0, 0, 0), (10, 0, 0), (10, 4, -4), (10, 30, -30), (10, -5, 0)):
        clock = SimpleNamespace(
            time=lambda put=put_back, s=seconds: began + s - put, monotonic=lambda s=seconds: child._began + s
        )
        with monkeypatch.context() as now:
            now.setattr("userdev.process.child.time", clock)
            assert child.not_before == pytest.approx(began + wanted, abs=1e-3), (seconds, put_back)


def test_a_folder_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        Watch(tmp_path / "nowhere")


@for_each([None, "there"])
def test_a_program_that_is_not_there_is_told_with_the_folder_that_it_was_looked_for_in(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    where = tmp_path / folder if folder else tmp_path
    with pytest.raises(UserError, match=re.escape(f"./server in {where}:")):
        spawn(["./server"], output=subprocess.DEVNULL, folder=where if folder else None)


def test_a_file_that_is_no_program_yet_is_told_how_to_become_one(tmp_path: Path) -> None:
    (tmp_path / "server.c").write_text("int main(void) {}")
    with pytest.raises(UserError) as refused:
        spawn(["./server.c"], output=subprocess.DEVNULL, folder=tmp_path)
    assert "chmod +x" in refused.value.hint


def test_the_end_of_a_log_is_of_the_lines_that_are_wanted(tmp_path: Path) -> None:
    """However many of those that are not stand behind them."""
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" + "noise\n" * number for number in range(8)) + "\r\n\n")
    noise = re.compile("noise")
    for lines, first in ((1, 7), (3, 5), (8, 0), (20, 0)):
        wanted = [f"line {number}" for number in range(first, 8)]
        assert tail(log, lines, without=noise).splitlines() == wanted, lines
    assert tail(log, 2).splitlines() == ["noise", "noise"]
    assert tail(tmp_path / "none") == ""
    log.write_text("".join(f"line {number:05}\n" for number in range(12_000)))  # more than is looked through
    assert tail(log, 1) == "line 11999"
