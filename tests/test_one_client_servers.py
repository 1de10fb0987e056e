"""Servers that end with their client: the next client gets a fresh one, and never the one that is about to end."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.interposed import Interposed
from userdev.conformance import targets
from userdev.conformance.targets import CommandServer
from userdev.errors import UserError
from userdev.transport import Stream
from vfio_user.client import Client, Disconnected
from vfio_user.client.conformance import greeting
from vfio_user.wire import CURRENT

COMMAND = f"{shlex.quote(sys.executable)} -m tests.one_client_server {{socket}}"
GREET = greeting(CURRENT)


def test_two_servers_share_a_folder_and_nothing_in_it(tmp_path: Path) -> None:
    with (
        CommandServer(COMMAND, tmp_path, GREET, timeout=20) as one,
        CommandServer(COMMAND, tmp_path, GREET, timeout=20) as other,
        Client(one.connect(), timeout=20) as first,
        Client(other.connect(), timeout=20) as second,
    ):
        assert first.negotiate(minor=0) == second.negotiate(minor=0)
        assert one.pid != other.pid


def test_what_a_server_prints_is_told_once_also_of_one_that_has_ended_and_not_more_than_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "server.py"
    script.write_text(
        "import socket, sys\n"
        "print('begins', flush=True)\n"
        "listening = socket.socket(socket.AF_UNIX)\n"
        "listening.bind(sys.argv[1])\n"
        "listening.listen()\n"
        "for what in ('first', 'second', 'x' * 2000):\n"
        "    client = listening.accept()[0]\n"
        "    print(what, flush=True)\n"
        "    client.sendall(b'.')\n"
    )
    with CommandServer(f"{shlex.quote(sys.executable)} {script} {{socket}}", tmp_path, GREET, timeout=20) as target:
        assert target.said() == ""
        for words in ("begins\nfirst\n", "second\n"):
            with contextlib.closing(target.connect()) as client:
                client.socket.recv(1)
            assert target.said() == words
            assert target.said() == ""
        target.renew()
        monkeypatch.setattr(targets, "_MOST_SAID", 1000)
        for _ in range(3):
            with contextlib.closing(target.connect()) as client:
                client.socket.recv(1)
        target.renew()
        assert target.said() == "x" * 999 + "\n", "the last of it"


def test_the_conformance_suite_starts_one_for_each_client(tmp_path: Path) -> None:
    with CommandServer(COMMAND, tmp_path, GREET, timeout=20) as target:
        assert "ends with status 0 when a client leaves after it was greeted" in target.try_out()
        pids = set()
        for _ in range(3):
            with Client(target.connect(), timeout=20) as client:
                client.negotiate()
                pids.add(target.pid)
        assert len(pids) == 3
        target.renew()
        assert target.crashed() is None
        with Client(target.connect(), timeout=20) as client:
            client.negotiate()
            (tmp_path / "fails").touch()
        target.renew()  # how it ends by itself is waited for
        ended = target.crashed()
        assert ended is not None
        assert ("status 3" in ended.text, ended.by_itself) == (True, True)
        with Client(target.connect(), timeout=20) as client:
            client.negotiate()
            assert target.pid is not None
            assert target._child is not None
            os.kill(target.pid, signal.SIGABRT)
            target._child.wait(20)
            killed = target.crashed()
        assert killed is not None
        assert not killed.by_itself


def test_one_that_never_listens_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "START_SECONDS", 0.05)
    with CommandServer("sh -c 'exec sleep 60' {socket}", tmp_path, GREET, timeout=20) as target:
        told = []
        for _ in range(3):
            with pytest.raises(UserError, match="does not listen") as refused:
                target.connect()
            told.append(refused.value)
        assert told == [told[0]] * 3
        assert len(list(tmp_path.glob("server*.log"))) == 1


@pytest.mark.long
@for_each(["deaf", "mute"])
def test_one_that_lives_on_without_serving_is_replaced_and_that_is_said_once(habit: str, tmp_path: Path) -> None:
    """It was waited for, 20 s for each check."""
    with CommandServer(f"{COMMAND} {habit}", tmp_path, GREET, timeout=20, say=pytest.fail) as target:
        assert target.try_out().count("serves nobody any more when a client leaves after it was greeted") == 1
        began = time.monotonic()
        pids = set()
        for _ in range(3):
            with Client(target.connect(), timeout=20) as client:
                client.negotiate()
                pids.add(target.pid)
            target.settle()
            assert target.crashed() is None
        assert len(pids) == 3
        assert time.monotonic() - began < 15


def test_one_that_never_answers_is_said_to_answer_nobody_and_nothing_else(tmp_path: Path) -> None:
    with CommandServer(f"{COMMAND} silent", tmp_path, GREET, timeout=0.2, say=pytest.fail) as target:
        said = target.try_out()
        assert "answers nobody" in said
        assert "when a client leaves" not in said
        pids = set()
        for _ in range(2):
            target.connect().close()
            pids.add(target.pid)
        assert target.crashed() is None
        assert len(pids) == 1


def test_one_that_stops_listening_later_is_said_once_too(tmp_path: Path) -> None:
    said: list[str] = []
    with CommandServer(f"{COMMAND} deaf", tmp_path, GREET, timeout=20, say=said.append) as target:
        for _ in range(3):
            with Client(target.connect(), timeout=20) as client:
                client.negotiate()
            target.settle()
        assert len(said) == 1


def test_one_that_has_served_others_and_listens_no_more_has_failed_at_what_was_done_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh one was in its place before the check asked for the next client, and the check passed."""
    monkeypatch.setattr(targets, "LISTEN_AGAIN_SECONDS", 0.1)

    def offend(target: CommandServer) -> None:
        with Client(target.connect(), timeout=20) as client:
            client.negotiate(minor=0)
            client.channel.send_bytes(b"what is no message")
            with pytest.raises(Disconnected):
                client.serve_until(lambda: False, timeout=20)

    def come_again(target: CommandServer) -> None:
        with Client(target.connect(), timeout=20) as client:
            client.negotiate(minor=0)

    with CommandServer(f"{COMMAND} offended", tmp_path, GREET, timeout=20, say=pytest.fail) as target:
        assert target.try_out() == ""
        for found_by in (CommandServer.settle, come_again):
            come_again(target)
            target.settle()
            assert target.crashed() is None
            offend(target)
            found_by(target)
            crash = target.crashed()
            assert crash is not None, found_by
            assert not crash.by_itself
            assert "serves nobody any more" in crash.text


def test_a_second_client_that_is_refused_is_told_at_once_and_the_first_is_served_on(tmp_path: Path) -> None:
    with (
        CommandServer(f"{COMMAND} deaf", tmp_path, GREET, timeout=20) as target,
        Client(target.connect(), timeout=20) as client,
    ):
        Path(target.path).unlink()
        with pytest.raises(UserError, match="no second client"):
            target.connect()
        client.negotiate()


def test_one_who_stayed_to_see_that_the_server_serves_on_is_served_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "LISTEN_AGAIN_SECONDS", 0.1)
    with (
        contextlib.ExitStack() as leaving,
        CommandServer(f"{COMMAND} offended", tmp_path, GREET, timeout=20, say=pytest.fail) as target,
    ):

        def stay(stream: Stream, timeout: float) -> None:
            leaving.callback(stream.close)
            GREET(stream, timeout)

        target.connect().close()
        target.settle(stay)
        Path(target.path).unlink()
        with pytest.raises(UserError, match="no second client"):
            target.connect()


def test_a_fresh_one_that_does_not_come_up_is_waited_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(targets, "START_SECONDS", 0.3)
    with CommandServer("sh -c 'exec sleep 60' {socket}", tmp_path, GREET, timeout=20) as target:
        for _ in range(50):
            with pytest.raises(UserError, match="does not listen"):
                target.connect()


def test_an_interposer_starts_one_for_each_client(tmp_path: Path) -> None:
    with Interposed(tmp_path, COMMAND) as interposed, interposed.control() as control:
        pids = set()
        for _ in range(3):
            with interposed.client(timeout=20):
                pids.add(control.server_pid())
        assert len(pids) == 3
