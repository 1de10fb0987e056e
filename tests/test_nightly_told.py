"""What the commands tell of a night, and of two that are compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from tests.test_nightly_history import FAIL, PASS, XFAIL, case, nth
from tests.test_nightly_plan import written
from userdev.errors import UserError, VerdictError
from vfio_user.cli import nightly
from vfio_user.cli.nightly import _estimate as usual_estimate
from vfio_user.cli.nightly import command
from vfio_user.nightly.comparison import compare
from vfio_user.nightly.history import History, results_of
from vfio_user.nightly.staging import Stage
from vfio_user.nightly.summary import Cell, Status, Summary


class OneNight:
    """In the place of a night: it says what it does, and one case of it is wrong."""

    def __init__(self, *_: object, **__: object) -> None:
        self.folder = Path("results/night")

    def run(self, stage: object, place: object, say: Callable[[str], None]) -> Summary:
        say("1 of 2: it is fetched")
        return nth(1, case("a"), case("b", FAIL))


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """What `nightly` says of such a night."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(nightly, "prepare_environment", lambda *_, **_named: None)
    monkeypatch.setattr(nightly, "staged", lambda plan, drawn: Stage(plan, {}, {}))
    monkeypatch.setattr(nightly, "place_of", lambda plan: None)
    monkeypatch.setattr(nightly, "_estimate", lambda *_: "2 cases, an hour")
    monkeypatch.setattr(nightly, "Night", OneNight)
    return lambda *words: CliRunner().invoke(command, ["--plan", str(written(tmp_path)), *words])


@pytest.mark.parametrize("words", [[], ["--quiet"]], ids=["loud", "quiet"])
def test_a_quiet_night_says_only_what_is_wrong_and_where_the_page_is(
    words: list[str], told: Callable[..., Result]
) -> None:
    done = told(*words)
    assert "FAIL edu/t.py:A.b: it read 7" in done.stdout
    assert "results/night/index.html\n1 PASS, 1 FAIL" in done.stdout
    meanwhile = "an hour" in done.stderr, "it is fetched" in done.stderr
    assert meanwhile == ((False, False) if words else (True, True))


def test_a_night_for_programs_is_its_summary_and_nothing_else(told: Callable[..., Result]) -> None:
    done = told("--json")
    printed = json.loads(done.stdout)
    assert Summary.model_validate(printed).wrong()[0].id == "edu/t.py:A.b"
    schema = json.loads((Path(__file__).parent.parent / "docs/reference/json/nightly.json").read_text())
    assert list(Draft202012Validator(schema).iter_errors(printed)) == []
    assert "FAIL edu/t.py:A.b: it read 7" in done.stderr
    assert [told("--json", option).exit_code for option in ("--list", "--dry-run")] == [2, 2]


def test_only_a_night_that_is_run_writes_down_its_combinations(told: Callable[..., Result], tmp_path: Path) -> None:
    """And one that is locked is refused where some are missing, whether it is run, listed or counted."""
    lock = tmp_path / "plan.lock.json"
    shown: tuple[list[str], ...] = (["--list"], ["--dry-run"])
    for words in shown:
        assert told(*words).exit_code == 0, words
        assert not lock.exists(), words
    for words in ([], *shown):
        refused = told("--locked", *words)
        assert isinstance(refused.exception, UserError), words
        assert "does not have all combinations" in str(refused.exception), words
        assert not lock.exists(), words
    told()
    kept = lock.read_text()
    for words in ([], *shown):
        assert told("--locked", *words).exit_code == (0 if words else 1), words
    assert lock.read_text() == kept


def test_a_night_that_is_refused_writes_no_combinations(
    told: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_of_that(*_: object) -> Stage:
        raise UserError("there is no such cell")

    monkeypatch.setattr(Stage, "limited", nothing_of_that)
    assert isinstance(told("--only", "nosuch").exception, UserError)
    assert not (tmp_path / "plan.lock.json").exists()


def test_what_is_wrong_is_new_where_nobody_knows_of_a_night_before(told: Callable[..., Result]) -> None:
    """As where the history was not to be had: it was told as in the last night, and the status was 0."""
    done = told()
    assert isinstance(done.exception, VerdictError)
    assert str(done.exception) == "wrong: 1 of 2 cases"
    assert "FAIL edu/t.py:A.b: it read 7\n" in done.stdout


def test_a_night_is_run_though_nobody_can_say_how_long_it_will_take(
    told: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*_: object) -> None:
        raise UserError("history.sqlite: database is locked")

    monkeypatch.setattr(nightly, "_estimate", usual_estimate)
    monkeypatch.setattr(History, "latest", locked)
    done = told()
    assert "how long that takes is not known: history.sqlite: database is locked" in done.stderr
    assert "FAIL edu/t.py:A.b: it read 7" in done.stdout


# -- compared by hand -------------------------------------------------------------------------------------------------


def run_compare(folder: Path, old: Summary, new: Summary, *options: str) -> Result:
    for name, summary in (("a", old), ("b", new)):
        (folder / name).mkdir()
        summary.write(folder / name)
    return CliRunner().invoke(command, ["compare", str(folder / "a"), str(folder / "b" / "summary.json"), *options])


def test_two_nights_are_compared_and_new_wrong_is_a_status(tmp_path: Path) -> None:
    ran = run_compare(tmp_path, nth(1, case("a"), case("b", FAIL)), nth(2, case("a", FAIL), case("b")))
    assert isinstance(ran.exception, VerdictError)
    assert "new: edu/t.py:A.a: PASS -> FAIL: it read 7" in ran.output
    assert "mended: edu/t.py:A.b: FAIL -> PASS" in ran.output


def test_a_case_that_is_wrong_of_another_cause_is_new_and_both_causes_are_told(tmp_path: Path) -> None:
    old, new = (case("a", FAIL, cause=cause) for cause in ("ended by SIGABRT", "5! is 24"))
    ran = run_compare(tmp_path, nth(1, old), nth(2, new))
    assert isinstance(ran.exception, VerdictError)
    assert "new: edu/t.py:A.a: FAIL -> FAIL: 5! is 24 (FAIL before: ended by SIGABRT)" in ran.output
    before = nth(1, old)
    summary, compared = nth(2, new), compare(nth(2, new), (before.night, results_of(before)))
    told = next(nightly._wrong(summary, compared))
    assert told == "FAIL edu/t.py:A.a: 5! is 24 (FAIL in the last night: ended by SIGABRT)"


def test_a_night_is_named_as_its_page_does_or_by_a_file_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the way, or where nights are, if it is no night of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path / "kept"))
    nights = tmp_path / "kept" / "nightly"
    for number, name in enumerate(("mine-20261130-010000", "mine-20261130-020000"), 1):
        (nights / name).mkdir(parents=True)
        nth(number, case("a")).write(nights / name)
        for page in ("index.html", "summary.md", "junit.xml"):
            (nights / name / page).write_text("<html>")
    first, second = sorted(each.name for each in nights.iterdir())
    (tmp_path / second).write_text("a file that is here, and is none")
    (tmp_path / "alone.html").write_text("<html>")
    for names in (
        (first, first),
        (first, f"kept/nightly/{second}/index.html"),
        (f"kept/nightly/{first}/junit.xml", first),
    ):
        ran = CliRunner().invoke(command, ["compare", *names])
        assert (ran.exit_code, ran.output) == (0, "nothing is otherwise\n"), names
    for name, said in {
        second: "no summary of a night",
        "alone.html": "no summary of a night",
        "mine-20261130-010001": f"did you mean '{first}'?",
        "no/such": "there is no night",
    }.items():
        refused = CliRunner().invoke(command, ["compare", first, name]).exception
        assert isinstance(refused, UserError), name
        assert said in f"{refused} {refused.hint}", name


def test_that_two_nights_are_alike_is_said(tmp_path: Path) -> None:
    ran = run_compare(tmp_path, nth(1, case("a")), nth(2, case("a")))
    assert (ran.exit_code, "nothing" in ran.output) == (0, True)


def test_of_a_night_that_was_not_finished_a_comparison_says_so(tmp_path: Path) -> None:
    """What it did not come to is no difference, and nothing was otherwise in a night that was killed at once."""
    rows: tuple[tuple[Status, str, tuple[str, ...], str], ...] = (
        (Status.ENDED, "in edu/t.py:A.b", (), "was ended in edu/t.py:A.b, with 1 result of 2 cases"),
        (Status.RUNNING, "", (), "runs, or was killed, with 1 result of 2 cases"),
        (Status.UNDONE, "no space", (), "could not be done: no space, with 1 result of 2 cases"),
        (Status.FINISHED, "", ("edu",), "is only of edu"),
    )
    for number, (status, reason, only, said) in enumerate(rows):
        more = {"status": status, "reason": reason, "only": only}
        new = nth(2, case("a")).model_copy(update={**more, "cells": (Cell(id="edu", parameters={}, planned=2),)})
        (tmp_path / str(number)).mkdir()
        if new.status is Status.FINISHED:
            new = new.model_copy(update={"results": (case("a"), case("b"))})
        ran = run_compare(tmp_path / str(number), nth(1, case("a"), case("b")), new)
        assert (ran.exit_code, ran.output) == (0, f"note: n-2 {said}\nnothing is otherwise\n"), said


def test_a_comparison_is_to_be_had_for_programs(tmp_path: Path) -> None:
    ran = run_compare(tmp_path, nth(1, case("a", FAIL)), nth(2, case("a", FAIL)), "--json")
    assert (ran.exit_code, json.loads(ran.output)["as_before"]) == (0, ["edu/t.py:A.a"])
    (tmp_path / "again").mkdir()
    ran = run_compare(tmp_path / "again", nth(1, case("a")), nth(2, case("a", FAIL)), "--json")
    assert isinstance(ran.exception, VerdictError)
    assert json.loads(ran.stdout)["new"] == ["edu/t.py:A.a"]


def test_a_comparison_by_hand_leaves_out_nothing_that_one_for_programs_has(tmp_path: Path) -> None:
    both = ("new", PASS, FAIL), ("old", FAIL, FAIL), ("mended", FAIL, PASS), ("known", FAIL, XFAIL)
    old = nth(1, *(case(name, was) for name, was, _ in both), case("slow", seconds=2.0), case("goes"))
    new = nth(2, *(case(name, now) for name, _, now in both), case("slow", seconds=20.0), case("comes"))
    told = run_compare(tmp_path, old, new).output.splitlines()
    compared = compare(new, (old.night, results_of(old)))
    names = {"new": "new", "as_before": "as before", "mended": "mended", "added": "added", "gone": "gone"}
    wanted = {f"{said}: {id}" for field, said in names.items() for id in getattr(compared, field)}
    wanted |= {f"moved: {moved.id}" for moved in compared.moved}
    wanted |= {f"changed: {changed.id}" for changed in compared.changed}
    assert len(wanted) == 7
    assert wanted == {": ".join(line.split(": ")[:2]) for line in told}


def test_what_is_newly_wrong_is_counted_among_the_cases_of_its_own_night(tmp_path: Path) -> None:
    ran = run_compare(tmp_path, nth(1, case("a")), nth(2, case("a", FAIL), case("b"), case("c")))
    assert str(ran.exception) == "newly wrong: 1 of 3 cases"
