"""What commands tell: results on stdout, all else on stderr, in each way they can be asked; and their status."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import click
import pytest
from click.testing import CliRunner, Result
from packaging.version import Version

from tests.cases import for_each_row
from tests.traced import REGISTERS, UP, Written
from tests.vhost.between import Between, R, V
from userdev.errors import UserError, VerdictError
from userdev.fuzz import Find, Step, Summary
from vfio_user.cli import _fuzzing, cli, docs, doctor, known_issues, vhost_user_cli
from vfio_user.cli._fuzzing import Asked
from vfio_user.harness.doctor import Finding, Readiness
from vfio_user.harness.known_issues import KnownIssue
from vfio_user.harness.known_issues import known_issues as all_issues
from vfio_user.harness.remedies import Treated
from vhost_user.wire.payloads import VringState


def say(*words: str, program: click.Command = cli) -> Result:
    done = CliRunner().invoke(program, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit | VerdictError | UserError):
        raise done.exception
    return done


# -- traces that were cut off


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A trace of two whole exchanges and a record that is not."""
    with Written(tmp_path / "whole", REGISTERS) as trace:
        trace.write(UP, 1)
        trace.read(UP, 1)
        trace.read(UP, 2)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-3])
    return tmp_path / "cut"


def test_that_a_trace_was_cut_off_is_told_beside_what_is_made_of_it(cut: Path, tmp_path: Path) -> None:
    """On stderr, with the file's name: what is on stdout is for another program, and complete as far as it goes."""
    for words in (
        f"show {cut}",
        f"show {cut} --json",
        f"export {cut} --format json",
        f"export {cut} --format perfetto",
        f"export {cut} --format pcapng",
        f"stats {cut}",
        f"stats {cut} --json",
        f"diff {cut} {tmp_path / 'whole'}",
        f"diff {tmp_path / 'whole'} {cut} --json",
    ):
        output = ["-o", str(tmp_path / "out")] if words.startswith("export") else []
        done = say("trace", *words.split(), *output)
        if words.startswith("stats") and words.endswith("json"):
            assert "cut off" in json.loads(done.stdout)["truncated"], words
            continue
        assert f"{cut}: cut off" in done.stderr, words
        assert "everything before it" in done.stderr, words
        assert "everything before it" not in done.stdout, words
        assert ("VerdictError" in repr(done.exception)) is words.startswith("diff"), words
        if "json" in words and not output:
            assert [json.loads(line) for line in done.stdout.splitlines()], words


def test_what_is_asked_for_of_a_trace_is_shown_of_either_protocol(tmp_path: Path) -> None:
    """By each option alone, and by those of time together: from, up to, and between."""
    with Written(tmp_path / "v", REGISTERS) as trace:
        for value in range(4):
            trace.write(UP, value)
            trace.read(UP, value)
    with Between(tmp_path / "u") as between:
        between.negotiate(V.VERSION_1 | V.PROTOCOL_FEATURES | V(1 << 6))
        for ring in (0, 1):
            between.tell(R.SET_VRING_NUM, VringState(ring, 256))
    for name, command in (("v", "REGION_WRITE"), ("u", "SET_VRING_NUM")):

        def shown(*words: str, name: str = name) -> list[dict[str, Any]]:
            lines = say("trace", "show", str(tmp_path / name), "--json", *words).stdout.splitlines()
            return [each for each in map(json.loads, lines) if "command" in each]

        whole = shown()
        times = sorted({each["seconds"] for each in whole})
        first, last = times[1], times[-2]
        between_them = ["--since", str(first), "--until", str(last)]
        for words, wanted in (
            (between_them[:2], {each["record"] for each in whole if each["seconds"] >= first}),
            (between_them[2:], {each["record"] for each in whole if each["seconds"] <= last}),
            (between_them, {each["record"] for each in whole if first <= each["seconds"] <= last}),
            (["--command", command], {each["record"] for each in whole if each.get("command") == command}),
            (["--direction", "to-client"], {each["record"] for each in whole if each.get("direction") == "to-client"}),
        ):
            found = {each["record"] for each in shown(*words)}
            assert found == wanted, (name, words)
            assert 0 < len(found) < len(whole), (name, words)


# -- campaigns of fuzzing

FOUND = Find(
    "vfio-user", "crash", "A server goes on.", "crash: SIGSEGV", "it ended", (Step("ping", ()),), reproduced=True
)
ASKED = Asked("s", None, None, 1.0, None, None, Path("finds"), False, 1.0, False, None, False, "must", ())


@for_each_row(product((False, True), (False, True), (False, True), (False, True)))
def test_a_campaign_tells_what_came_of_it(
    as_json: bool, quiet: bool, interrupted: bool, is_found: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 1 for finds, also of one that was interrupted, and 130 for one that has none; stdout is a program's."""
    summary = Summary(3, 20, 2.0, interrupted, {FOUND.cause: FOUND} if is_found else {})
    status: object = 0
    try:
        _fuzzing._report(replace(ASKED, as_json=as_json, quiet=quiet), 77, summary)
    except VerdictError as verdict:
        status, evidence = 1, verdict.evidence
        assert f"finds/{FOUND.name}.json: " in evidence
    except SystemExit as ended:
        status = ended.code
    assert status == (1 if is_found else 130 if interrupted else 0)
    stdout, stderr = capsys.readouterr()
    if as_json:
        document = json.loads(stdout)
        assert (document["seed"], document["interrupted"], len(document["finds"])) == (77, interrupted, is_found)
    else:
        assert ("3 sequences, 20 steps" in stdout) is not quiet
    told = stderr if as_json or quiet else stdout
    assert ("interrupted" in told) is interrupted
    assert ("seed 77" in told) is (not quiet or interrupted), "how it is done again"


def test_what_the_code_of_a_device_raised_is_told_with_its_find_and_beside_what_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = replace(FOUND, said="ValueError: boo (mine.py:8, in fill)")
    for as_json, quiet in product((False, True), (False, True)):
        asked = replace(ASKED, as_json=as_json, quiet=quiet)
        with pytest.raises(VerdictError) as verdict:
            _fuzzing._report(asked, 77, Summary(finds={find.cause: find}))
        assert f"\n    the server said: {find.said}" in verdict.value.evidence
        stdout, stderr = capsys.readouterr()
        assert "nothing was found" not in stdout + stderr
        if as_json:
            assert json.loads(stdout)["finds"][0]["said"] == find.said
        _fuzzing._report(asked, 77, Summary(raised="TypeError: moo (mine.py:9, in tell)"))
        stdout, stderr = capsys.readouterr()
        assert "first so: TypeError: moo (mine.py:9, in tell)\n" in (stderr if as_json or quiet else stdout), asked
        if as_json:
            assert json.loads(stdout)["raised"] == "TypeError: moo (mine.py:9, in tell)"


class Probed:
    """A server that has no steps to be drawn, and may be wrong already or interrupted."""

    def __init__(self, interrupted: bool = False) -> None:
        self.interrupted = interrupted

    def prepare(self) -> list[Any]:
        if self.interrupted:
            raise KeyboardInterrupt
        return []

    def kinds(self) -> list[Any]:
        return []


def test_how_long_a_server_was_looked_at_first_is_told_where_that_took_long(capsys: pytest.CaptureFixture[str]) -> None:
    """One that reads and never answers took 20 s of "0 steps in 0 s"."""
    for looked, told in ((0.2, False), (20.2, True)):
        _fuzzing._report(ASKED, 77, Summary(), looked)
        assert ("after 20 s in which the server was looked at" in capsys.readouterr().out) is told
    _fuzzing._report(replace(ASKED, as_json=True), 77, Summary(), 20.2)
    assert json.loads(capsys.readouterr().out)["looked"] == 20.2


def test_a_seed_is_the_one_that_was_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """0 is one too; whoever said to be quiet is told it only where the campaign is interrupted."""
    for seed in (0, 1, 2**32 + 1):
        _fuzzing._campaign(replace(ASKED, seed=seed, output=tmp_path), cast(Any, Probed()), lambda: ("", ""))
        assert f"seed {seed}\n" in capsys.readouterr().err, seed
    for quiet in (False, True):
        asked = replace(ASKED, seed=5, quiet=quiet, output=tmp_path)
        with pytest.raises(KeyboardInterrupt) as interrupted:
            _fuzzing._campaign(asked, cast(Any, Probed(True)), lambda: ("", ""))
        assert getattr(interrupted.value, "__notes__", []) == ["seed 5"] * quiet
        assert ("seed 5" in capsys.readouterr().err) is not quiet


def test_a_campaign_is_bound_as_was_said_and_gives_back_what_it_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever ends it; and what it is compared with."""
    bounds: list[Any] = []
    ends: list[BaseException | None] = [None, VerdictError("1 find"), KeyboardInterrupt(), UserError("it is gone")]

    @contextmanager
    def server(*_: object, **__: object) -> Iterator[Any]:
        left.append("server")
        yield SimpleNamespace(try_out=lambda: "")
        left.remove("server")

    class Run:
        def __init__(self, *_: object, **given: Any) -> None:
            bounds.append((given["bounds"].seconds, given["bounds"].finds))

        def run(self, wrong: object) -> Summary:
            if end is not None:
                raise end
            return Summary()

    class Subject(Probed):
        def close(self) -> None:
            left.remove("subject")

    def made(target: object, reference: object) -> Any:
        left.append("subject")
        return Subject()

    monkeypatch.setattr(_fuzzing, "server", server)
    monkeypatch.setattr(_fuzzing, "Campaign", Run)
    for end, (finds, most) in product(ends, ((None, float("inf")), (1, 1), (7, 7))):
        left: list[str] = []
        with nullcontext() if end is None else pytest.raises(type(end)):
            _fuzzing.carry_out(replace(ASKED, finds=finds, seconds=33.0, output=tmp_path), cast(Any, None), (), made)
        assert bounds.pop() == (33.0, most), end
        assert "subject" not in left, end


# -- what a machine lacks

FINDINGS = {
    "well": Treated(Finding("well", Readiness.GOOD, "it is there")),
    "done": Treated(Finding("done", Readiness.GOOD, "it is there now"), done="fetched it", seconds=1.5),
    "failed": Treated(Finding("failed", Readiness.LATER, "missing", "wait"), failure="no network"),
    "left": Treated(Finding("left", Readiness.ABSENT, "missing", "install it")),
    "hopeless": Treated(Finding("hopeless", Readiness.ABSENT, "missing")),
}


@for_each_row(product((False, True), (False, True), (False, True)))
def test_a_doctor_tells_of_each_finding_and_what_was_done(
    fix: bool, quiet: bool, bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst = Treated(Finding("worst", Readiness.BAD, "broken", "mend it"))
    treated = [*FINDINGS.values(), *([worst] if bad else [])]

    def treat(progress: Callable[[str], None]) -> Any:
        progress("on the way")
        return iter(treated)

    monkeypatch.setattr(doctor, "treat", treat)
    monkeypatch.setattr(doctor, "examine_machine", lambda: [each.finding for each in treated])
    words = [*["--fix"] * fix, *["--quiet"] * quiet]
    done = say("doctor", *words)
    told = done.stdout.partition("\nleft for you:")[0]
    assert done.exit_code == (2 if bad else 0)
    assert ("on the way" in done.stderr) is (fix and not quiet)
    assert "on the way" not in done.stdout
    for name in ("left", "hopeless", "failed", *(["worst"] if bad else [])):
        assert f" {name} " in told, name
    assert (" well " in told) is not quiet
    assert (" done " in told) is (fix or not quiet), "what was done is told in any case"
    assert ("fetched it, in 1.5 s" in told) is fix
    assert ("no network" in told) is fix
    left = [
        line.split(":")[0].strip() for line in done.stdout.partition("left for you:\n")[2].splitlines() if ":" in line
    ]
    assert left == (["failed", "left", *(["worst"] if bad else [])] if fix else [])
    asked = say("doctor", "--json", *words)
    assert asked.exit_code == done.exit_code
    assert not asked.stderr
    document = json.loads(asked.stdout)
    assert document["ok"] is not bad
    assert [each["name"] for each in document["findings"]] == [each.finding.name for each in treated]
    assert {each.get("done", None) for each in document["findings"]} == ({"", "fetched it"} if fix else {None})


# -- known issues


def issue(**changes: object) -> KnownIssue:
    entry = {
        "id": "it-ends",
        "what": "QEMU ends.",
        "versions": ">=10.1",
        "tried": ["11.1.3"],
        "status": "confirmed",
        "symptom": {"says": "Assertion"},
        "evidence": "It was seen.\nAnd once more.\n",
        "tests": ["a.py:A.test_it", "a.py:A.test_that"],
    }
    return KnownIssue.model_validate({**entry, **changes})


ISSUES: Mapping[str, KnownIssue] = {
    "it-ends": issue(),
    "silent": issue(id="silent", symptom=None, status="right", guard="It is kept.", tests=["t.py::test_it"]),
    "newer": issue(id="newer", versions=">=12"),
    "of-a-guest": issue(id="of-a-guest", component="kernel", versions=">=10"),
}


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str | None) -> Any:
        if name == "none":
            raise UserError("there is no QEMU none")
        return SimpleNamespace(version=Version("11.1.3"))

    monkeypatch.setattr(known_issues, "known_issues", lambda: ISSUES)
    monkeypatch.setattr(known_issues, "find_qemu", find)


@pytest.mark.usefixtures("entries")
def test_of_known_issues_each_is_told_with_what_it_means_here() -> None:
    """What happens here and shows is counted; of a guest's kernel the version of QEMU says nothing."""
    document = json.loads(say("known-issues", "--json").stdout)
    here = {each["id"]: each["here"] for each in document["issues"]}
    assert here == {"it-ends": "happens", "silent": "happens", "newer": "other version", "of-a-guest": "unknown"}
    assert document["qemu"] == "11.1.3"
    lines = say("known-issues").stdout.splitlines()
    assert all(line.startswith(here[name]) and f" {name} " in line for name, line in zip(here, lines, strict=False))
    assert "QEMU 11.1.3: 1 of 4 happen" in lines[-1]


@pytest.mark.usefixtures("entries")
def test_of_one_issue_every_line_is_told() -> None:
    for entry in ISSUES.values():
        told = say("known-issues", entry.id).stdout
        for line in (*entry.evidence.splitlines(), *entry.tests, entry.guard, entry.what, entry.status, *entry.tried):
            assert line in told, (entry.id, line)
        assert not any(other in told for other in ISSUES if other != entry.id), entry.id


@pytest.mark.usefixtures("entries")
def test_a_name_of_no_issue_or_qemu_is_refused_beside_what_there_is() -> None:
    for words in ("what", "it-ends what", "what it-ends --json", "--qemu none", "--qemu none --json it-ends"):
        done = say("known-issues", *words.split())
        assert isinstance(done.exception, UserError), words
        assert ("what" if "what" in words else "none") in str(done.exception), words
        assert not done.stdout, words


def test_without_any_qemu_the_list_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str | None) -> Any:
        raise UserError("there is none")

    monkeypatch.setattr(known_issues, "find_qemu", find)
    document = json.loads(say("known-issues", "--json").stdout)
    assert document["qemu"] is None
    assert {each["here"] for each in document["issues"]} == {"unknown"}
    assert "no QEMU was found: 0 of " in say("known-issues").stdout
    assert len(document["issues"]) == len(all_issues())


# -- documentation


def test_a_page_is_opened_or_told_and_one_in_a_folder_is_known_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    for page in ("index", "devices", "reference/environment"):
        path = tmp_path / "docs" / f"{page}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for has_browser in (True, False):

        def browse(uri: str, has_browser: bool = has_browser) -> bool:
            opened.append(uri)
            return has_browser

        monkeypatch.setattr(webbrowser, "open", browse)
        for page in ("devices", "docs/devices", "reference/environment"):
            for words in ([], ["--path"]):
                opened.clear()
                told = say("docs", page, *words).stdout.strip()
                file = str(tmp_path / "docs" / f"{page.removeprefix('docs/')}.html")
                assert opened == ([] if words else [f"file://{file}"]), (page, words)
                assert told == (file if words or not has_browser else ""), (page, words)
    for wrong, near in (("device", "devices"), ("reference/environmen", "reference/environment")):
        refused = say("docs", wrong).exception
        assert isinstance(refused, UserError), wrong
        assert near in refused.hint, wrong


def test_both_programs_say_where_their_own_dissector_is() -> None:
    found = [say("trace", "dissector", program=each).stdout.strip() for each in (cli, vhost_user_cli)]
    assert len({*found}) == 2
    assert all(Path(each).is_file() for each in found)
