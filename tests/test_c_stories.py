"""What a developer does about a seldom fault of a server in C: the trace names it, and is cut down to what makes it.

At night: the server is compiled, for which a compiler may have to be fetched.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.c_server import c_server
from tests.flagged import UP, work
from userdev.errors import VerdictError
from vfio_user.cli import cli
from vfio_user.interposer.replay import What, load_script, replay
from vfio_user.interposer.replay.steps import place_of
from vfio_user.interposer.trace import MessageRecord

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(300)]


def command(*faults: str) -> str:
    return f"{c_server('VECTORS=1', *faults)} {{socket}}"


def asked(*words: str) -> dict[str, Any]:
    """What a command says with --json."""
    done = CliRunner().invoke(cli, [*words, "--json"])
    if done.exception is not None and not isinstance(done.exception, VerdictError):
        raise done.exception
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_server_itself_is_right_by_every_check() -> None:
    for defined in ((), ("VECTORS=1",)):
        words = "conformance", "--server-command", f"{c_server(*defined)} {{socket}}", "--quiet", "--json", "-"
        told = CliRunner().invoke(cli, words)
        checks = json.loads(told.stdout)["checks"]
        assert [each["id"] for each in checks if each["outcome"] not in ("pass", "skip")] == [], defined


def odd(trace: Path, kind: str) -> list[str]:
    return [each["text"] for each in asked("trace", "stats", str(trace))["findings"] if each["kind"] == kind]


def test_a_register_that_is_stale_every_fiftieth_read(tmp_path: Path) -> None:
    good, stale = command(), command("STALE=50")
    right, wrong = work(tmp_path / "good", good, 30), work(tmp_path / "stale", stale, 30)
    assert odd(right, "seldom") == []
    [said] = odd(wrong, "seldom")
    assert "causes reads 0x0" in said
    assert "0x5a in 1 of 30" in said
    [first] = asked("trace", "diff", str(right), str(wrong))["differences"]
    assert "causes" in first["text"]
    short = tmp_path / "short.trace"
    found = asked("minimize", str(wrong), "--server-command", stale, "--against", good, "-o", str(short))
    assert found["after"] < found["before"]
    assert replay(short, good).same, "what is left is right of a server that is right"
    left = replay(short, stale).differences
    assert [each.place for each in left] == ["REGION_READ BAR0 0x24 causes"]


def test_an_interrupt_that_is_lost_once_in_two_hundred(tmp_path: Path) -> None:
    good, lossy = command(), command("LOST=200")
    right, wrong = work(tmp_path / "good", good, 201), work(tmp_path / "lossy", lossy, 201, may_lose=True)
    assert odd(right, "no interrupt") == []
    [said] = odd(wrong, "no interrupt")
    assert "up but 1 of" in said
    count, behind = (one["text"] for one in asked("trace", "diff", str(right), str(wrong))["differences"])
    assert count == "MSIX 0: 201 times in A, 200 times in B"
    assert behind.startswith("MSIX 0 behind REGION_WRITE up")
    short = tmp_path / "short.trace"
    searched = "--server-command", lossy, "--against", good, "--for", "2m", "-o", str(short)
    found = asked("minimize", str(wrong), *searched)
    assert found["difference"]["what"] == What.INTERRUPT_MISSING.name
    script = load_script(short)
    places = [place_of(script.dialect, step.message) for step in script.requests if isinstance(step, MessageRecord)]
    assert [place.offset for place in places].count(UP) == 200, "it takes as many as that, and no fewer"
    assert len(places) < 220, "and next to nothing else: what a loaded machine was too slow for may stay"
    assert replay(script, good).same
    (left,) = replay(script, lossy).differences
    assert (left.what, left.record) == (What.INTERRUPT_MISSING, found["difference"]["record"])
