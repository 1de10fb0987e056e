"""What `replay` and `minimize` say of what they found, to people and to programs, and by their exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from tests.cases import for_each, for_each_row
from userdev.errors import UserError, VerdictError
from userdev.fuzz import Find
from userdev.interposer.server_process import STDERR
from vfio_user.cli import _replaying
from vfio_user.cli import fuzz as fuzzing
from vfio_user.cli import minimize as minimizing
from vfio_user.cli import replay as replaying
from vfio_user.interposer.replay import Minimized, What
from vfio_user.interposer.replay.outcome import RECORDS_SHOWN, Difference, ReplayOutcome

WRONG = Difference(What.REPLY, 5, "0x1", "0x2", place="REGION_READ BAR0 0x0")
NO_SCRIPT = cast(Any, SimpleNamespace(truncated=""))


def outcome(**facts: Any) -> ReplayOutcome:
    return ReplayOutcome(NO_SCRIPT, sent=9, compared=4, **facts)


@pytest.mark.parametrize("how", [[], ["--quiet"], ["--json"], ["--json", "--quiet"]], ids=" ".join)
@pytest.mark.parametrize("differences", [[], [WRONG]], ids=["same", "other"])
def test_a_replay_that_differs_is_a_bad_verdict_however_it_is_told(
    how: list[str], differences: list[Difference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_bytes(b"")
    monkeypatch.setattr(_replaying, "load_script", lambda *_: NO_SCRIPT)
    monkeypatch.setattr(replaying, "replay", lambda *_, **__: outcome(differences=differences))
    result = CliRunner().invoke(replaying.command, [str(tmp_path / "t"), "--server-command", "x", *how])
    assert (result.exit_code != 0) is bool(differences)
    if "--json" in how:
        assert json.loads(result.stdout)["same"] is not bool(differences)
    else:
        assert isinstance(result.exception, VerdictError) is bool(differences)
        assert bool(result.stdout) is (not differences and not how)


@for_each([[], ["--quiet"], ["--quiet", "--json"]], ["same", "other", "none"])
def test_what_a_server_prints_is_shown_to_who_is_quiet_only_where_it_is_of_use(
    how: list[str], came: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said that it was listening to who wanted to hear nothing where nothing is otherwise."""
    places: list[int] = []

    def replay(*_: object, output: int, **__: object) -> ReplayOutcome:
        places.append(output)
        if how:
            os.write(output, b"it is listening\n")
        if came == "none":
            raise UserError("it has ended")
        return outcome(differences=[WRONG] if came == "other" else [])

    (tmp_path / "t").write_bytes(b"")
    monkeypatch.setattr(_replaying, "load_script", lambda *_: NO_SCRIPT)
    monkeypatch.setattr(replaying, "replay", replay)
    result = CliRunner().invoke(replaying.command, [str(tmp_path / "t"), "--server-command", "x", *how])
    assert (places == [STDERR]) is not bool(how)
    assert ("it is listening" in result.stderr) is (bool(how) and came != "same")
    assert "it is listening" not in result.stdout


@for_each_row(
    [
        ({"ignored": 3}, "3 ignored", "ignored"),
        ({"unplayed": 2}, "not played: 2 messages", "unplayed"),
        ({"fate": "was killed by SIGSEGV"}, "the server was killed by SIGSEGV", "fate"),
        ({"memory_was_mapped": True}, "--capture-dma", "memory_was_mapped"),
        ({"differences": [WRONG]}, "expected: 0x1", "differences"),
    ]
)
def test_whatever_there_is_to_say_of_a_replay_is_said_to_people_and_programs(
    facts: dict[str, Any], said: str, name: str
) -> None:
    assert said in outcome(**facts).text()
    assert said not in outcome().text()
    assert outcome(**facts).json()[name] != outcome().json()[name]


@for_each([0, 1, RECORDS_SHOWN, RECORDS_SHOWN + 1])
def test_the_same_that_differs_again_is_told_once_with_its_records(more: int) -> None:
    """To people; programs are told each by itself. What differs elsewhere, or otherwise, is another."""
    alike = [Difference(What.REPLY, 5 + number, "0x1", "0x2", place=WRONG.place) for number in range(1 + more)]
    others = [Difference(What.REPLY, 90, place="elsewhere"), Difference(What.NO_REPLY, 91, place=WRONG.place)]
    found = outcome(differences=[*alike, *others])
    text = found.text()
    assert text.count("another reply") == 2
    assert f"{3 + more} differences" in text
    assert (f"and {more} more like it" in text) is (more > 0)
    assert ("..." in text) is (more > RECORDS_SHOWN)
    assert ("at record 6" in text, "at records 6, " in text) == (more == 1, more > 1)
    assert len(found.json()["differences"]) == 3 + more


class Shortened:
    def write(self, path: Path) -> None:
        path.write_bytes(b"trace")


def minimized(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str, **facts: Any) -> Result:
    found = Minimized(cast(Any, Shortened()), 9, 2, 5, **{"ended": "minimal", "difference": WRONG, **facts})
    monkeypatch.setattr(_replaying, "load_script", lambda *_: NO_SCRIPT)
    monkeypatch.setattr(minimizing, "minimize", lambda *_, **__: found)
    (folder / "t").write_bytes(b"")
    return CliRunner().invoke(minimizing.command, [str(folder / "t"), "--server-command", "x", *words])


@for_each([False, True], ["minimal", "time is up", "interrupted"], [False, True])
def test_why_a_search_ended_is_said_and_an_interruption_is_its_status(
    as_json: bool, ended: str, confirmed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = minimized(tmp_path, monkeypatch, *(["--json"] if as_json else []), ended=ended, confirmed=confirmed)
    assert result.exit_code == (130 if ended == "interrupted" else 0)
    assert (tmp_path / "t.min").read_bytes() == b"trace"
    if as_json:
        told = json.loads(result.stdout)
        assert (told["ended"], told["confirmed"], told["output"]) == (ended, confirmed, str(tmp_path / "t.min"))
    else:
        assert (f"{ended}, there may be a shorter one" in result.stdout) is (ended != "minimal")
        assert ("note:" in result.stdout) is not confirmed
        assert "2 of 9 messages, 5 shorter ones tried" in result.stdout, "what finds the failure is played besides"
        assert ("--against" in result.stdout) is (ended == "minimal"), (
            "more may be left out where somebody knows better"
        )


def test_a_reference_is_not_asked_for_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--against" not in minimized(tmp_path, monkeypatch, "--against", "y").stdout


def test_who_names_no_server_to_replay_against_is_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_replaying, "load_script", lambda *_: NO_SCRIPT)
    (tmp_path / "t").touch()
    find = Find("vfio-user", "rule", "a rule", "rule: c", "c was said", ()).write(tmp_path)
    for trace in (tmp_path / "t", find):
        refused = CliRunner().invoke(replaying.command, [str(trace)]).exception
        assert isinstance(refused, UserError), trace
        assert "server" in str(refused), refused
        assert all(option in refused.hint for option in ("--server-command", "--device")), refused.hint


def test_what_cannot_be_replayed_is_said_before_a_server_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "t").touch()
    find = Find("vhost-user", "rule", "a rule", "rule: c", "c was said", ()).write(tmp_path)
    for trace, about in ((tmp_path / "t", "no trace"), (find, "a find of vhost-user")):
        assert about in str(CliRunner().invoke(replaying.command, [str(trace)]).exception), trace


@for_each([["--against", "y"], ["--record", "5"]], ids=" ".join)
def test_a_check_of_ones_own_decides_alone(beside: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert minimized(tmp_path, monkeypatch, "--check", "c", *beside).exit_code == 2
    assert not (tmp_path / "t.min").exists()


def test_what_is_shorter_is_beside_what_it_was_under_its_whole_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two traces that differ in what stands behind a dot each has its own."""
    found = Minimized(cast(Any, Shortened()), 9, 2, 5, ended="minimal", difference=WRONG)
    monkeypatch.setattr(_replaying, "load_script", lambda *_: NO_SCRIPT)
    monkeypatch.setattr(minimizing, "minimize", lambda *_, **__: found)
    for name in ("edu.1.trace", "edu.2.trace", "edu"):
        (tmp_path / name).touch()
        done = CliRunner().invoke(minimizing.command, [str(tmp_path / name), "--server-command", "x", "--json"])
        assert json.loads(done.stdout)["output"] == str(tmp_path / f"{name}.min")
    assert len([*tmp_path.glob("*.min")]) == 3


OPTIONS = {
    "session": ("--session 2", 2),
    "ignore": ("--ignore a --ignore b", ("a", "b")),
    "patience": ("--patience 7", 7.0),
    "timing": ("--timing recorded", "recorded"),
    "connect_to": ("--connect here", "here"),
    "against": ("--against other", "other"),
    "check": ("--check it", "it"),
    "record": ("--record 5", 5),
    "seconds": ("--for 2m", 120.0),
}
"""By what is asked for: how a command line says it."""


@for_each_row(
    [
        ("replay", {"ignore", "patience", "timing", "connect_to"}),
        ("minimize", {"session", "ignore", "patience", "seconds", "against", "record"}),
        ("minimize", {"check"}),
    ]
)
def test_each_option_is_for_what_it_is_called_and_no_other(
    name: str, options: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").write_bytes(b"")
    asked: list[dict[str, Any]] = []
    sessions: list[int] = []
    found = Minimized(cast(Any, Shortened()), 9, 2, 5, ended="minimal", difference=WRONG)

    def said(answer: Any) -> Callable[..., Any]:
        def function(*_: object, **facts: Any) -> Any:
            facts["session"] = sessions[-1]
            asked.append({option: value for option, value in facts.items() if option != "progress"})
            return answer

        return function

    def load(_: str, session: int) -> Any:
        sessions.append(session)
        return NO_SCRIPT

    monkeypatch.setattr(_replaying, "load_script", load)
    monkeypatch.setattr(replaying, "replay", said(outcome()))
    monkeypatch.setattr(minimizing, "minimize", said(found))
    command = {"replay": replaying, "minimize": minimizing}[name].command
    for given in (set(), *({option} for option in options), options):
        words = [word for option in given for word in OPTIONS[option][0].split()]
        assert CliRunner().invoke(command, [str(tmp_path / "t"), "--server-command", "x", *words]).exit_code == 0
        otherwise = {option: value for option, value in asked[-1].items() if value != asked[0][option]}
        assert otherwise == {option: OPTIONS[option][1] for option in given}


def test_the_session_of_a_trace_is_the_one_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_bytes(b"")
    asked: list[tuple[object, ...]] = []

    def load(_: str, *which: object) -> Any:
        asked.append(which)
        return NO_SCRIPT

    monkeypatch.setattr(_replaying, "load_script", load)
    monkeypatch.setattr(replaying, "replay", lambda *_, **__: outcome())
    for words in ([], ["--session", "3"]):
        CliRunner().invoke(replaying.command, [str(tmp_path / "t"), "--server-command", "x", *words])
    assert asked == [(1,), (3,)]


def test_a_find_is_played_with_the_options_that_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(fuzzing, "replay_find", lambda *given, **facts: asked.append((given, facts)))
    path = Find("vfio-user", "rule", "a rule", "rule: c", "c was said", ()).write(tmp_path)
    words = ["--connect", "here", "--patience", "7", "--json", "--quiet"]
    assert CliRunner().invoke(replaying.command, [str(path), *words]).exit_code == 0
    assert asked == [((path, None, "here"), {"timeout": 7.0, "as_json": True, "quiet": True})]


def test_what_did_not_fail_once_more_is_said_whatever_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = minimized(tmp_path, monkeypatch, "--check", "c", difference=None, confirmed=False)
    assert "note:" in result.stdout
