"""What `conformance` says of each outcome: to people, to programs, to a CI, and by its exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner, Result

from userdev.conformance import Check, CheckResult, Level, Outcome
from userdev.errors import UserError, VerdictError
from vfio_user.cli import _conformance
from vfio_user.cli._completion import complete_devices
from vfio_user.cli._conformance import Asked, Suite, options


class Bench:
    def begin(self) -> None:
        return

    def close(self) -> None:
        return


class Target:
    def try_out(self) -> str:
        return "it closes each connection"


def check(name: str, level: Level = Level.MUST, dialects: frozenset[str] | None = None) -> Check[Bench]:
    return Check(f"group/{name}", f"It does {name}", "a rule", lambda bench: None, level, dialects)


CHECKS = [check(outcome.name.lower(), Level.OPEN if outcome is Outcome.DIFFERS else Level.MUST) for outcome in Outcome]
RESULTS = {
    outcome: CheckResult(each, outcome, "" if outcome is Outcome.PASS else "what it did", 0.25)
    for outcome, each in zip(Outcome, CHECKS, strict=True)
}


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def served(*_: object, **__: object) -> Iterator[Target]:
        yield Target()

    monkeypatch.setattr(_conformance, "server", served)


def told(*words: str, catalogue: list[Check[Bench]] = CHECKS, outcomes: list[Outcome] | None = None) -> Result:
    """What a command of such checks says, which come to these outcomes."""

    @click.command()
    @options("SOCKET", complete=complete_devices)
    def command(**given: Any) -> None:
        results = [RESULTS[outcome] for outcome in (outcomes or [Outcome.PASS])]
        Suite(catalogue, "vfio-user", "current").carry_out(
            Asked(**given), lambda stream, timeout: None, lambda checks, target: iter(results)
        )

    return CliRunner().invoke(command, ["socket", *words])


@pytest.mark.parametrize("how", [[], ["--quiet"], ["--json", "-"], ["--json", "x"], ["--junit", "x"]], ids=" ".join)
@pytest.mark.parametrize("outcome", Outcome)
def test_only_what_failed_is_a_bad_verdict(outcome: Outcome, how: list[str], tmp_path: Path) -> None:
    result = told(*(str(tmp_path / word) if word == "x" else word for word in how), outcomes=[Outcome.PASS, outcome])
    assert isinstance(result.exception, VerdictError) is (outcome is Outcome.FAIL)
    assert isinstance(result.exception, UserError) is (outcome is Outcome.BROKEN)


@pytest.mark.parametrize("outcome", Outcome)
def test_an_outcome_is_shown_with_what_the_server_did(outcome: Outcome) -> None:
    lines = told(outcomes=[outcome]).stdout
    assert f"{outcome.name.lower()}: It does {outcome.name.lower()}" in lines
    assert ("what it did" in lines) is (outcome is not Outcome.PASS)
    assert ("a rule" in lines) is (outcome in (Outcome.FAIL, Outcome.DIFFERS))
    assert "it closes each connection" in lines


@pytest.mark.parametrize("outcome", Outcome)
def test_quiet_shows_what_is_not_as_it_should_be_and_the_count(outcome: Outcome) -> None:
    lines = told("--quiet", outcomes=[outcome]).stdout
    is_shown = outcome in (Outcome.FAIL, Outcome.DIFFERS, Outcome.BROKEN)
    assert (f"It does {outcome.name.lower()}" in lines) is is_shown
    assert "1 check:" in lines
    assert "it closes each connection" not in lines


def test_of_many_that_are_not_judged_for_one_reason_the_first_is_shown() -> None:
    """As behind a server that lets nobody: all are counted."""
    result = told(outcomes=[Outcome.NOT_JUDGED, Outcome.NOT_JUDGED, Outcome.FAIL, Outcome.NOT_JUDGED])
    assert result.stdout.count("It does not_judged") == 2
    assert "3 not judged" in result.stdout


def test_each_outcome_is_counted_by_itself() -> None:
    outcomes = [outcome for number, outcome in enumerate(Outcome, 1) for _ in range(number)]
    assert (
        "21 checks: 1 passed, 2 failed, 3 differ, 4 skipped, 5 not judged, 6 broken" in told(outcomes=outcomes).stdout
    )


def test_json_on_stdout_is_alone_there_and_has_every_outcome() -> None:
    result = told("--json", "-", outcomes=list(Outcome))
    checks = {one["id"]: one for one in json.loads(result.stdout)["checks"]}
    assert {id: (one["outcome"], one["detail"], one["seconds"]) for id, one in checks.items()} == {
        f"group/{outcome.name.lower()}": (outcome.value, RESULTS[outcome].detail, 0.25) for outcome in Outcome
    }
    assert checks["group/differs"]["level"] == "OPEN"


@pytest.mark.parametrize("json_too", [[], ["--json", "-"]], ids=["alone", "and JSON"])
@pytest.mark.parametrize(
    ("outcome", "tag"),
    [
        (Outcome.PASS, None),
        (Outcome.FAIL, "failure"),
        (Outcome.DIFFERS, "system-out"),
        (Outcome.SKIP, "skipped"),
        (Outcome.NOT_JUDGED, "skipped"),
        (Outcome.BROKEN, "error"),
    ],
)
def test_a_ci_is_told_each_outcome_in_its_own_words(
    outcome: Outcome, tag: str | None, json_too: list[str], tmp_path: Path
) -> None:
    told("--junit", str(tmp_path / "x.xml"), *json_too, outcomes=[outcome])
    [case] = ElementTree.parse(tmp_path / "x.xml").getroot().iter("testcase")
    assert [each.tag for each in case] == ([tag] if tag else [])
    assert tag is None or "what it did" in ElementTree.tostring(case, "unicode")
    assert (case.get("classname"), case.get("time")) == ("current.group", "0.25")


BY_LEVEL = [check("must"), check("reference", Level.REFERENCE), check("open", Level.OPEN)]


@pytest.mark.parametrize(
    ("level", "left"),
    [("must", ["must"]), ("reference", ["must", "reference"]), ("open", ["must", "reference", "open"])],
)
def test_a_level_has_those_below_it_too(level: str, left: list[str]) -> None:
    lines = told("--list", "--level", level, catalogue=BY_LEVEL).stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("group/")] == [f"group/{name}" for name in left]


@pytest.mark.parametrize("how", [[], ["--list"], ["--json", "-"]], ids=" ".join)
@pytest.mark.parametrize(
    ("words", "catalogue"),
    [
        (["--only", "group/open", "--level", "must"], BY_LEVEL),
        (["--only", "group/new"], [check("old"), check("new", dialects=frozenset({"another"}))]),
        ([], [check("new", dialects=frozenset({"another"}))]),
    ],
)
def test_a_run_of_no_check_at_all_is_refused(words: list[str], catalogue: list[Check[Bench]], how: list[str]) -> None:
    """It would be a good verdict of nothing."""
    result = told(*words, *how, catalogue=catalogue)
    assert isinstance(result.exception, UserError)
    assert not result.stdout
