"""The parts of a migration by themselves: its phases' times, deadlines, what the guest sees, where a device returns."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from userdev.control import ControlError
from userdev.process import Deadline
from vfio_user.harness.migration import guest_view, report
from vfio_user.harness.migration.guest_view import GuestView, compare
from vfio_user.harness.migration.link import DeviceLink, StateSpool
from vfio_user.harness.migration.plan import Cancelled, Conductor
from vfio_user.harness.migration.report import Mode, Phase, Report, Verdict
from vfio_user.harness.migration.workload import NONE, SUBJECTS, Assignment


def test_phases_begin_and_last_as_the_clock_says_and_all_of_it_is_the_time_since_its_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = itertools.count(100.0, 1.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(now), time=lambda: 1e9))
    told = Report(Mode.NATIVE, "a", "b")  # at 100
    with told.phase(Phase.START):  # at 101
        pass  # at 102, and asked once more at 103
    with suppress(ValueError), told.phase(Phase.PRE_COPY) as record:  # at 104
        record.bytes = 7
        raise ValueError("lost")
    assert [(each.phase, each.began, each.seconds, each.bytes) for each in told.phases] == [
        (Phase.START, 1.0, 1.0, 0),
        (Phase.PRE_COPY, 4.0, 1.0, 7),
    ]
    assert (told.seconds, told.last_phase) == (6.0, Phase.PRE_COPY)


def test_a_verdict_follows_what_was_found_and_is_never_better_than_it_was() -> None:
    for before, after in {
        Verdict.MIGRATED: Verdict.LOST,
        Verdict.STAYED: Verdict.LOST,
        Verdict.LOST: Verdict.LOST,
        Verdict.DEAD: Verdict.DEAD,
    }.items():
        told = Report(Mode.DIRECT, "a", "b", verdict=before)
        told.judge("one", True, "as it was")
        assert (told.verdict, told.reason, told.wrong) == (before, "", [])
        told.judge("two", False, "gone")
        told.judge("three", False, "gone too")
        assert (told.verdict, told.reason) == (after, "two: gone; three: gone too"), before
        assert [check.what for check in told.wrong] == ["two", "three"]
        assert told.ok is False


def test_whichever_deadline_passes_first_is_meant() -> None:
    conductor, limit = Conductor(), Deadline(60)
    assert conductor.sooner(limit) is limit
    conductor.hurry(1)
    assert conductor.sooner(limit).remaining <= 1
    conductor.hurry(1000)
    assert conductor.sooner(limit) is limit


def test_who_cancels_ends_it_at_the_next_look() -> None:
    conductor = Conductor()
    conductor.check("before")
    conductor.cancel()
    with pytest.raises(Cancelled, match="cancelled while memory was copied"):
        conductor.check("while memory was copied")


AT = "0000:01:00.0"
BEFORE = GuestView("boot", 50.0, {AT: {"driver": "uio", "registers": {"BAR 0": "0x1", "command": "0x6"}}})
OTHER_BAR = {AT: {"driver": "uio", "registers": {"BAR 0": "0x2", "command": "0x6"}}}
UNBOUND = {AT: {"driver": "", "registers": BEFORE.devices[AT]["registers"]}}


def test_what_the_guest_itself_can_tell_is_compared_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, tuple[GuestView, list[str], str]] = {
        "the same": (BEFORE, [], ""),
        "later": (replace(BEFORE, uptime=51.0), [], ""),
        "earlier": (replace(BEFORE, uptime=49.9), ["time goes on"], "50.0 s, then 49.9 s"),
        "another boot": (replace(BEFORE, boot_id="b2"), ["no reboot"], "b2"),
        "without a driver": (replace(BEFORE, devices=UNBOUND), [f"driver of {AT}"], "none"),
        "elsewhere": (replace(BEFORE, devices=OTHER_BAR), [f"config space of {AT}"], "BAR 0 is 0x2, was 0x1"),
    }
    for case, (after, wrong, said) in cases.items():
        monkeypatch.setattr(guest_view, "look", lambda _guest, after=after: after)
        told = Report(Mode.NATIVE, "a", "b", verdict=Verdict.MIGRATED)
        guest: Any = None
        compare(told, BEFORE, guest)
        assert [check.what for check in told.wrong] == wrong, case
        assert (told.ok, said in told.reason) == (not wrong, True), case
        assert len(told.checks) == 4, case


class Control:
    """An interposer's control that keeps what it is asked, and refuses what it is told to."""

    def __init__(self, supports: tuple[str, ...] = (), refuses: str = "") -> None:
        self.asked: list[str] = []
        self._supports, self._refuses = supports, refuses

    def call(self, command: str, **given: Any) -> dict[str, Any]:
        self.asked.append(f"{command} {given['set']}" if "set" in given else command)
        if command == self._refuses:
            raise ControlError("it refuses", 95)
        return {"supports": self._supports, "resets": 3, "client_migrates": False, "data": "AAAA"}


def test_a_device_that_stays_runs_again_and_what_it_writes_is_logged_no_longer_where_it_was() -> None:
    """Whether it could begin while it ran or not; where the log was refused there is none to end."""
    for supports in ((), ("PRE_COPY",)):
        for refuses in ("", "region_read", "dma_logging_start"):
            control = Control(supports, refuses)
            server: Any = SimpleNamespace(control=control, name="edu", shares_memory=True)
            spool: Any = SimpleNamespace(close=lambda: None)
            link = DeviceLink("edu", 0, server, server, spool=spool)
            logs = refuses != "dma_logging_start"
            if logs:
                link.prepare()
            else:
                with pytest.raises(ControlError):
                    link.prepare()
            case = supports, refuses
            assert (link.logs, link.pre_copies, link.resets) == (logs, logs and bool(supports), 3), case
            assert bool(link.known) is (refuses != "region_read"), case
            asked = len(control.asked)
            link.return_to_source()
            assert control.asked[asked:] == ["migration_state RUNNING", *(["dma_logging_stop"] if logs else [])], case


def test_a_disk_is_given_what_its_work_needs_and_none_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    for served, subject in SUBJECTS.items():
        worked, idle = Assignment.of(served), Assignment.of(served, NONE)
        assert worked.device.options == (subject.options if subject.kinds else ())
        assert idle.device.options == ()
        own = Assignment.of(f"{served} --image {tmp_path}/own" if subject.options else served)
        assert own.device.options == (("--image", f"{tmp_path}/own") if subject.options else ())


class Piecemeal:
    """A server on another host, which gives a state of so many bytes in answers of at most so many."""

    shares_memory = False

    def __init__(self, state: bytes, most: int) -> None:
        self.left, self.sizes, self._most = state, list[int](), most
        self.control = self

    def call(self, _command: str, *, size: int, raw: bool) -> dict[str, Any]:
        assert raw
        self.sizes.append(size)
        piece, self.left = self.left[: min(size, self._most)], self.left[min(size, self._most) :]
        return {"raw": piece, "bytes": len(piece), "complete": not self.left}


def test_no_more_is_asked_for_than_is_left_of_what_was_wanted() -> None:
    for limit, most, taken in ((10, 4, 10), (10, 100, 10), (64, 4, 30), (None, 7, 30)):
        server, spool = Piecemeal(bytes(range(30)), most), StateSpool()
        remote: Any = server
        assert spool.fill(remote, limit) == spool.size == taken, (limit, most)
        if limit is not None:
            given = list(itertools.accumulate((min(size, most) for size in server.sizes), initial=0))
            assert server.sizes == [limit - already for already in given[:-1]], (limit, most)
        spool.close()
