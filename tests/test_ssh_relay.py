"""The near end of a program on another host: what it hands on and says, and how it stands still and ends with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import cast

import pytest

from tests.test_ssh_hosts import python, void
from vfio_user.harness.hosts import LocalHost, SshHost, relay
from vfio_user.harness.hosts.relay import AgentConnection, serve
from vfio_user.harness.hosts.remote_agent import (
    ALIVE,
    CLOSE,
    DATA,
    EXIT,
    HEADER,
    SIGNAL,
    STOPPED,
    Frames,
    Streams,
)


def test_the_near_end_stands_still_behind_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = iter([(STOPPED, 0, b""), (EXIT, 0, b"7")])
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    connection = cast(AgentConnection, SimpleNamespace(receive=lambda: next(frames)))
    streams = cast(Streams, SimpleNamespace(flush=void))
    assert serve(connection, streams, "b") == 7
    assert sent == [(os.getpid(), signal.SIGSTOP)]
    assert {relay._HANDED_ON[SshHost.kill_signal], relay._HANDED_ON[SshHost.pause_signal]} == {
        LocalHost.kill_signal,
        LocalHost.pause_signal,
    }
    assert relay._HANDED_ON[signal.SIGCONT] == signal.SIGCONT


def test_what_arrived_before_a_program_ended_is_with_those_it_is_for_before_its_end_is_told() -> None:
    done: list[str] = []
    said = [(DATA, 7, b"last words"), (CLOSE, 7, b""), (EXIT, 0, b"-9")]
    frames = SimpleNamespace(receive=lambda: said.pop(0))
    streams = SimpleNamespace(
        arrived=lambda number, data: done.append(f"{number}: {data.decode()}"),
        closed=lambda number: done.append(f"close {number}"),
        flush=lambda seconds: done.append("flush"),
    )
    assert serve(cast(AgentConnection, frames), cast(Streams, streams), "there") == -9
    assert done == ["7: last words", "close 7", "flush"]


def test_the_near_end_says_that_it_is_there_until_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "ALIVE_SECONDS", 0.0)
    told: list[bytes] = []

    def write(data: bytes) -> None:
        told.append(data)
        if len(told) == 3:
            raise BrokenPipeError

    relay.say_alive(Frames(lambda _: b"", write))
    assert [frame[0] for frame in told] == [ALIVE] * 3
    assert relay.SILENCE_SECONDS > 3 * 20.0, "one that is late is no silence"


def test_a_signal_that_interrupts_who_is_sending_is_handed_on_behind_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_HANDED_ON", {signal.SIGUSR1: signal.SIGKILL})
    sent = SimpleQueue[bytes]()
    frames = Frames(lambda _: b"", sent.put)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        relay.hand_on_signals(frames)
        with frames._lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert sent.empty()
        kind, number, _ = HEADER.unpack(sent.get(timeout=60))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (kind, number) == (SIGNAL, signal.SIGKILL)


def test_a_signal_for_a_program_whose_connection_has_ended_is_nobodys() -> None:
    def write(data: bytes) -> None:
        raise OSError("Socket is closed")

    relay.hand_on(Frames(lambda _: b"", write), signal.SIGTERM)


def test_of_the_files_that_a_relay_inherits_those_for_writing_are_carried(tmp_path: Path) -> None:
    (tmp_path / "read").touch()
    with (tmp_path / "read").open() as read, (tmp_path / "written").open("wb") as written, socket.socket() as other:
        numbers = [each.fileno() for each in (read, written, other)]
        code = "from vfio_user.harness.hosts.relay import inherited_files; print(*inherited_files())"
        found = subprocess.run(python(code), pass_fds=numbers, capture_output=True, text=True, check=True)
        assert found.stdout.split() == [str(written.fileno())]
