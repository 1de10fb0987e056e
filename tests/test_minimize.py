"""Failing sessions, shortened to what it takes."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from click.testing import CliRunner

from tests.conftest import PATIENCE
from tests.faulty_edu import MAGIC
from tests.interposed import EDU
from tests.recorded_edu import COMPUTE, LIVENESS, RAISE, a_bit_of_everything, record, server
from userdev.errors import UserError
from vfio_user.cli import cli
from vfio_user.client import Client, Disconnected, EventFd, GuestMemory
from vfio_user.interposer.replay import load_script
from vfio_user.interposer.replay import minimize as minimize_impatiently
from vfio_user.interposer.replay import replay as replay_impatiently
from vfio_user.interposer.replay.explaining import Trial
from vfio_user.interposer.replay.outcome import What
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap

# A slow server is no finding: tests that wait for what never comes say for how long.
replay = partial(replay_impatiently, patience=PATIENCE)
minimize = partial(minimize_impatiently, patience=PATIENCE)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("trace"), a_bit_of_everything)


def noise_around(*, raise_cause: int, then: Callable[[Client], None]) -> Callable[..., None]:
    """A session that does much that does not matter, and something that does."""

    def act(client: Client, ram: GuestMemory, interrupt: EventFd) -> None:
        chance = random.Random(3)
        for step in range(8):
            client.store(0, LIVENESS, 4, chance.getrandbits(32))
            client.load(0, LIVENESS, 4)
            if step == 3:
                client.store(0, RAISE, 4, raise_cause)
            if step == 6:
                then(client)

    return act


def test_registers_are_called_as_somebody_says_or_the_trace_does(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Trial] = []

    def explain(trial: Trial, *_: object) -> None:
        tried.append(trial)
        raise UserError("so far")

    monkeypatch.setattr(sys.modules[minimize_impatiently.__module__], "Explanation", explain)
    given = RegisterMap([NamedRegister(0, COMPUTE, "factorial", 4)])
    for registers in (given, None):
        with pytest.raises(UserError, match="so far"):
            minimize(
                trace, EDU, registers=registers, ignore=["factorial" if registers else "interrupt_line"], beside=0.25
            )
    assert [trial.registers.name(0, COMPUTE) for trial in tried] == ["factorial", ""]
    assert [trial.ignored.registers for trial in tried] == [("factorial",), ("interrupt_line",)]
    assert [(trial.patience, trial.beside) for trial in tried] == [(PATIENCE, 0.25)] * 2
    with pytest.raises(UserError, match="so far"):
        minimize(trace, EDU)
    assert (tried[-1].patience, tried[-1].beside) == (PATIENCE, PATIENCE)


def test_a_wrong_reply_is_shortened_to_what_it_takes(tmp_path: Path) -> None:
    def then(client: Client) -> None:
        client.store(0, COMPUTE, 4, 5)
        client.load(0, COMPUTE, 4)

    path = record(tmp_path, noise_around(raise_cause=3, then=then))
    found = minimize(path, server("WrongAnswer"))
    assert found.after == 4  # VERSION, raise, compute, read
    short = tmp_path / "short.trace"
    found.script.write(short)
    outcome = replay(short, server("WrongAnswer"))
    assert outcome.difference is not None
    assert outcome.difference.what is What.REPLY
    assert replay(short, EDU).same


def test_a_crash_is_shortened_to_what_it_takes(tmp_path: Path) -> None:
    def act(client: Client, ram: GuestMemory, interrupt: EventFd) -> None:
        with pytest.raises(Disconnected):
            noise_around(raise_cause=MAGIC, then=lambda _: None)(client, ram, interrupt)

    path = record(tmp_path, act, server("Crashing"))
    found = minimize(path, server("Crashing"))
    assert found.after == 2
    assert found.difference is not None
    assert found.difference.what is What.CLOSED


def test_a_check_of_ones_own_decides(tmp_path: Path) -> None:
    path = record(tmp_path, noise_around(raise_cause=0x77, then=lambda _: None))
    output = tmp_path / "out"
    check = (
        f'{sys.executable} -c \'import sys; sys.exit(open(sys.argv[1], "rb").read().count(b"\\x77") > 0)\' {{trace}}'
    )
    done = CliRunner().invoke(
        cli, ["minimize", str(path), "--server-command", EDU, "--check", check, "-o", str(output)]
    )
    assert done.exit_code == 0, done.output
    assert len(load_script(output).requests) <= 3


def test_a_check_is_asked_once_more_in_the_end_whether_what_is_left_fails(trace: Path, tmp_path: Path) -> None:
    """One that fails now and then says of anything that it does."""
    seen = tmp_path / "seen"
    seen.mkdir()
    once = f"""sh -c 'it={seen}/$(md5sum <"$0" | cut -c1-32); test -e $it && exit 0; touch $it; exit 1' {{trace}}"""
    for check, confirmed in ((once, False), ("false {trace}", True)):
        words = ["minimize", str(trace), "--check", check, "-o", str(tmp_path / "out")]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0, done.output
        assert ("once more" in done.stdout) is not confirmed, check


def test_a_check_for_whose_last_answer_there_is_no_time_is_not_said_to_have_failed_it(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Script] = []

    def until_it_is_once_more(script: Script) -> CompletedProcess[str] | None:
        asked.append(script)
        return CompletedProcess("", 1) if asked.count(script) == 1 else None

    monkeypatch.setattr(
        sys.modules["vfio_user.interposer.replay.minimize"], "_checked_by", lambda *_: until_it_is_once_more
    )
    found = minimize(trace, None, check="false {trace}")
    assert asked[-1] is found.script
    assert (found.ended, found.confirmed) == ("time is up", True)


def test_a_check_that_could_not_be_tried_is_no_verdict_and_what_it_printed_is_told(trace: Path, tmp_path: Path) -> None:
    for status in (2, 126, 127):
        with pytest.raises(UserError, match=str(status)) as refused:
            minimize(trace, None, check=f"sh -c 'echo lost >&2; exit {status}' {{trace}}")
        assert "lost" in refused.value.evidence, status
    for program in ("exit 1", "exit 3", "kill -SEGV $$"):
        assert minimize(trace, None, check=f"sh -c '{program}'").is_empty, program
    tried = tmp_path / "tried"
    once = f"sh -c 'test -e {tried} && exit 2; touch {tried}; exit 1'"
    found = minimize(trace, None, check=once)
    assert found.after == found.before, "what could not be tried is not taken to fail"


def test_a_check_that_starts_its_own_server_needs_no_other(trace: Path, tmp_path: Path) -> None:
    words = ["minimize", str(trace), "-o", str(tmp_path / "out"), "--check"]
    done = CliRunner().invoke(cli, [*words, "false {trace}", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["empty"]
    done = CliRunner().invoke(cli, [*words, "false {trace}"])
    assert "note: the beginning of the session alone" in done.stdout, "the check may fail for another reason"
    assert CliRunner().invoke(cli, [*words, "false {server}"]).exit_code == 2
    with pytest.raises(UserError, match="no server"):
        minimize(trace, None)


def test_a_trace_that_does_not_fail_is_refused(trace: Path) -> None:
    with pytest.raises(UserError):
        minimize(trace, EDU)
