"""However a program of a run ends, all who tell of that agree: its child, the first cause, the records, the page."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from userdev.errors import UserError
from userdev.process import Child
from vfio_user.harness import evidence
from vfio_user.harness.last_words import first_to_end_badly, tells
from vfio_user.harness.records import Records
from vfio_user.harness.server_exceptions import logged_exceptions
from vfio_user.page.axis import Axis, Kind
from vfio_user.page.names import PROCESSES
from vfio_user.page.run import put_programs


@dataclass(frozen=True)
class End:
    """How it ended, and what is to be said of that. `code` as `Popen` has it; None: it runs."""

    code: int | None
    sent: tuple[int, ...] = ()
    stopped: bool = False
    bad: bool = False
    crashed: bool = False
    cause: str = ""
    """How the first cause begins, behind the program's name; "": it is none."""
    kind: Kind | None = Kind.STEP
    """Of its end on the page; None: it has none there."""


KILLED, CRASHED, ENDED = -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGTERM
ENDS = {
    "runs": End(None, kind=None),
    "ends well": End(0),
    "ends badly": End(3, bad=True, cause="exited with status 3", kind=Kind.WRONG),
    "is killed by another": End(KILLED, bad=True, cause="was killed by SIGKILL", kind=Kind.WRONG),
    "crashes": End(CRASHED, bad=True, crashed=True, cause="was killed by SIGSEGV", kind=Kind.WRONG),
    "is killed on request": End(KILLED, (signal.SIGKILL,), kind=Kind.FAULT),
    "is killed on request, after a pause": End(KILLED, (signal.SIGSTOP, signal.SIGKILL), kind=Kind.FAULT),
    "crashes on request": End(CRASHED, (signal.SIGSEGV,), crashed=True, kind=Kind.FAULT),
    "crashes after a signal": End(
        CRASHED, (signal.SIGUSR1,), bad=True, crashed=True, cause="was killed by SIGSEGV", kind=Kind.WRONG
    ),
    "ends badly after a signal": End(3, (signal.SIGUSR1,), bad=True, cause="exited with status 3", kind=Kind.WRONG),
    "is stopped": End(ENDED, stopped=True),
    "ends badly when it is stopped": End(3, stopped=True),
    "is killed when it does not stop": End(KILLED, stopped=True),
}


class Ended(Child):
    """A program that has ended so, at a moment."""

    def __init__(self, folder: Path, end: End, *, name: str = "guest-dev0", at: float = 20.0) -> None:
        self.name, self.argv, self.pid = name, ["/server", "it"], 77
        self.log = folder / f"{name}.server.log"
        self.log.write_text("last words\n")
        self.folder, self.core, self.began = folder, None, 10.0
        self.signals, self.was_stopped = [signal.Signals(number) for number in end.sent], end.stopped
        self._process: Any = SimpleNamespace(poll=lambda: end.code)
        self._reaping, self._ended = threading.Lock(), at
        self._watcher = threading.Thread(target=int)
        self._watcher.start()


def test_a_child_knows_how_it_has_ended(tmp_path: Path) -> None:
    for how, end in ENDS.items():
        child = Ended(tmp_path, end)
        assert (child.ended_badly, child.crashed) == (end.bad, end.crashed), how
        assert child.ended == (None if end.code is None else 20.0), how


def test_the_first_cause_is_the_end_of_a_program_that_was_bad_and_nobody_wanted(tmp_path: Path) -> None:
    for how, end in ENDS.items():
        child = Ended(tmp_path, end)
        ends = evidence.ends(tmp_path, [child])
        cause = evidence.first_cause(ends, UserError("it is silent"))
        told = f"guest-dev0 {end.cause}: last words" if end.cause else "it is silent"
        by_test = end.sent and not end.bad
        assert cause == told + (f"; before that the test itself ended {_named(child)}" if by_test else ""), how
        assert [death.name for death in ends.deaths] == ([] if end.code is None or end.stopped else ["guest-dev0"]), how
        assert evidence.crashed([child]) is (end.crashed and not end.stopped), how


def _named(child: Child) -> str:
    return f"{child.name} ({signal.Signals(-(child.exit_code or 0)).name})"


def test_the_last_three_that_a_test_ended_are_named_with_a_cause(tmp_path: Path) -> None:
    killed = [Ended(tmp_path, ENDS["is killed on request"], name=f"n{at}", at=float(at)) for at in (1, 2, 3, 4, 9)]
    bad = Ended(tmp_path, ENDS["ends badly"], name="bad", at=5.0)
    cause = evidence.first_cause(evidence.ends(tmp_path, [*killed, bad]), None)
    assert cause.partition("; before that ")[2] == "the test itself ended n2 (SIGKILL), n3 (SIGKILL), n4 (SIGKILL)"


def test_the_first_to_end_badly_is_told_of_those_that_had_by_then(tmp_path: Path) -> None:
    children = [
        Ended(tmp_path, ENDS["ends well"], name="well", at=1.0),
        Ended(tmp_path, ENDS["is stopped"], name="stopped", at=2.0),
        Ended(tmp_path, ENDS["is killed on request"], name="wanted", at=3.0),
        Ended(tmp_path, ENDS["crashes"], name="second", at=8.0),
        Ended(tmp_path, ENDS["ends badly"], name="first", at=5.0),
        Ended(tmp_path, ENDS["runs"], name="runs", at=0.0),
    ]
    for by, name in ((4.9, None), (5.0, "first"), (9.0, "first")):
        found = first_to_end_badly(children, by)
        assert (found and found.name) == name, by
    assert first_to_end_badly(children[3:4], 7.9) is None


def lives(folder: Path, children: Sequence[Child]) -> list[dict[str, Any]]:
    records = Records(folder)
    records.children = list(children)
    records.write({}, [], [], None)
    found: list[dict[str, Any]] = json.loads((folder / PROCESSES).read_text())
    return found


class Noted(Axis):
    """An axis that keeps what is put on it: when, how long, and of what kind."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[int, int, Kind]] = []

    def add(
        self, row: int, when: int, said: int, kind: Kind, lasted: int = 0, record: int = 0, answer: int = 0
    ) -> None:
        self.noted.append((when, lasted, kind))


def test_a_program_is_on_the_page_as_it_ended(tmp_path: Path) -> None:
    for how, end in ENDS.items():
        [life] = lives(tmp_path, [Ended(tmp_path, end)])
        assert (life["when"], life["ended"]) == (10.0, None if end.code is None else 20.0), how
        assert (life["stopped"], life["in_order"]) == (end.stopped, end.code == 0), how
        axis = Noted()
        put_programs(axis, tmp_path)
        assert axis.noted[0] == (10 * 10**9, 0 if end.code is None else 10 * 10**9, Kind.STEP), how
        assert axis.noted[1:] == ([] if end.kind is None else [(20 * 10**9, 0, end.kind)]), how


def test_what_a_forgotten_machine_leaves_is_what_crashed_and_what_still_runs(tmp_path: Path) -> None:
    for how, end in ENDS.items():
        records = Records(tmp_path)
        child, other = Ended(tmp_path, end), Ended(tmp_path, ENDS["ends well"], name="guest.1-dev0")
        records.children = [child, other]
        records.forget("guest")
        kept = end.code is None or (end.crashed and not end.stopped)
        assert records.children == ([child, other] if kept else [other]), how
        assert child.log.exists() is kept, how
        assert other.log.exists(), how


def test_exceptions_are_told_in_the_order_in_which_they_were_raised(tmp_path: Path) -> None:
    """Of each program its first, whatever it is called and whichever was started first."""
    children = []
    for name, moments in {
        "b": ("00:00:30.000", "00:00:31.000"),
        "a": ("00:00:40.000",),
        "c": ("00:00:20.500",),
    }.items():
        child = Ended(tmp_path, ENDS["runs"], name=name)
        child.began = datetime(2026, 11, 30, 0, 0, 10).timestamp()
        said = "".join(f"{when} ERROR it\nTraceback (most recent call last):\nValueError: {when}\n" for when in moments)
        child.log.write_text(said)
        children.append(child)
    found = [(one.name, one.what, one.when - children[0].began) for one in logged_exceptions(children)]
    assert found == [
        ("c", "ValueError: 00:00:20.500", 10.5),
        ("b", "ValueError: 00:00:30.000", 20.0),
        ("a", "ValueError: 00:00:40.000", 30.0),
    ]


def test_a_cause_is_told_by_an_error_that_has_it_or_why_its_program_is_heard_of_no_more() -> None:
    lost = "the SSH connection to b has ended"
    for said, cause, told in (
        (f"stayed: {lost}; on a it goes on", f"guest.1 is heard of no more ({lost})", True),
        ("stayed: the time was over", f"guest.1 is heard of no more ({lost})", False),
        (f"stayed: {lost}", f"guest.1 exited with status 3: {lost}", False),
        ("QEMU exited with status 3", "QEMU exited with status 3", True),
    ):
        assert tells(said, cause) is told, cause
