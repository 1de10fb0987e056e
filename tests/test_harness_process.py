"""Nothing outlives its owner: children, their children, and the directories of their sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import running, until
from userdev.errors import UserError
from userdev.process import Child, await_text
from vfio_user.harness.scratch import Scratch, checked_socket_path, processes_of


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def test_a_child_has_an_exit_code_and_last_words(log: Path) -> None:
    child = Child("talker", ["sh", "-c", "echo out; echo err >&2; exit 3"], log=log)
    assert child.wait(30) == 3
    assert child.fate() == "exited with status 3"
    assert child.last_words().split() == ["out", "err"]
    child.stop()


def test_a_program_that_is_not_there_is_a_sentence(log: Path) -> None:
    with pytest.raises(UserError, match="/no/such/program"):
        Child("nobody", ["/no/such/program"], log=log)


def test_a_wait_ends_with_the_child_not_with_its_deadline(log: Path) -> None:
    child = Child("short", ["sleep", "0.05"], log=log)
    began = time.monotonic()
    assert child.wait(30) == 0
    assert time.monotonic() - began < 10
    assert child.wait(0) == 0
    child.stop()


def test_a_wait_has_a_deadline(log: Path) -> None:
    child = Child("long", ["sleep", "300"], log=log)
    assert child.wait(0.02) is None
    child.stop()
    assert child.fate() == "was killed by SIGTERM"


def test_one_that_ignores_sigterm_is_killed(log: Path) -> None:
    child = Child("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 300; done"], log=log)
    until(lambda: "ready" in child.last_words())
    assert child.stop(grace=0.05) == -signal.SIGKILL


def test_stopping_ends_what_the_child_started(log: Path) -> None:
    child = Child("parent", ["sh", "-c", "sleep 300 & echo $!; wait"], log=log)
    until(lambda: child.last_words().isdigit())
    grandchild = int(child.last_words())
    child.stop()
    until(lambda: not running(grandchild))
    until(lambda: not child.group_is_alive())


def test_a_child_outlives_the_thread_that_started_it(log: Path) -> None:
    made: list[Child] = []
    thread = threading.Thread(target=lambda: made.append(Child("survivor", ["sleep", "300"], log=log)))
    thread.start()
    thread.join()
    assert made[0].wait(0.1) is None
    made[0].stop()


OWNER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from userdev.process import Child
    from vfio_user.harness.scratch import Scratch

    scratch = Scratch()
    # Its own child leaves the group, as a daemon does: only the environment tells whose it is.
    argv = ["sh", "-c", "setsid sleep 300 & echo $! > %s/grandchild; wait" % sys.argv[1]]
    child = Child("child", argv, log=Path(sys.argv[1]) / "log", environment=scratch.environment)
    print(child.pid, scratch.path, flush=True)
    time.sleep(300)
    """
)


def test_a_killed_owner_leaves_nothing_for_long(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid, directory = owner.stdout.readline().split()
    grandchild = tmp_path / "grandchild"
    until(lambda: grandchild.exists() and bool(grandchild.read_text()))
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not running(int(pid)))  # at once, by the kernel
    assert Path(directory).exists()
    with Scratch():  # the next run clears up
        assert not Path(directory).exists()
    until(lambda: not running(int(grandchild.read_text())))


def test_a_living_owners_directory_is_left_alone() -> None:
    with Scratch() as mine, Scratch():
        assert mine.path.exists()
    assert not mine.path.exists()


def test_the_processes_of_a_directory_are_found_by_their_environment(log: Path) -> None:
    with Scratch() as mine:
        child = Child("child", ["sleep", "300"], log=log, environment=mine.environment)
        assert [process.pid for process in processes_of(mine.path)] == [child.pid]
        child.stop()
        assert processes_of(mine.path) == []


def test_a_socket_path_may_have_107_bytes_and_not_more() -> None:
    assert checked_socket_path(Path("/" + "x" * 106))
    with pytest.raises(UserError, match="108 bytes"):
        checked_socket_path(Path("/" + "x" * 107))


def test_a_long_temporary_directory_is_not_used_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with Scratch() as mine:
        checked_socket_path(mine.socket_path("a-device-with-a-long-name.sock"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("asked", [True, False])
def test_a_child_that_was_sent_the_signal_that_ended_it_has_not_ended_badly(
    number: signal.Signals, asked: bool, log: Path
) -> None:
    """Whoever else sent it, or it alone: that is a bad end."""
    child = Child("long", ["sleep", "300"], log=log)
    try:
        if asked:
            child.signal(number)
        else:
            child.signal(signal.SIGCONT)  # another than what ends it
            os.kill(child.pid, number)
        assert child.wait(30) == -number
        assert (child.ended_on_request, child.ended_badly) == (asked, not asked)
    finally:
        child.stop()


def test_a_child_that_stands_for_a_program_elsewhere_and_is_told_to_kill_it_has_not_ended_badly(log: Path) -> None:
    """It ends as that program does, of another signal than it was sent: a relay to another host."""
    child = Child("relay", ["sh", "-c", "trap 'kill -9 $$' USR1; echo ready; while :; do sleep 0.01; done"], log=log)
    try:
        assert await_text(child, b"ready", 30)
        child.kill(signal.SIGUSR1)
        assert child.wait(30) == -signal.SIGKILL
        assert (child.ended_on_request, child.ended_badly) == (True, False)
    finally:
        child.stop()


def test_a_paused_child_stands_still_when_pause_returns(log: Path) -> None:
    """All its threads, those included that had a core when the signal came."""
    busy = "import threading\nfor _ in range(4): threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()"
    child = Child("busy", [sys.executable, "-c", busy], log=log)
    try:
        until(lambda: len(psutil.Process(child.pid).threads()) >= 5)
        for _ in range(10):
            child.pause()
            states = {psutil.Process(thread.id).status() for thread in psutil.Process(child.pid).threads()}
            assert states == {psutil.STATUS_STOPPED}
            child.signal(signal.SIGCONT)
    finally:
        child.stop()


def test_a_paused_child_is_not_given_time_that_it_cannot_use(log: Path) -> None:
    """It hears of no SIGTERM before it goes on, which it never does."""
    child = Child("paused", ["sleep", "60"], log=log)
    child.pause()
    began = time.monotonic()
    assert child.stop(grace=30) == -signal.SIGKILL
    assert time.monotonic() - began < 15


def test_pausing_a_child_that_has_ended_returns(log: Path) -> None:
    child = Child("gone", [sys.executable, "-c", ""], log=log)
    assert child.wait(30) == 0
    child.pause()
    child.stop()
