"""What a soak's command line asks for is what happens: which events, how long, and where it is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from tests.soak_kit import Pretended
from tests.test_soak_command import results as results
from tests.test_soak_command import run, summary
from userdev.errors import UserError, VerdictError
from vfio_user.cli import cli
from vfio_user.cli import soak as soak_command
from vfio_user.soak import EVENTS, USUAL_WEIGHTS, Happening, Journal, Order
from vfio_user.soak.summary import summary_of


def test_hops_end_with_the_first_that_fails(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loses(lived: Sequence[Happening]) -> str:
        return "work" if lived[-1].number == 2 else ""

    with pytest.raises(VerdictError):
        run(monkeypatch, "--hops", "4", "--quiet", loses=loses)
    found = summary(results)
    assert (found["events"], len(found["failures"])) == (2, 1)


def test_some_events_alone_are_as_frequent_to_each_other_as_ever(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name, weight in USUAL_WEIGHTS.items() if weight not in (0.0, 1.0))
    run(monkeypatch, "--only-events", f"{name}, hop,kill", "--weight", "kill=7", "--until", "1", "--quiet")
    weights = summary(results)["soaked"]["weights"]
    assert weights == {
        each: 7.0 if each == "kill" else weight if each in (name, "hop") else 0.0
        for each, weight in USUAL_WEIGHTS.items()
    }


def test_a_soak_is_written_down_beside_its_results_where_the_next_one_finds_it(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--until", "2", "--quiet")
    kinds = [json.loads(line)["kind"] for line in (results / "soak.jsonl").read_text().splitlines()]
    assert kinds == ["begin", "event", "event", "end"]
    run(monkeypatch, "--until", "1", "--quiet", "--journal", str(results / "own" / "j.jsonl"))
    assert (results / "own" / "j.jsonl").exists()
    assert len((results / "soak.jsonl").read_text().splitlines()) == 4


def test_a_guest_that_does_not_come_up_leaves_what_there_is_to_look_at(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal leaves nothing; this is a verdict."""

    @contextmanager
    def begin(folder: Path, **_: object) -> Iterator[Any]:
        if folder:
            raise VerdictError("the guest did not boot")
        yield

    monkeypatch.setattr(soak_command, "performances", lambda *_, **__: begin)
    with pytest.raises(VerdictError, match="did not boot"):
        soak_command.command.main(["--until", "1", "--quiet"], standalone_mode=False)
    assert summary(results)["ended"] == "ended by an error"
    assert [*results.glob("soak-*/index.html")]


def test_a_server_that_is_not_there_is_told_before_anything_is_written(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next soak would be one of other devices, and begin anew."""
    with pytest.raises(UserError, match="cannot start"):
        run(monkeypatch, "--until", "1", "--quiet", "--device", "./nothere {socket}")
    assert not list(results.glob("*"))


def test_a_rate_is_of_all_that_happened_those_that_failed_too(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", {"devices": ["edu"]}, 7)
    for number in (1, 2, 3):
        journal.event({"number": number, "event": "hop", "target": "", "whole": 1.0, "at": 100.0 * number})
    journal.failure({"number": 4, "event": "kill", "target": "edu", "check": "work", "at": 400.0})
    found = summary_of(Journal(tmp_path / "j", {"devices": ["edu"]}, 7), {}, {}, "")
    assert found["events"] == 4
    assert found["seconds"] == pytest.approx(400, abs=20)
    assert found["a_minute"] == pytest.approx(4 / (found["seconds"] - 99) * 60, abs=0.02), "the first began after 99 s"


def test_the_page_of_a_soak_is_not_written_over_by_one_of_what_has_happened(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "--only", "1", "--seed", "1", "--quiet")
    [page] = results.glob("soak-*/index.html")
    before = page.read_bytes()
    with pytest.raises(UserError, match="which has its page"):
        cli.main(["show", str(page.parent), "--no-open"], standalone_mode=False)
    cli.main(["show", str(page.parent), "--no-open", "-o", str(results / "happened.html")], standalone_mode=False)
    assert (page.read_bytes(), (results / "happened.html").exists()) == (before, True)


# -- what would be ----------------------------------------------------------------------------------------------------


def planned(*words: str) -> str:
    done = CliRunner().invoke(soak_command.command, ["--dry-run", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_plan_is_what_happens_where_nothing_is_left_out(
    results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Seed, devices, weights and the first events, of which a soak with that seed has the same; nothing is written."""
    words = ("--device", "edu", "--device", "vhost-user-blk", "--hosts", "local", "--seed", "7", "--weight", "hop=0")
    told = planned(*words)
    assert not [*results.iterdir()]
    assert "seed 7\n" in told
    assert "device edu: edu, with workload dma" in told
    assert "until: 100, first-failure" in told
    assert "\nhop" not in told
    assert re.search(r"^kill +4 +\d+\.\d% +edu, vhost-user-blk$", told, re.MULTILINE)
    assert "left out: cut: " in told
    assert not re.search(r"^cut ", told, re.MULTILINE), "there is no cable between these hosts"
    possible = {name: [""] if event.of_guest else ["edu", "vhost-user-blk"] for name, event in EVENTS.items()}
    del possible["cut"]
    order = Order(7, {**USUAL_WEIGHTS, "hop": 0.0}, possible)
    drawn = [str(order.happening(number)) for number in range(1, 11)]
    assert "\n".join(drawn) in told
    assert drawn[8] in planned(*words, "--only", "9,3").splitlines()
    assert "--seed" not in planned("--device", "edu"), "one is drawn"


def test_a_plan_goes_on_where_an_interrupted_soak_would(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupts(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 3:
            raise KeyboardInterrupt
        return ""

    with pytest.raises(click.exceptions.Abort):
        run(monkeypatch, "--device", "edu", loses=interrupts)
    before = (results / "soak.jsonl").read_bytes()
    seed = json.loads(before.splitlines()[0])["seed"]
    told = planned("--device", "edu")
    assert f"seed {seed}, going on after 2 events" in told
    assert re.search(r"\n\n3 ", told)
    assert "one of other devices" in planned("--device", "edu --msix 0")
    assert (results / "soak.jsonl").read_bytes() == before


def test_what_a_server_raises_beside_events_that_went_right_is_told_and_fails_nothing(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the last lines, on the page and in the summary: once, in whatever guest, and in whichever run."""
    said = "AttributeError: writeable (brk.py:12, in fill)"
    pretended = Pretended()

    def raises(lived: Sequence[Happening]) -> str:
        pretended.guests[-1].raises = [said]
        return ""

    pretended.loses = raises
    monkeypatch.setattr(soak_command, "performances", lambda *_, **__: pretended)
    for until in ("2", "4"):
        soak_command.command.main(["--until", until, "--quiet"], standalone_mode=False)
        assert capsys.readouterr().out.count(said) == 1, until
    for path in results.glob("soak-*/summary.json"):
        found = json.loads(path.read_text())
        assert (found["ok"], found["verdict"], found["notes"]) == (True, "nothing was lost", [said])
        assert path.with_name("index.html").read_text().count(said) == 1
    soak_command.command.main(["--only", "3", "--seed", "1", "--quiet"], standalone_mode=False)
    assert said in capsys.readouterr().out, "nor is it lost of a few events alone"


def test_how_a_soak_stands_to_the_last_one_of_its_journal_is_told_as_it_is(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan begins nothing, and one that is refused neither; the unfinished one is there to be gone on with."""

    def interrupts(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 4:
            raise KeyboardInterrupt
        return ""

    run(monkeypatch, "--device", "edu", "--until", "2")
    assert "ended with 2 events" in planned("--device", "edu", "--until", "2")
    assert "going on after 2 events" in planned("--device", "edu", "--until", "3")
    capsys.readouterr()
    with pytest.raises(click.exceptions.Abort):
        run(monkeypatch, "--device", "edu", "--until", "5", loses=interrupts)
    assert "going on after 2 events" in capsys.readouterr().err
    before = (results / "soak.jsonl").read_bytes()
    told = planned("--device", "nvme")
    assert "would begin anew" in told
    assert "--journal FILE" in told
    monkeypatch.undo()
    monkeypatch.setenv("VFIO_USER_RESULTS", str(results))
    words = ["--device", "nvme", "--until", "1", "--hosts", "local,ssh://nobody@127.0.0.1:1"]
    with pytest.raises(UserError):
        soak_command.command.main(words, standalone_mode=False)
    assert "nothing was begun" in capsys.readouterr().err
    assert (results / "soak.jsonl").read_bytes() == before


def test_what_a_soak_refuses_its_plan_refuses_before_a_seed_is_told(results: Path) -> None:
    """Hosts too, of which a soak had told its seed first."""
    for words, about in {
        "--hosts mars": "there are: auto",
        "--hosts naemspaces": "did you mean 'namespaces'?",
        "--hosts a,b,c": "'a,b,c'",
        "--hosts local,http://b": "http://b",
        "--device edo": "did you mean 'edu'",
        "--only-events hopp": "did you mean 'hop'",
        "--device vhost-user:userdev_servers.blk:Bulk": "its devices are: Blk",
        "--device userdev_servers.edu:Edo": "its devices are: Edu",
    }.items():
        for dry in ([], ["--dry-run"]):
            out = CliRunner().invoke(soak_command.command, [*words.split(), *dry])
            assert isinstance(out.exception, UserError), words
            assert about in f"{out.exception} {out.exception.hint}", words
            assert "seed" not in out.output, words
    for words in (
        "--hosts local --only-events cut",
        "--hosts nowhere,sonowhere",
        "--hosts local,ssh://nobody@127.0.0.1:1",
    ):
        with pytest.raises(UserError):
            planned(*words.split())
    assert not [*results.iterdir()]
    for beside in ("--json", "--quiet", "--bundle"):
        done = CliRunner().invoke(soak_command.command, ["--dry-run", beside])
        assert done.exit_code == 2, beside
