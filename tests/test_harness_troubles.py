"""What goes wrong beside a wait for a guest, and how much longer it is waited for then."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.test_harness_ssh import GoesOn
from tests.test_machine_life import Emulated, machine_of
from userdev.errors import UserdevError, UserError
from userdev.process import Child, Deadline
from vfio_user.harness import evidence, machine
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.evidence import Ends
from vfio_user.harness.guest import Guest, GuestFailure, GuestLost, Result
from vfio_user.harness.qmp import QmpTimeout
from vfio_user.harness.server_exceptions import LoggedException
from vfio_user.harness.ssh import _SshJob
from vfio_user.harness.timeouts import SCALE_VARIABLE, Accelerator, patience, waited
from vfio_user.harness.troubles import Look, Trouble, Wait, first_trouble

CAUSE = "dev0: ValueError: boo (mine.py:31, in transmit)"
MUCH = 1e6
"""Patience with which no test would see the end of a wait."""


def broke() -> Trouble:
    return Trouble(time.time(), CAUSE)


def silent(look: Look) -> tuple[AgentGuest, socket.socket]:
    ours, theirs = socket.socketpair()
    return AgentGuest(ours, patience=MUCH, look=look), theirs


def test_a_wait_beside_which_something_broke_has_no_more_patience_than_under_kvm_and_names_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble = Trouble(time.time() - 60, CAUSE)
    guest, port = silent(lambda: trouble)
    with contextlib.closing(guest), port:
        with pytest.raises(GuestLost) as lost:
            guest.hello(0.05)
        assert str(lost.value).startswith(f"{CAUSE}; after that the guest's agent did not answer 'hello' in ")
        assert "begin with that" in lost.value.hint
    ssh: Any = SimpleNamespace(is_connected=True, check=lambda _: None, patience=MUCH)
    channel: Any = GoesOn(b"4711\n")
    with pytest.raises(GuestLost, match=re.escape(CAUSE)):
        _SshJob(ssh, "sleep 9", channel, Wait(Deadline(0.05 * MUCH), MUCH, lambda: trouble)).wait()
    emulated = Emulated()
    server: Any = SimpleNamespace(
        ended_badly=True, ended=1.0, name="dev0", log=tmp_path / "none", fate=lambda: "ended", exit_code=1
    )
    server.began = 0.0
    waits: dict[str, Callable[[], object]] = {}
    monkeypatch.setattr(machine, "_READY_SECONDS", 0.05)
    with machine_of(emulated, tmp_path, beside=lambda: [server]) as booting:
        booting._ready_seconds, booting.patience = 0.05 * MUCH, MUCH
        waits["its boot"] = booting.wait_ready
        waits["an unplug"] = lambda: booting._await_deleted("dev0", booting._wait(Deadline(0.05 * MUCH)))
        for what, wait in waits.items():
            with pytest.raises(UserdevError, match=r"dev0 ended; after that") as failure:
                wait()
            assert not isinstance(failure.value, QmpTimeout) or "no event came" in str(failure.value), what


class Answers(Guest):
    """A guest in which every command fails at once."""

    def start(self, command: Any, timeout: float = 60.0) -> Any:
        return SimpleNamespace(wait=lambda *_: Result(command, 1, "", "", 0.0))

    put = get = invoke = close = cast(Any, None)


def test_what_never_succeeds_beside_a_broken_queue_is_not_asked_again_for_ever() -> None:
    guest = Answers(patience=MUCH, look=broke_before)
    with pytest.raises(GuestFailure, match=re.escape(CAUSE)):
        guest.wait_until_succeeds("false", timeout=0.05, interval=0.01)


def broke_before() -> Trouble:
    return Trouble(0.0, CAUSE)


def test_a_wait_goes_on_where_nothing_is_wrong_or_its_limit_was_said_and_for_a_grace_where_something_broke() -> None:
    """What does not need the broken queue is answered, and may take as long as under KVM from when it broke."""
    now = time.time()
    cases: dict[str, tuple[Wait, float]] = {
        "nothing is wrong": (Wait(Deadline(100), 1e4, lambda: None), 100),
        "it broke before": (Wait(Deadline(100), 1e4, lambda: Trouble(now - 9, CAUSE)), 0),
        "it broke just now": (Wait(Deadline(1000), 20, lambda: Trouble(now - 10, CAUSE)), 1000),
        "the limit was said": (Answers(patience=1e4, look=broke_before).waiting_until(100), 100),
    }
    for name, (wait, left) in cases.items():
        if name == "it broke just now":
            wait._began -= 60  # it has lasted longer than its 50 s
            left = 40
        else:
            wait._began -= 0.02
        assert wait.remaining == pytest.approx(left, abs=5), name
        assert wait.turn <= max(1.0, wait._grace), name


def test_a_clock_that_is_set_meanwhile_makes_no_wait_longer_or_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    for set_to in (now - 3600, now + 3600):
        wait = Wait(Deadline(1000), 20, lambda: Trouble(now - 10, CAUSE))
        wait._began -= 60
        assert wait.remaining == pytest.approx(40, abs=5)
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda set_to=set_to: set_to)
            wait._looked = -1.0
            assert wait.remaining == pytest.approx(40, abs=5), set_to - now
            assert " in 10" in wait.without("no answer came") or " in 11" in wait.without("no answer came")


def server(folder: Path, log: str, ends: str = "exec sleep 60") -> Child:
    """A program with that log, HH:MM:SS standing for now."""
    path = folder / "dev0.server.log"
    path.write_text(log.replace("HH:MM:SS", datetime.now().strftime("%H:%M:%S.%f")[:-3]))
    child = Child("dev0", ["sh", "-c", ends], log=path)
    if ends != "exec sleep 60":
        child.wait(30)
    return child


QUEUE = "HH:MM:SS WARNING queue 1 of M is broken until it is started again: its device has failed\n"
RAISED = """HH:MM:SS ERROR queue 1 of M: the device failed at a request
Traceback (most recent call last):
  File "mine.py", line 31, in transmit
    raise ValueError("boo")
ValueError: boo
"""


def test_only_what_is_still_wrong_with_a_server_is_a_trouble(tmp_path: Path) -> None:
    again = "HH:MM:SS INFO queue 1 of M is started again after it was broken\n"
    gone = "HH:MM:SS INFO queue 1 of M is gone with its front-end after it was broken\n"
    cases: dict[str, tuple[str, str, str]] = {
        "all is well": ("HH:MM:SS INFO connected\n", "exec sleep 60", ""),
        "a queue broke": (QUEUE, "exec sleep 60", "dev0: queue 1 of M is broken: its device has failed"),
        "of an exception": (
            RAISED + QUEUE,
            "exec sleep 60",
            f"{CAUSE}",
        ),
        "a refused request breaks nothing": (RAISED, "exec sleep 60", ""),
        "it runs again": (QUEUE + again, "exec sleep 60", ""),
        "its front-end has left": (QUEUE + gone, "exec sleep 60", ""),
        "it broke again": (QUEUE + again + QUEUE, "exec sleep 60", "queue 1 of M is broken"),
        "it ended": ("", "echo no memory >&2; exit 3", "dev0 exited with status 3: no memory"),
        "it ended in order": ("", "exit 0", ""),
    }
    for name, (log, ends, wanted) in cases.items():
        child = server(tmp_path, log, ends)
        found = first_trouble([child])
        assert (found is None) == (not wanted), name
        assert found is None or wanted in found.sentence, (name, found)
        assert found is None or abs(found.when - time.time()) < 3600, name
        child.stop()
    killed = server(tmp_path, "")
    killed.signal(signal.SIGKILL)
    killed.wait(30)
    assert first_trouble([killed]) is None, "a test did that"
    killed.stop()


def test_a_cause_that_the_error_tells_itself_is_told_once() -> None:
    raised = LoggedException("dev0", 5.0, "ValueError: boo", "mine.py:31, in transmit", "")
    told = GuestLost(f"{CAUSE}; after that the guest's agent did not answer 'say()' in 8 s\nmore")
    assert evidence.first_cause(Ends(exceptions=[raised]), told) == str(told).partition("\n")[0]
    other = evidence.first_cause(Ends(exceptions=[raised]), UserError("wrong answer"))
    assert other == f"{CAUSE}; after that wrong answer"


def test_what_a_deadline_was_multiplied_by_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, tuple[str, Accelerator, str]] = {
        "under KVM": ("1", "kvm", "8 s"),
        "without": ("1", "tcg", "32 s (8 s, times 4 as there is no KVM)"),
        "busy": ("3", "kvm", f"24 s (8 s, times 3 by {SCALE_VARIABLE})"),
        "both": ("0.5", "tcg", f"16 s (8 s, times 4 as there is no KVM, times 0.5 by {SCALE_VARIABLE})"),
    }
    for name, (scale, accelerator, told) in cases.items():
        monkeypatch.setenv(SCALE_VARIABLE, scale)
        assert waited(8, patience(accelerator)) == told, name
