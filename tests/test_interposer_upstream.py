"""The server's side of an interposer: how it gets a connection to whoever serves next."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interposer_bench import Looped
from userdev.errors import UserError
from userdev.interposer.server_process import ServerProcess, is_ending, peer_pid
from userdev.interposer.upstream import Upstream
from userdev.transport import Listener, connect
from vfio_user.bundle.standing import _is_traced
from vfio_user.harness.terminal import _ends
from vfio_user.interposer.interposer import Interposer, Setup


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[str]:
    """The path of a server that takes no client any more: nobody accepts, and its queue is full."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            yield path


@pytest.mark.parametrize("patience", [0.0, 0.05])
def test_a_server_that_takes_no_client_is_not_waited_for_beyond_the_deadline(busy: str, patience: float) -> None:
    looped = Looped()
    upstream = Upstream(looped.loop, busy, None)
    with pytest.raises(UserError):
        looped.run(upstream.reconnect(looped.loop.now() + patience))
    looped.loop.close()


def test_a_signal_for_a_server_that_has_ended_or_is_not_known_is_refused(busy: str) -> None:
    looped = Looped()
    with subprocess.Popen(["true"]) as ended:
        pass
    for pid, said in ((ended.pid, str(ended.pid)), (None, "not known")):
        with pytest.raises(UserError, match=said):
            Upstream(looped.loop, busy, None, pid).signal(signal.SIGUSR1)
    looped.loop.close()


def test_a_server_that_was_never_started_has_no_process_and_no_end_to_wait_for() -> None:
    looped = Looped()
    process = ServerProcess(looped.loop, "sleep 60 {socket}")
    assert (process.pid, process.fate) == (None, "was never started")
    assert looped.run(process.ended(60))
    assert looped.run(process.failure(60)) == ""
    looped.run(process.stop())
    process.close()
    looped.loop.close()


def test_a_program_is_known_whose_name_the_kernel_has_cut_within_a_character(tmp_path: Path) -> None:
    """It keeps 15 bytes of it."""
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    began = int(Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()[19])
    with Listener(str(tmp_path / "s")):
        stream = connect(str(tmp_path / "s"), timeout=60)
        name.write_bytes("Überprüfungsübung".encode()[:15])
        try:
            assert peer_pid(stream) is None, "it is ourselves"
            assert not is_ending(os.getpid())
            assert not _is_traced(os.getpid())
            assert not _ends([os.getpid(), began], 0)
            assert _ends([os.getpid(), began - 1], 0), "another had its number"
        finally:
            name.write_bytes(before)
        stream.close()


def watched(interposer: Interposer) -> bool:
    """Whether nothing more will be said of the server."""
    return interposer._watching is not None and interposer._watching.done


def test_a_server_of_ours_that_ends_badly_by_itself_is_told_once_with_or_without_a_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Interposer, "warn", lambda _self, text: told.append(text))
    cases = {
        "at once": ("exit 2", False, ["exited with status 2"]),
        "in a session": ("exit 2", True, ["exited with status 2"]),
        "by a signal": ("kill -SEGV $$", False, ["was killed by SIGSEGV"]),
        "in order": ("exit 0", False, []),
        "in order in a session": ("exit 0", True, []),
    }
    for number, (case, (end, with_client, expected)) in enumerate(cases.items()):
        told.clear()
        fifo, looped = tmp_path / f"fifo{number}", Looped()
        os.mkfifo(fifo)
        setup = Setup(listen=str(tmp_path / f"s{number}"), server_command=f"sh -c 'read x <{fifo}; {end}' {{fd}}")
        with Interposer(setup, looped.loop) as interposer, socket.socket(socket.AF_UNIX) as client:
            interposer.begin()
            if with_client:
                client.connect(setup.listen)
                looped.until(lambda: interposer.session)
            fifo.write_text("\n")  # when the server is about to read it
            if with_client:
                looped.until(lambda: interposer.session is None or None)
            looped.until(lambda: watched(interposer) or None)
            looped.settle()
            assert [words in said for words, said in zip(expected, told, strict=True)] == [True] * len(expected), case


def test_a_server_that_is_ended_on_purpose_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Interposer, "warn", lambda _self, text: told.append(text))
    looped = Looped()
    setup = Setup(listen=str(tmp_path / "s"), server_command="sh -c 'exec sleep 600' {fd}")
    with Interposer(setup, looped.loop) as interposer:
        looped.run(interposer.upstream.stop())
        looped.until(lambda: watched(interposer) or None)
    assert told == []


def test_the_socket_of_a_server_of_ours_goes_with_it_and_nobody_elses_does(tmp_path: Path) -> None:
    looped, path = Looped(), tmp_path / "server"
    with socket.socket(socket.AF_UNIX) as elses:
        elses.bind(str(path))
        Upstream(looped.loop, str(path), "sleep 60 {fd}").close()
        assert path.exists(), "none was started"
    upstream = Upstream(looped.loop, str(path), "sh -c 'exec sleep 60' {fd}")
    looped.run(upstream.start(60.0))
    assert path.exists()
    upstream.close()
    assert not path.exists(), "the next client would be told that the server has closed its connection"
    looped.loop.close()


def test_an_interposer_tells_at_its_end_which_rules_never_acted_where_there_was_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Interposer, "warn", lambda _self, text: told.append(text))
    faults = tmp_path / "faults.yaml"
    faults.write_text("rules: [{name: lose, match: {command: DEVICE_RESET}, act: drop}]")
    for sessions in (0, 1):
        looped = Looped()
        setup = Setup(listen=str(tmp_path / f"s{sessions}"), connect=str(tmp_path / "none"), faults=str(faults))
        with Interposer(setup, looped.loop) as interposer:
            interposer.sessions = sessions
            assert interposer.status()["rules"] == [
                {"name": "lose", "matched": 0, "acted": 0, "in_vain": 0, "probability": 1.0}
            ]
            interposer.tell_untried()
    assert told == ["the rule 'lose' never acted: no message matched it"]
