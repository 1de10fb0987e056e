"""The entries of known issues, what they say of a version, and how a failure is recognised as one."""

from __future__ import annotations

import ast
import json
import re
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, cast

import pytest
from click.testing import CliRunner
from packaging.version import Version
from pydantic import BaseModel, ValidationError

from tests.cases import for_each, for_each_row
from userdev.errors import UserError, VerdictError
from userdev.process import Child
from userdev_servers.edu import Edu
from userdev_servers.rng import Rng
from vfio_user.cli import cli
from vfio_user.client import description
from vfio_user.harness import qemu_guards
from vfio_user.harness.family import VHOST_USER
from vfio_user.harness.known_issues import (
    Here,
    IssueStatus,
    KnownIssue,
    ObservedFailure,
    Symptom,
    expected_to_fail,
    known_issues,
    read_known_issues,
    recognise,
)
from vfio_user.nightly.servers import ServerIssue
from vfio_user.server import Server
from vhost_user.backend import Server as BackEndServer
from vhost_user.backend import Withheld

ROOT = Path(__file__).parent.parent
ISSUES = known_issues()


def issue(**changes: object) -> KnownIssue:
    entry = {
        "id": "it-ends",
        "what": "QEMU ends.",
        "versions": ">=10.1,<11.2",
        "tried": ["11.1.2", "11.1.3"],
        "status": "confirmed",
        "symptom": {"says": r"Assertion .* failed"},
        "evidence": "It was seen.",
        "tests": ["a.py:A.test_it"],
    }
    return KnownIssue.model_validate({**entry, **changes})


ENDS = {"ends": "SIGABRT", "says": r"Assertion .* failed"}
AVOIDED = {"status": "avoided", "symptom": ENDS, "guard": "It is not done."}
ENDED = ObservedFailure("QEMU was killed by SIGABRT", "SIGABRT", "x.c:1: Assertion `a' failed.\n")


def calls_of_known_issue(path: Path) -> dict[str, list[str]]:
    """CLASS.METHOD: the ids that each test of a file names."""
    named: dict[str, list[str]] = {}
    for test_class in [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]:
        for method in test_class.body:
            if isinstance(method, ast.FunctionDef) and method.name.startswith("test_"):
                calls = [node for node in ast.walk(method) if isinstance(node, ast.Call)]
                named[f"{test_class.name}.{method.name}"] = [
                    call.args[0].value
                    for call in calls
                    if isinstance(call.func, ast.Attribute)
                    and call.func.attr == "known_issue"
                    and isinstance(call.args[0], ast.Constant)
                    and isinstance(call.args[0].value, str)
                ]
    return named


@for_each(ISSUES.values(), ids=ISSUES)
def test_an_entry_names_a_test_that_there_is(entry: KnownIssue) -> None:
    """One that expects a failure is named by the test, too: nothing else lets it fail."""
    for test in entry.tests:
        path, _, name = test.partition(":")
        if name.startswith(":"):
            functions = [
                node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
            ]
            assert entry.guard
            assert name[1:] in [function.name for function in functions]
            continue
        named = calls_of_known_issue(ROOT / path)
        assert name in named
        assert (entry.id in named[name]) == (entry.status is IssueStatus.CONFIRMED)


def test_a_test_may_fail_only_where_the_entry_names_it() -> None:
    for path in sorted((ROOT / "avocado_tests").glob("test_*.py")):
        for name, ids in calls_of_known_issue(path).items():
            for id in ids:
                assert f"avocado_tests/{path.name}:{name}" in ISSUES[id].tests


@for_each_row(
    [
        (ENDED, True),
        (ObservedFailure("QEMU was killed by SIGSEGV", "SIGSEGV", ENDED.said), False),
        (ObservedFailure("QEMU was killed by SIGABRT", "SIGABRT", "nothing of the kind"), False),
        (ObservedFailure("register 0 is wrong", "", ENDED.said), False),
    ]
)
def test_a_failure_is_the_issue_only_with_all_of_its_symptom(failure: ObservedFailure, shown: bool) -> None:
    assert issue(**AVOIDED).shows(failure) is shown


def test_a_symptom_may_be_in_what_the_test_found() -> None:
    wrong = issue(symptom={"finds": "lost: .*BAR 0"})
    assert wrong.shows(ObservedFailure("lost: command is 0x0, BAR 0 is 0x0"))
    assert not wrong.shows(ObservedFailure("the guest does not answer"))


@for_each_row(
    [
        ({}, Version("11.1.3"), Here.HAPPENS, True),
        ({}, Version("11.1.2"), Here.HAPPENS, True),
        ({}, Version("11.1.4"), Here.EXPECTED, True),
        ({}, Version("10.1.0"), Here.EXPECTED, True),
        ({}, Version("11.2.0"), Here.OTHER, False),
        ({}, Version("10.0.9"), Here.OTHER, False),
        ({"status": "not-seen", "symptom": None}, Version("11.1.3"), Here.ABSENT, False),
        ({"status": "not-seen", "symptom": None}, Version("11.1.4"), Here.UNKNOWN, False),
        ({"status": "right", "symptom": None}, Version("11.1.3"), Here.HAPPENS, False),
        (AVOIDED, Version("11.1.3"), Here.HAPPENS, False),
        (AVOIDED, Version("11.2.0"), Here.OTHER, False),
        ({"status": "untried", "symptom": None, "tried": [], "tests": []}, Version("11.1.3"), Here.UNKNOWN, False),
    ]
)
def test_what_an_entry_says_of_a_version(
    changes: dict[str, object], version: Version, here: Here, expected: bool
) -> None:
    entry = issue(**changes)
    assert (entry.here(version), entry.expected(version)) == (here, expected)


@for_each(
    [
        {"symptom": None},
        {"status": "not-seen"},
        {"symptom": ENDS},
        {**AVOIDED, "guard": ""},
        {**AVOIDED, "symptom": None},
        {**AVOIDED, "symptom": {"says": "late"}},
        {"tests": []},
        {"tried": []},
        {"tried": ["new"]},
        {"versions": "10.1"},
        {"versions": ">=10.1 <11"},
        {"status": "maybe"},
        {"surplus": 1},
        {"component": "guest"},
    ]
)
def test_an_entry_that_is_not_complete_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        issue(**changes)


@for_each_row(
    [
        ("  versions: '>=10.1'\n  status: confirmed\n  tried: [10.1.0]\n  tests: [a]\n", 1, "a symptom is given with"),
        ("  versions: '>=10.1'\n  statos: confirmed\n", 5, "did you mean 'status'"),
        ("  versions: new\n  status: right\n", 4, "no condition"),
        ("  versions: '>=10.1'\n  versions: '>=10.2'\n", 5, "twice"),
    ]
)
def test_a_mistake_in_the_file_is_told_with_its_line(rest: str, line: int, about: str) -> None:
    with pytest.raises(UserError, match=about) as refused:
        read_known_issues(f"- id: mine\n  what: it ends\n  evidence: seen\n{rest}", "issues.yaml")
    assert str(refused.value).startswith(f"issues.yaml:{line}: ")


def test_an_id_that_two_entries_have_is_told_with_the_lines_of_both() -> None:
    entry = "- what: it ends\n  id: mine\n  evidence: seen\n  versions: '>=10.1'\n  status: right\n"
    entry += "  tried: [11.1.3]\n  tests: [a]\n"
    with pytest.raises(UserError, match=r"^issues.yaml:9: the id 'mine' .* issues.yaml:2 "):
        read_known_issues(entry * 2, "issues.yaml")


@for_each([{}, {"ends": "SIGNOTHING"}, {"says": "("}, {"says": "."}, {"finds": "late|"}])
def test_a_symptom_that_says_nothing_is_refused(symptom: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Symptom.model_validate(symptom)


def test_what_ended_qemu_in_another_test_is_only_hinted_at() -> None:
    """Where QEMU has ended, and its version is affected."""
    entries = [issue(**AVOIDED), issue(id="wrong", symptom={"finds": "zero"})]
    assert recognise(ENDED, Version("11.1.3"), entries) == entries[:1]
    assert recognise(ENDED, Version("12.0.0"), entries) == []
    assert recognise(ObservedFailure("register 0 is wrong"), Version("11.1.3"), entries) == []


def test_the_list_has_every_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no QEMU is needed to read it
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    done = CliRunner().invoke(cli, ["known-issues", "--json"])
    assert done.exit_code == 0, done.output
    listed = json.loads(done.output)["issues"]
    assert [entry["id"] for entry in listed] == list(ISSUES)
    assert all(ISSUES[entry["id"]].evidence == entry["evidence"] for entry in listed)


def test_the_manual_has_every_status() -> None:
    manual = (ROOT / "docs" / "known-issues.md").read_text()
    for status in IssueStatus:
        assert f"| {status} |" in manual


@for_each([KnownIssue, ServerIssue])
def test_the_manual_has_every_field(model: type[BaseModel]) -> None:
    manual = (ROOT / "docs" / "how-to" / "known-issue.md").read_text()
    tables = [set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) for part in manual.split("Of QEMU:")]
    assert set(model.model_fields) in tables
    assert all(f"`{field}`, " in manual or f"`{field}` " in manual for field in Symptom.model_fields)


def test_one_entry_is_shown_with_its_evidence_guard_and_test() -> None:
    done = CliRunner().invoke(cli, ["known-issues", "unplug-abort"])
    assert ISSUES["unplug-abort"].tests[0] in done.output
    assert "aborts" in done.output
    assert ISSUES["unplug-abort"].guard.splitlines()[0] in done.output


# what QEMU does not survive is kept from it, where it is one of those

AFFECTED, MENDED = Version("11.1.3"), Version("10.0.9")


def test_what_qemu_does_not_survive_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"does not survive.*MSI-X") as refused:
        qemu_guards.check_unplug(AFFECTED, "guest-dev0", msix=True)
    assert "11.1.3" in str(refused.value)
    qemu_guards.check_unplug(AFFECTED, "guest-dev0", msix=False)
    qemu_guards.check_unplug(MENDED, "guest-dev0", msix=True)


class Told(NamedTuple):
    """Of a description what is looked at."""

    not_survived: list[str]


def test_a_device_that_qemu_does_not_survive_is_refused_before_it_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a good device, and a word against it."""
    path = tmp_path / "edu"
    with Server(Edu(), str(path)):
        qemu_guards.check_server(AFFECTED, "edu", path)
        monkeypatch.setattr(description, "describe", lambda client: Told(["its BAR is odd"]))
        with pytest.raises(UserError, match=r"does not survive the device of 'edu': its BAR is odd"):
            qemu_guards.check_server(AFFECTED, "edu", path)
        qemu_guards.check_server(MENDED, "edu", path)


@for_each_row(
    [
        (AFFECTED, "vhost-user-rng-pci", {}, True),
        (AFFECTED, "vhost-user-test-device-pci", {}, True),
        (AFFECTED, "vhost-user-rng-pci", {"iommu_platform": "on"}, False),
        (AFFECTED, "vhost-user-blk-pci", {}, False),
        (Version("8.2"), "vhost-user-rng-pci", {}, False),
    ]
)
def test_a_back_end_for_which_qemu_was_not_told_to_translate_is_refused_where_it_matters(
    version: Version, driver: str, properties: dict[str, object], refused: bool, tmp_path: Path
) -> None:
    path = tmp_path / "rng"
    outcome = pytest.raises(UserError, match="survive") if refused else nullcontext()
    with closing(Rng()) as device, BackEndServer(device, str(path)), outcome:
        VHOST_USER.check_server(version, "rng", path, {"driver": driver, **properties})


def test_a_server_that_does_not_answer_is_left_to_qemu(tmp_path: Path) -> None:
    qemu_guards.check_server(AFFECTED, "nothing", tmp_path / "nothing")
    qemu_guards.check_back_end(AFFECTED, "nothing", tmp_path / "nothing")


def test_a_back_end_that_translates_nothing_needs_no_word(tmp_path: Path) -> None:
    withheld = Withheld.of(["ACCESS_PLATFORM"])
    with closing(Rng()) as device, BackEndServer(device, str(tmp_path / "rng"), withheld=withheld):
        qemu_guards.check_back_end(AFFECTED, "rng", tmp_path / "rng")


# what a test that names an issue makes of its failures

ABORTING = "until [ -e \"$GO\" ]; do sleep 0.01; done; echo 'x.c:1: Assertion a failed'; kill -ABRT $$"
WELL = "true"


def attempt(entry: KnownIssue, folder: Path, program: str, error: Exception | None) -> list[str]:
    """A block that names the issue, with a program in QEMU's place, and ends with this error. What was seen of it."""
    seen: list[str] = []
    qemu = Child("QEMU", ["sh", "-c", program], log=folder / "log", environment={"GO": str(folder / "go")})
    try:
        with expected_to_fail(entry, Version("11.1.3"), qemu, seen):
            (folder / "go").touch()
            qemu.wait(5)
            if error is not None:
                raise error
    finally:
        qemu.stop()
    return seen


@for_each([UserError("QEMU is gone"), VerdictError("no answer"), AssertionError("wrong")])
def test_the_symptom_is_seen(error: Exception, tmp_path: Path) -> None:
    assert attempt(issue(), tmp_path, ABORTING, error) == ["it-ends: QEMU ends."]


def test_another_failure_is_one(tmp_path: Path) -> None:
    with pytest.raises(VerdictError) as failure:
        attempt(issue(), tmp_path, WELL, VerdictError("the register is wrong"))
    assert "not the symptom" in failure.value.__notes__[0]


def test_what_was_printed_before_is_no_symptom(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x.c:1: Assertion failed")
    with pytest.raises(UserError):
        attempt(issue(), tmp_path, "kill -ABRT $$", UserError("QEMU is gone"))


def test_a_defect_of_the_test_itself_is_no_symptom(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        attempt(issue(), tmp_path, ABORTING, TypeError("a defect of the test"))


def test_what_no_longer_happens_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(VerdictError, match="XPASS"):
        attempt(issue(), tmp_path, WELL, None)


def test_a_version_that_is_not_affected_has_to_pass(tmp_path: Path) -> None:
    fixed = issue(versions="<11")
    assert attempt(fixed, tmp_path, WELL, None) == []
    with pytest.raises(UserError):
        attempt(fixed, tmp_path, ABORTING, UserError("QEMU is gone"))


def test_a_candidate_of_an_affected_release_is_affected() -> None:
    for version, affected in {"11.1.0rc2": True, "11.2.0rc1": False, "10.1.0rc1": False, "10.1.1rc1": True}.items():
        assert issue().affects(Version(version)) is affected, version


def goes_wrong(log: Path, printed: str) -> None:
    log.write_text(log.read_text() + printed)
    raise VerdictError("it went wrong")


def test_what_qemu_printed_before_a_failure_is_no_symptom_of_it(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    qemu = cast(Child, SimpleNamespace(wait=lambda seconds: None, log=log))
    for printed, is_seen in (("all is well\n", False), ("Assertion of now failed\n", True)):
        seen: list[str] = []
        log.write_text("Assertion of before failed\n")
        with (
            nullcontext() if is_seen else pytest.raises(VerdictError, match="it went wrong"),
            expected_to_fail(issue(), Version("11.1.2"), qemu, seen),
        ):
            goes_wrong(log, printed)
        assert bool(seen) is is_seen, printed
