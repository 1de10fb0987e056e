"""Traces cut down to what a fault takes, and to no other: faults that come seldom, in a device with flags."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import PATIENCE
from tests.flagged import CAUSES, CLOCK, DOWN, UP, flag, work
from tests.interposer_bench import read, request, write
from userdev.errors import UserError
from userdev.fuzz.finds import Find
from vfio_user.cli import cli
from vfio_user.cli.minimize import _why_all_stays
from vfio_user.interposer.replay import What, explaining, load_script, reducing
from vfio_user.interposer.replay import minimize as minimize_impatiently
from vfio_user.interposer.replay import replay as replay_impatiently
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome
from vfio_user.interposer.replay.reducing import Minimized
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import is_interrupt, place_of
from vfio_user.interposer.replay.symptom import Symptom
from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import CURRENT, Capabilities, Command, encode_version

replay = partial(replay_impatiently, patience=PATIENCE)
minimize = partial(minimize_impatiently, patience=PATIENCE)
ROUNDS = 3
MESSAGES = 2 + 4 * ROUNDS  # VERSION and DEVICE_SET_IRQS before the rounds
FOR_NOTHING = 0.05
"""Seconds that an interrupt which does not come is waited for in each replay: one that comes comes before its reply,
which is waited for as long as it takes on a busy machine."""


STALE = flag("--stale 4")
"""The last read of the second round is of the value before: the flag seems to be set when it has been cleared."""


def accesses(script: Script) -> list[int]:
    """The offsets of registers that a script reaches, in order."""
    places = [place_of(script.dialect, step.message) for step in script.requests if isinstance(step, MessageRecord)]
    return [place.offset for place in places if place.region == 0]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work(tmp_path_factory.mktemp("flag"), flag(), ROUNDS)


def test_no_search_is_longer_than_was_allowed(trace: Path) -> None:
    found = minimize(trace, STALE, seconds=0.0)
    assert (found.ended, found.replays, found.confirmed) == ("time is up", 0, True)


def test_a_search_takes_no_longer_than_it_may_and_says_how_long_it_took(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first replay, by which the failure is found, to the last, by which it is seen once more."""
    played = 0
    told: list[float] = []

    def play(*arguments: Any, **options: Any) -> ReplayOutcome:
        nonlocal played
        played += 1
        return replay(*arguments, **options)

    monkeypatch.setattr(explaining, "replay", play)
    for module in (explaining, reducing):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 10.0 * played))
    for seconds, ended in ((40.0, "time is up"), (90.0, "time is up"), (1000.0, "minimal")):
        played = 0
        told.clear()
        found = minimize(trace, STALE, seconds=seconds, progress=lambda left, replays, spent: told.append(spent))
        assert (found.seconds, found.ended) == (10.0 * played, ended), seconds
        assert found.seconds <= seconds or not found.replays, seconds
        assert all(spent >= 30 for spent in told), "the replays before the search took time, too"


@pytest.mark.parametrize(("against", "check"), [(None, None), (flag(), None), (None, "./it-fails")])
def test_a_search_that_left_nothing_out_says_why(trace: Path, against: str | None, check: str | None) -> None:
    fewest = Minimized(load_script(trace), before=5, after=5, replays=3, ended="minimal")
    others = [replace(fewest, replays=0), replace(fewest, before=6), replace(fewest, ended="time is up")]
    whys = {_why_all_stays(found, against, check) for found in (fewest, *others)}
    assert len(whys) == 3, "what was needed to begin with is another reason; what was left out or not tried has none"
    assert "" in whys
    assert any((check or ("reference" if against else "in this way")) in why for why in whys)


def test_a_write_stays_without_which_there_is_no_fault(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the one that clears the flag it is rightly set, in any server, and reads the same."""
    monkeypatch.setattr("vfio_user.cli._progress._NOW_AND_THEN", 0.0)
    short = tmp_path / "short.trace"
    done = CliRunner().invoke(cli, ["minimize", str(trace), "--server-command", STALE, "-o", str(short), "--quiet"])
    assert done.exit_code == 0, done.output
    assert "shorter ones tried" in done.stdout
    assert done.stderr == "", "it is quiet"
    assert replay(short, flag()).same, "it is good on a good server"
    assert not replay(short, STALE).same
    assert sorted(accesses(load_script(short))) == [*[CAUSES] * 4, UP, DOWN]


def test_the_count_of_what_is_left_is_that_of_the_result(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that is asked again to see whether it passes is no part of either, and nothing is tried without it."""
    lefts: list[int] = []
    tried: list[tuple[Symptom, Script]] = []
    shows = explaining.Trial.shows

    def show(trial: explaining.Trial, symptom: Symptom, script: Script) -> bool:
        tried.append((symptom, script))
        return shows(trial, symptom, script)

    monkeypatch.setattr(explaining.Trial, "shows", show)
    found = minimize(trace, STALE, progress=lambda left, replays, seconds: lefts.append(left))
    assert lefts[-1] == found.after
    for symptom, script in tried[1:]:
        assert {*script.versions, symptom.record, symptom.again} <= {step.number for step in script.requests}
        assert script.versions


def test_a_reference_says_what_is_right_where_the_recording_is_of_the_faulty_server(tmp_path: Path) -> None:
    recorded = work(tmp_path / "faulty", STALE, ROUNDS)
    with pytest.raises(UserError, match="as recorded") as refused:
        minimize(recorded, STALE)
    assert "--against" in refused.value.hint
    short = tmp_path / "short.trace"
    command = ["minimize", str(recorded), "--server-command", STALE, "--against", flag(), "-o", str(short), "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["before"], said["after"], said["ended"], said["confirmed"]) == (MESSAGES, 7, "minimal", True)
    assert sorted(accesses(load_script(short))) == [*[CAUSES] * 4, UP, DOWN]
    assert replay(short, flag()).same
    wrong = replay(short, STALE).difference
    assert wrong is not None
    assert said["difference"]["record"] == wrong.record, "the numbers are those of the file"


def test_a_write_that_is_lost_is_not_mistaken_for_one_that_was_left_out(trace: Path) -> None:
    """The flag stays set, however often it is looked at: what moves it is learned from the recording."""
    found = minimize(trace, flag("--deaf 2"))
    assert replay(found.script, flag()).same
    assert sorted(accesses(found.script)) == [CAUSES, UP, UP, DOWN, DOWN]


@pytest.mark.long
@pytest.mark.parametrize("against", [None, flag()], ids=["recorded", "reference"])
def test_a_lost_interrupt_is_explained_by_those_before_it(trace: Path, tmp_path: Path, against: str | None) -> None:
    found = minimize(trace, flag("--lost 2"), against=against, beside=FOR_NOTHING)
    assert accesses(found.script) == [UP, UP]
    assert found.difference is not None
    assert found.difference.what is What.INTERRUPT_MISSING
    short = tmp_path / "short.trace"
    found.script.write(short)
    script = load_script(short)
    assert found.difference.record == [step.number for step in script.steps if is_interrupt(step)][1]
    assert replay(script, flag()).same
    assert replay(script, flag("--lost 2"), beside=FOR_NOTHING).difference == found.difference


@pytest.mark.long
def test_of_several_faults_the_one_that_was_asked_for_is_explained(trace: Path) -> None:
    faulty = flag("--stale 4 --lost 3")
    outcome = replay(trace, faulty, beside=FOR_NOTHING)
    assert [each.what for each in outcome.differences] == [What.REPLY, What.INTERRUPT_MISSING]
    found = minimize(trace, faulty, record=outcome.differences[1].record, beside=FOR_NOTHING)
    assert accesses(found.script) == [UP] * 3
    with pytest.raises(UserError, match="nothing differs at record 3"):
        minimize(trace, faulty, record=3, beside=FOR_NOTHING)


def test_an_interrupted_search_keeps_the_best_so_far(trace: Path) -> None:
    def interrupting(left: int, replays: int, seconds: float) -> None:
        if left < MESSAGES / 2:
            raise KeyboardInterrupt

    found = minimize(trace, flag("--lost 2"), beside=FOR_NOTHING, progress=interrupting)
    assert found.ended == "interrupted"
    assert found.confirmed
    assert found.after < MESSAGES
    assert not replay(found.script, flag("--lost 2"), beside=FOR_NOTHING).same


def test_what_goes_wrong_only_once_is_refused(trace: Path, tmp_path: Path) -> None:
    """Nothing can be learned by leaving out something of it."""
    once = tmp_path / "once.sh"
    once.write_text(f"#!/bin/sh\nmkdir {tmp_path}/seen 2>/dev/null || exec {flag().replace('{fd}', '$1')}\n")
    with once.open("a") as more:
        more.write(f"exec {STALE.replace('{fd}', '$1')}\n")
    once.chmod(0o755)
    with pytest.raises(UserError, match="not go wrong each time"):
        minimize(trace, f"{once} {{fd}}")


def test_what_never_reads_the_same_is_no_fault(tmp_path: Path) -> None:
    """The reference differs from itself in it; a recording alone cannot know that, so there it is said."""
    script = Script.of(
        [
            request(Command.VERSION, encode_version(CURRENT, 0, Capabilities())),
            read(0, CLOCK),
            write(0, UP, b"\x5a\0\0\0"),
            read(0, CAUSES),
            write(0, DOWN, b"\x5a\0\0\0"),
            read(0, CAUSES),
        ]
    )
    found = minimize(script, flag("--stale 2"), against=flag())
    assert accesses(found.script) == [UP, CAUSES, DOWN, CAUSES]
    recorded = replay(script, flag()).played
    with pytest.raises(UserError, match="not go wrong each time"):
        minimize(recorded, flag())
    with pytest.raises(UserError, match="as recorded"):
        minimize(recorded, flag(), ignore=[f"BAR0:{CLOCK}"])


def test_a_reference_that_fails_itself_is_refused(trace: Path) -> None:
    for reference in (f"{sys.executable} -c 'raise SystemExit(3)' {{fd}}", "./there-is-none {fd}"):
        with pytest.raises(UserError, match="the reference"):
            minimize(trace, STALE, against=reference)


def test_a_reference_that_closes_or_falls_silent_is_none(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did as far as it went does not stand for what is right; the hint says what became of it."""
    script = load_script(trace)
    asked = [step.number for step in script.requests]
    for what, record in ((What.CLOSED, asked[0]), (What.CLOSED, asked[-1]), (What.NO_REPLY, asked[2])):
        outcome = ReplayOutcome(script, differences=[Difference(What.REPLY, asked[0]), Difference(what, record)])
        monkeypatch.setattr(explaining, "replay", lambda *_, outcome=outcome, **__: outcome)
        with pytest.raises(UserError) as refused:
            minimize(trace, STALE, against=flag())
        assert refused.value.hint == outcome.text(), what


def test_a_find_is_told_to_be_reduced_already(tmp_path: Path) -> None:
    find = Find("vfio-user", "alive", "it lives", "alive: gone", "it has gone", ())
    done = CliRunner().invoke(cli, ["minimize", str(find.write(tmp_path)), "--server-command", STALE])
    assert done.exit_code != 0
    assert "replay" in getattr(done.exception, "hint", "") or "replay" in done.output
