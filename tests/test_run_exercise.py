"""`vfio-user run` has a guest exercise what the device is said to be; a device that is another is one failure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each_row
from vfio_user.cli import run
from vfio_user.harness.artifacts import Timeline
from vfio_user.harness.exercises import EXERCISES, Exercise
from vfio_user.harness.migration.report import NO_PAGES, Mode, Phase, PhaseRecord, Report, Verdict
from vfio_user.harness.migration.workload import judge


@for_each_row(
    [
        ("edu", (0x1AF4, 0x10F0), 1),
        ("edu", (0x1234, 0x11E8), len(EXERCISES["edu"].parts)),
        ("nvme", (0x1AF4, 0x10F0), len(EXERCISES["nvme"].parts)),
    ],
    ids=["another device", "a wrong device", "a device of a class"],
)
def test_no_other_part_is_tried_of_a_device_with_the_ids_of_another(
    device: str, ids: tuple[int, int], tried: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = Exercise("it", ok=False, seen={}, wrong=("all",), device={}, seconds=0.0)
    monkeypatch.setattr(run, "exercise", lambda *_: wrong)
    lab: Any = SimpleNamespace(timeline=Timeline(), folder=tmp_path)
    plugged = SimpleNamespace(address="0000:00:05.0", vendor=ids[0], device=ids[1])
    guest: Any = SimpleNamespace(device=plugged, collect=lambda _folder: None)
    assert len(list(run._exercised(lab, guest, EXERCISES[device]))) == tried


def test_a_failure_names_the_first_part_that_was_wrong_and_a_person_is_told_of_each_once() -> None:
    parts = EXERCISES["edu"].parts
    done = [
        (part, Exercise("it", ok=number == 0, seen={}, wrong=("this", "that") * (number > 0), device={}, seconds=0.0))
        for number, part in enumerate(parts[:3])
    ]
    failure = run._failure("edu", done, 0)
    assert failure is not None
    assert str(failure).endswith(f"{parts[1].proves}: this")
    assert failure.evidence.count("this; that") == 2
    assert [part.proves in failure.evidence for part in parts[:3]] == [False, True, True]
    assert run._failure("edu", done[:1], 0) is None
    assert (run._Printer.tells_parts, run._Quiet.tells_parts) == (True, False)


@for_each_row([("edu", "edu (the default)"), ("nvme", "as nvme;")])
def test_who_forgot_to_say_what_it_is_is_told_so(device: str, said: str) -> None:
    assert said in run._of_another_kind(device, 5)


def test_what_is_wrong_several_times_is_told_once_and_of_much_the_first_with_how_much_more_there_is() -> None:
    """Programs have all of it, in `wrong`."""
    for wrong, told in {
        ("a",): "a",
        ("a", "b", "a", "a"): "a (3 times); b",
        ("a", "b", "c"): "a; b; c",
        ("a", "b", "c", "d", "a", "e", "e"): "a (2 times); b; c; and 3 more",
    }.items():
        done = Exercise("it", ok=False, seen={}, wrong=wrong, device={}, seconds=0.0)
        assert done.verdict == told
        report = Report(Mode.AUTO, "a", "b", verdict=Verdict.MIGRATED)
        judge(report, done)
        assert report.reason == f"it: {told}"


def test_work_that_is_wrong_behind_a_migration_is_told_behind_that_no_page_was_told_of() -> None:
    done = Exercise("it", ok=False, seen={}, wrong=("page 5 is old",), device={}, seconds=0.0)
    for details, said in (({}, False), ({"pages": 0, "unmapped": 0}, True), ({"pages": 0, "unmapped": 1}, False)):
        report = Report(Mode.AUTO, "a", "b", verdict=Verdict.MIGRATED)
        report.phases.append(PhaseRecord(Phase.DIRTY_PAGES, 0.0, details=details))
        judge(report, done)
        assert report.reason == f"it: {f'{NO_PAGES}; ' if said else ''}page 5 is old", details
