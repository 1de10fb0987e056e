"""What `conformance` says of each outcome: to people, to programs, to a CI, and by its exit status."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner, Result

from tests.cases import for_each, for_each_row
from userdev.conformance import Check, CheckResult, Level, Outcome
from userdev.errors import UserdevError, UserError, VerdictError
from vfio_user.cli import _conformance, conformance, vhost_conformance
from vfio_user.cli._completion import complete_devices
from vfio_user.cli._conformance import Asked, Suite, options
from vfio_user.cli._own_checks import own_checks
from vfio_user.client import NoAnswer, RemoteError
from vfio_user.harness.server_exceptions import complaints_in
from vfio_user.wire import CURRENT, DRAFT_V6, Dialect

SERVER = _conformance.server


class Bench:
    def begin(self) -> None:
        return

    def hurry(self) -> None:
        return

    def cause(self) -> None:
        return

    def close(self) -> None:
        return


class Target:
    def __init__(self) -> None:
        self.says: list[str] = []

    def try_out(self) -> str:
        return "it closes each connection"

    def said(self) -> str:
        return self.says.pop(0) if self.says else ""


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
        Suite(catalogue, "vfio-user", "current", reference="of 2019").carry_out(
            Asked(**given), lambda stream, timeout: None, lambda checks, target: iter(results)
        )

    return CliRunner().invoke(command, ["socket", *words])


WARNED = "12:00:00.000 WARNING queue 0 of Mine is broken until it is started again: its device has failed\n"
RAISED = """12:00:00.000 ERROR queue 0 of Mine: the device failed at a request
Traceback (most recent call last):
  File "/home/me/mine.py", line 8, in fill
    self.cols = 80000
    ^^^^^^^^^
ValueError: boo
a note of it
"""


def test_an_exception_is_told_with_its_authors_line_which_its_message_may_have() -> None:
    head = "12:00:00.000 ERROR READ: the device failed\nTraceback (most recent call last):\n"
    ours = f'  File "{_conformance.__file__}", line 62, in read\n'
    mine = '  File "/home/me/mine.py", line 9, in r\n'
    cases = {
        mine + ours + "ValueError: boo\n": "ValueError: boo (/home/me/mine.py:9, in r)",
        ours + "ValueError: boo\n": f"ValueError: boo ({_conformance.__file__}:62, in read)",
        ours + "WrongReturn: r (/home/me/mine.py:8) has returned None\n": "r (/home/me/mine.py:8) has returned None",
        mine + "WrongValue: s is 'x' (/home/me/mine.py:3)\n": "(/home/me/mine.py:3) (/home/me/mine.py:9, in r)",
    }
    for lines, words in cases.items():
        assert complaints_in(head + lines)[0].endswith(words), lines


def test_what_a_server_of_ours_complains_of_is_told_with_the_failure_and_an_exception_in_any_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised = "queue 0 of Mine: the device failed at a request: ValueError: boo (/home/me/mine.py:8, in fill)"
    warned = "queue 0 of Mine is broken until it is started again: its device has failed"
    cases: dict[str, tuple[Outcome, str, str, bool]] = {
        "a failure with a warning": (Outcome.FAIL, WARNED, f"the server said: {warned}\n", True),
        "with an exception": (Outcome.FAIL, RAISED + WARNED, f"the server said: {raised}\n", True),
        "of another's server": (Outcome.FAIL, "segfault imminent\n", "the server said", False),
        "that says nothing": (Outcome.FAIL, "", "the server said", False),
        "a check that passes, warned of": (Outcome.PASS, WARNED, warned, False),
        "one that passes beside an exception": (Outcome.PASS, RAISED, f"that pass, first so: {raised}\n", True),
    }
    for name, (outcome, said, words, is_told) in cases.items():
        target = Target()
        target.says = [said]
        monkeypatch.setattr(_conformance, "server", lambda *_, target=target, **__: nullcontext(target))
        told_then = told("--quiet", outcomes=[outcome]).stdout
        assert (words in told_then) is is_told, (name, told_then)


def test_what_is_open_is_no_question_beside_an_exception_and_one_exception_is_one_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes, fails, differs = Outcome.PASS, Outcome.FAIL, Outcome.DIFFERS
    other = RAISED.replace("line 8", "line 9")
    cases: dict[str, tuple[list[tuple[Outcome, str]], str]] = {
        "open, and it said nothing": ([(differs, "")], "0 failed, 1 differ, "),
        "open, and it warned": ([(differs, WARNED)], "0 failed, 1 differ, "),
        "open, and it raised": ([(differs, RAISED)], "1 failed, 0 skipped"),
        "failed and open by one exception": ([(fails, RAISED), (differs, RAISED)], "1 failed, 0 skipped, 1 not judged"),
        "two that failed by one": ([(fails, RAISED), (fails, RAISED)], "1 failed, 0 skipped, 1 not judged"),
        "two that failed by two": ([(fails, RAISED), (fails, other)], "2 failed, 0 skipped"),
        "two with one warning": ([(fails, WARNED), (fails, WARNED)], "2 failed, 0 skipped"),
        "one that passed before": ([(passes, RAISED), (fails, RAISED)], "1 passed, 1 failed, 0 skipped"),
    }
    for name, (results, words) in cases.items():
        target = Target()
        target.says = [said for _, said in results]
        monkeypatch.setattr(_conformance, "server", lambda *_, target=target, **__: nullcontext(target))
        told_then = told("--quiet", outcomes=[outcome for outcome, _ in results]).stdout
        assert words in told_then, (name, told_then)


def test_a_server_that_dies_fails_the_check_that_it_dies_of_whatever_it_raised_before() -> None:
    first, second = (CheckResult(check(name), Outcome.FAIL, name) for name in ("first", "second"))
    target = Target()
    target.says = [RAISED, RAISED]
    found = _conformance._with_complaints([first, replace(second, crashed=True)], cast(Any, target), print)
    assert [each.outcome for each in found] == [Outcome.FAIL, Outcome.FAIL]


class Started(Target):
    """A server that was started, with what it has said."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.says = [said]

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        return


def test_where_nothing_can_be_asked_of_a_server_of_ours_what_it_complains_of_is_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised = "the server said: queue 0 of Mine: the device failed at a request: ValueError: boo (/home/me/mine.py:8"
    for said, words in ((RAISED, raised), ("no line of ours\n", ""), ("", "")):
        monkeypatch.setattr(_conformance, "CommandServer", lambda *_, said=said, **__: Started(said))
        with pytest.raises(UserError) as refused, SERVER(None, "x {socket}", lambda *_: None, timeout=1.0):
            raise UserError("it hangs up at VERSION", evidence="as it did before")
        assert refused.value.evidence.startswith("as it did before" + "\n" * bool(words) + words), said
        assert ("said" in refused.value.evidence) is bool(words), said


@for_each(Outcome, [[], ["--quiet"], ["--json", "-"], ["--json", "x"], ["--junit", "x"]])
def test_only_what_failed_is_a_bad_verdict(outcome: Outcome, how: list[str], tmp_path: Path) -> None:
    result = told(*(str(tmp_path / word) if word == "x" else word for word in how), outcomes=[Outcome.PASS, outcome])
    assert isinstance(result.exception, VerdictError) is (outcome is Outcome.FAIL)
    assert isinstance(result.exception, UserError) is (outcome is Outcome.BROKEN)


@for_each(Outcome)
def test_an_outcome_is_shown_with_what_the_server_did(outcome: Outcome) -> None:
    lines = told(outcomes=[outcome]).stdout
    assert f"{outcome.name.lower()}: It does {outcome.name.lower()}" in lines
    assert ("what it did" in lines) is (outcome is not Outcome.PASS)
    assert ("a rule" in lines) is (outcome in (Outcome.FAIL, Outcome.DIFFERS))
    assert "it closes each connection" in lines


@for_each(Outcome)
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


def test_what_became_of_two_in_a_row_is_shown_of_both() -> None:
    """But for what is not judged: two failures with the same words are two."""
    for outcome in Outcome:
        shown = told(outcomes=[outcome, outcome, Outcome.PASS, outcome]).stdout.count(f"It does {outcome.name.lower()}")
        assert shown == {Outcome.NOT_JUDGED: 2, Outcome.PASS: 4}.get(outcome, 3), outcome


def test_a_program_is_told_all_that_a_check_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(check("x", Level.REFERENCE), needs=("group/a", "group/b"), revision="of 2022")
    monkeypatch.setitem(RESULTS, Outcome.FAIL, CheckResult(whole, Outcome.FAIL, "two\nlines", 1.23456789))
    document = json.loads(told("--json", "-", outcomes=[Outcome.FAIL]).stdout)
    assert document == {
        "dialect": "current",
        "checks": [
            {
                "id": "group/x",
                "title": "It does x",
                "level": "REFERENCE",
                "rule": "a rule",
                "needs": ["group/a", "group/b"],
                "revision": "of 2022",
                "outcome": Outcome.FAIL.value,
                "detail": "two\nlines",
                "seconds": 1.234568,
            }
        ],
    }


def test_a_group_is_named_once_before_what_became_of_its_checks() -> None:
    lines = told(outcomes=[*Outcome, *Outcome]).stdout.splitlines()
    assert lines.count("group") == 1
    assert lines.index("group") < min(number for number, line in enumerate(lines) if "It does" in line)
    assert "group" not in told("--quiet", outcomes=[Outcome.PASS]).stdout.splitlines(), "of which nothing is shown"


def test_how_long_checks_took_is_by_the_clock_with_what_was_between_them(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that came up anew for each check took 22 s of 28 that nobody told of."""
    _conformance._tell_counts([], 27.84)
    assert "0 checks: 0 passed, 0 failed, 0 skipped, in 27.8 s" in capsys.readouterr().out


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
    assert {one["revision"] for one in checks.values()} == {""}, "what a check does not say no program is told"


TAGS: dict[Outcome, str | None] = {
    Outcome.PASS: None,
    Outcome.FAIL: "failure",
    Outcome.DIFFERS: "system-out",
    Outcome.SKIP: "skipped",
    Outcome.NOT_JUDGED: "skipped",
    Outcome.BROKEN: "error",
}


@for_each(TAGS, [[], ["--json", "-"]])
def test_a_ci_is_told_each_outcome_in_its_own_words(outcome: Outcome, json_too: list[str], tmp_path: Path) -> None:
    tag = TAGS[outcome]
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


@for_each_row(
    [
        (how, *row)
        for how in [[], ["--list"], ["--json", "-"]]
        for row in [
            (["--only", "group/open", "--level", "must"], BY_LEVEL),
            (["--only", "group/new"], [check("old"), check("new", dialects=frozenset({"another"}))]),
            ([], [check("new", dialects=frozenset({"another"}))]),
        ]
    ]
)
def test_a_run_of_no_check_at_all_is_refused(how: list[str], words: list[str], catalogue: list[Check[Bench]]) -> None:
    """It would be a good verdict of nothing."""
    result = told(*words, *how, catalogue=catalogue)
    assert isinstance(result.exception, UserError)
    assert not result.stdout


def test_of_several_words_that_mean_nothing_the_first_is_told_with_what_was_meant() -> None:
    result = told("--only", "group/mus", "--only", "nowhere", catalogue=BY_LEVEL)
    assert isinstance(result.exception, UserError)
    assert "'group/mus'" in str(result.exception)
    assert "group/must" in result.exception.hint


def test_a_check_is_listed_with_what_it_needs_and_by_whom_it_goes() -> None:
    """A revision of the reference that a check names is told in the place of the usual one, and of that level alone."""
    first, second = check("first"), check("second", Level.REFERENCE)
    needy = replace(first, needs=("group/a",)), replace(second, needs=("group/a", "group/b"), revision="of 2022")
    for catalogue, wanted in (
        ([first], ["MUST, a rule"]),
        ([second], ["REFERENCE (of 2019), a rule"]),
        ([needy[0]], ["MUST, a rule", "needs group/a"]),
        ([needy[1]], ["REFERENCE (of 2022), a rule", "needs group/a, group/b"]),
    ):
        lines = [line.strip() for line in told("--list", catalogue=catalogue).stdout.splitlines()]
        assert lines[1:] == wanted, catalogue


class Spoken(Target):
    """A server of whose dialects some are answered with an error."""

    def __init__(self, refused: dict[str, UserdevError]) -> None:
        self.refused = refused
        self.renewed: list[str] = []

    def connect(self) -> Any:
        return self

    def close(self) -> None:
        return

    def renew(self) -> None:
        self.renewed.append("renewed")

    def crashed(self) -> None:
        self.renewed.append("asked")


def test_a_back_end_of_which_nothing_passed_is_asked_for_the_other_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verdict is there before, and what is known to speak the right one is not asked."""
    for outcomes, speaks, is_asked, is_other in (
        ([Outcome.FAIL, Outcome.NOT_JUDGED], True, True, True),
        ([Outcome.FAIL, Outcome.SKIP], False, True, False),
        ([Outcome.FAIL, Outcome.PASS], True, False, False),
        ([Outcome.PASS, Outcome.FAIL], True, False, False),
        ([Outcome.SKIP, Outcome.DIFFERS], True, False, False),
        ([], True, False, False),
    ):
        tried: list[float] = []
        monkeypatch.setattr(
            vhost_conformance,
            "speaks_vfio_user",
            lambda *_, timeout, it=speaks, tried=tried: tried.append(timeout) or it,
        )
        asked: Any = SimpleNamespace(address="a b", timeout=3.0)
        judged: list[Outcome] = []
        with pytest.raises(UserError, match="nothing of vhost-user") if is_other else nullcontext() as refused:
            results: Any = iter([RESULTS[outcome] for outcome in outcomes])
            target: Any = Spoken({})
            judged.extend(each.outcome for each in vhost_conformance._judged(results, target, asked))
        assert judged == outcomes
        assert tried == [3.0] * is_asked, outcomes
        assert not is_other or "`vfio-user conformance 'a b'`" in refused.value.hint  # type: ignore[union-attr]


def test_checks_of_somebodys_own_are_those_of_each_group_once(tmp_path: Path) -> None:
    """A group may have two names in its file, and one that is imported from elsewhere brings the catalogue's along."""
    text = (
        "from userdev.conformance import Group\n"
        "GROUP = Group('mine', 'a rule')\n"
        "AGAIN = GROUP\n"
        "OTHER = Group('other', 'a rule')\n"
        "@GROUP.check('one')\ndef one(bench): 'It does.'\n"
        "@OTHER.check('two')\ndef two(bench): 'It does too.'\n"
    )
    (tmp_path / "own.py").write_text(text)
    assert [each.id for each in own_checks(tmp_path / "own.py", CHECKS)] == ["mine/one", "other/two"]
    for group, name, catalogue in (("group", "fail", CHECKS), ("mine", "one", [check("x")])):
        (tmp_path / "taken.py").write_text(
            f"from userdev.conformance import Group\nG = Group({group!r}, 'r')\n@G.check({name!r})\ndef f(b): 'It.'\n"
        )
        with pytest.raises(UserError, match="already") if catalogue is CHECKS else nullcontext():
            own_checks(tmp_path / "taken.py", catalogue)


def test_a_server_of_another_dialect_is_judged_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that greets nobody is judged, and begins anew for that; not one of which too little is known, or in use."""

    def greets(dialect: Dialect) -> Callable[..., None]:
        def greet(stream: Any, timeout: float) -> None:
            asked.append((dialect.name, timeout))
            if error := server.refused.get(dialect.name):
                raise error

        return greet

    monkeypatch.setattr(conformance, "greeting", greets)
    monkeypatch.setattr(conformance, "speaks_vhost_user", lambda *_, timeout: asked.append(("vhost-user", timeout)))
    no, neither, silent = UserdevError("no"), UserdevError("nor that"), NoAnswer("it is silent")
    for refused, dialects, renewed, hint in (
        ({}, "spoken", [], ""),
        ({"spoken": silent}, "spoken", [], ""),
        ({"spoken": RemoteError(errno.EBUSY, "VERSION")}, "spoken", [], "another client"),
        ({"spoken": no, "other": neither}, "spoken other vhost", ["renewed", "asked"], ""),
        ({"spoken": no}, "spoken other", ["renewed", "asked"], "--dialect {}"),
    ):
        for spoken, other in ((CURRENT, DRAFT_V6), (DRAFT_V6, CURRENT)):
            names = {"spoken": spoken.name, "other": other.name, "vhost": "vhost-user"}
            asked: list[tuple[str, float]] = []
            server = Spoken({names[which]: error for which, error in refused.items()})
            with pytest.raises(UserError) if hint else nullcontext(None) as raised:
                conformance._require_dialect(server, spoken, "socket", timeout=3.0)  # type: ignore[arg-type]
            assert raised is None or hint.format(other.name) in raised.value.hint, (refused, spoken)
            assert asked == [(names[which], 3.0) for which in dialects.split()], (refused, spoken)
            assert server.renewed == renewed, (refused, spoken)


def test_an_answer_may_take_as_long_as_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def run(checks: object, target: object, dialect: object, *, timeout: float) -> Iterator[CheckResult[Bench]]:
        waited.append(timeout)
        return iter([RESULTS[Outcome.PASS]])

    monkeypatch.setattr(conformance, "_require_dialect", lambda *_, timeout: waited.append(timeout))
    monkeypatch.setattr(conformance, "run", run)
    assert CliRunner().invoke(conformance.command, ["socket", "--timeout", "7"]).exit_code == 0
    assert waited == [7.0, 7.0]
