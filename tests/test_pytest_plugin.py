"""The pytest plugin, as a stranger's tests use it."""

from __future__ import annotations

import errno
import itertools
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest

from vfio_user.bundle import open_bundle
from vfio_user.pytest_plugin import folder_name

pytest_plugins = ["pytester"]

HERE = (
    *("-p", "no:cacheprovider", "--disable-plugin-autoload", "-p", "vfio_user.pytest_plugin"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
"""Options of a pytest in this process, where plugins are named too, and are imported already; one in a process of its
own finds it by itself."""

GUIDE = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()


def blocks() -> dict[str, str]:
    """The files that docs/testing.md shows, by name."""
    return dict(re.findall(r"```python\n# (\S+)\.py\n(.*?)```", GUIDE, re.DOTALL))


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A stranger's folder: a device of theirs, a `servers` and a `tests` that are none of ours."""
    pytester.makepyfile(adder=blocks()["adder"])
    for name in ("servers", "tests"):
        pytester.mkpydir(name)
    return pytester


def results(pytester: pytest.Pytester, *arguments: str) -> dict[str, int]:
    """What a run comes to, in this process, which has imported what it needs."""
    short = f"--basetemp={pytester.path / 't'}"  # a socket's path is
    root = f"--rootdir={pytester.path}"  # what tests are called hangs on it
    return pytester.runpytest_inprocess(*HERE, short, root, *arguments).parseoutcomes()


def told_of_each(pytester: pytest.Pytester, tests: Mapping[str, str]) -> dict[str, str]:
    """What one run of all says of each test, which is in a file of its own, called `test_it`, and does not pass."""
    names = {f"test_{number}": name for number, name in enumerate(tests)}
    pytester.makepyfile(**{called: tests[name].replace("test_it", called) for called, name in names.items()})
    said = pytester.runpytest_inprocess(*HERE, "-q", "-rN", f"--basetemp={pytester.path / 't'}").stdout.str()
    parts = re.findall(
        r"^_+ (?:ERROR at setup of )?(test_\d+) _+\n(.*?)^(?=[_=]{3}|\d+ )", said, re.DOTALL | re.MULTILINE
    )
    return {names[called]: part for called, part in parts}


def test_a_device_is_tested_without_a_guest(project: pytest.Pytester) -> None:
    """As docs/testing.md shows it, in a process of its own, which finds the plugin as a stranger's does."""
    project.makepyfile(test_adder=blocks()["test_adder"])
    assert project.runpytest_subprocess("-p", "no:cacheprovider").parseoutcomes() == {"passed": 2}


def test_a_virtio_device_without_a_guest(project: pytest.Pytester) -> None:
    """As docs/testing.md shows it: by the word that a guest has too."""
    names = ("dice", "test_dice", "test_dice_by_itself")
    project.makepyfile(**{name: blocks()[name] for name in names})
    assert results(project) == {"passed": 2}


OTHER_SIDES = {
    "import pytest\n@pytest.mark.device('dice:Dice')\ndef test_it(device): pass": "vhost-user:dice:Dice",
    "import pytest\n@pytest.mark.device('vhost-user:dice:Dice')\ndef test_it(client): pass": "front_end",
    "import pytest\n@pytest.mark.device('edu')\ndef test_it(front_end): pass": "client",
    "import pytest\n@pytest.mark.device('vhost-user:dice:Dyce')\ndef test_it(device): pass": "its devices are: Dice",
}


def test_the_other_protocols_side_is_named(project: pytest.Pytester) -> None:
    project.makepyfile(dice=blocks()["dice"])
    told = told_of_each(project, {test: test for test in OTHER_SIDES})
    for test, word in OTHER_SIDES.items():
        assert word in told[test], test


def test_a_fixture_of_ones_own_says_which_device(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import pytest
        from adder import Adder

        @pytest.fixture
        def device():
            return Adder()

        def test_it_adds(client):
            client.store(0, 0, 4, 7)
            assert client.load(0, 0, 4) == 7
        """
    )
    assert results(project) == {"passed": 1}


def test_a_test_that_names_no_device_is_told_how(project: pytest.Pytester) -> None:
    project.makepyfile("def test_it(client): pass")
    done = project.runpytest_inprocess(*HERE)
    assert done.parseoutcomes() == {"errors": 1}
    done.stdout.fnmatch_lines(["*pytest.mark.device(*module:Class*"])


def test_the_markers_are_known(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n@pytest.mark.guest(device='edu')\ndef test_it(): pass")
    assert results(project, "--strict-markers") == {"passed": 1}


def test_a_known_issue_needs_a_guest(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n@pytest.mark.known_issue('eject-twice')\ndef test_it(): pass")
    assert results(project) == {"failed": 1}


KNOWN = """
import types
import pytest
from packaging.version import Version
from vfio_user import pytest_plugin
from vfio_user.harness import known_issues

@pytest.fixture
def guest(request):
    def known_issue(identity, guest):
        issue = known_issues.known_issue(identity)
        qemu = types.SimpleNamespace(log=request.path)
        return known_issues.expected_to_fail(issue, Version(issue.tried[-1]), qemu, [])

    lab = types.SimpleNamespace(folder="the-folder", cause_so_far=lambda error: "")
    request.node.stash[pytest_plugin._TRIAL] = types.SimpleNamespace(known_issue=known_issue, seen=[], lab=lab)
    return object()

@pytest.mark.known_issue("eject-twice")
def test_it(guest):
    pass
"""

OF_A_FRIEND = """
import pytest
from userdev.errors import UserError
from userdev.transport import Address

def helper():
    Address.parse("tcp:nowhere")

def test_it():
    helper()
"""


def of_a_marker(line: str, fixture: str = "client") -> str:
    return f"import pytest\n@pytest.mark.{line}\ndef test_it({fixture}): pass"


WRONG_MARKERS = {
    "XPASS": (KNOWN, "XPASS: eject-twice no longer happens", ""),
    "wrong id": (
        KNOWN.replace("eject-twice", "eject-twise"),
        "there is no known issue 'eject-twise'",
        "did you mean 'eject-twice'?",
    ),
    "no id": (KNOWN.replace('("eject-twice")', ""), "the marker known_issue names no issue", "known_issue("),
    "wrong device": (of_a_marker("device('addr:Adder')"), "there is no module 'addr'", "MODULE:CLASS"),
    "wrong option": (of_a_marker("device('edu', msx=3)"), "the marker device says msx=", "did you mean 'msix'?"),
    "no device": (of_a_marker("device(3)"), "the marker device names", "module:Class"),
    "wrong keyword": (
        of_a_marker("guest(device='edu', imge='x')", "guest"),
        "the marker guest says imge=",
        "did you mean 'image'?",
    ),
}


def test_what_a_marker_says_wrong_is_told_in_a_sentence_and_not_by_lines_of_ours(project: pytest.Pytester) -> None:
    told = told_of_each(project, {name: test for name, (test, _, _) in WRONG_MARKERS.items()})
    for name, (_, sentence, what_to_do) in WRONG_MARKERS.items():
        assert sentence in told[name], name
        assert what_to_do in told[name], name
        assert re.search(r"\.py:\d", told[name]) is None, name
        assert told[name].count("\n") < 10, name


def test_the_last_line_of_a_failure_is_the_tests_own_and_not_ours(project: pytest.Pytester) -> None:
    project.makepyfile(test_friend=OF_A_FRIEND)
    told = project.runpytest_inprocess(*HERE, "-q", "-rN").stdout.str()
    places = re.findall(r"^(\S+)\.py:\d+", told, re.MULTILINE)
    assert set(places) == {"test_friend"}
    assert '>       Address.parse("tcp:nowhere")' in told or '>   Address.parse("tcp:nowhere")' in told
    whole = project.runpytest_inprocess(*HERE, "-q", "-rN", "--full-trace").stdout.str()
    assert "address.py:" in whole, "who wants all of it has it"


GUESTS = """
import pytest

@pytest.mark.guest
def test_that_fails(guest):
    guest.succeed("echo for the record; false")

@pytest.mark.guest
@pytest.mark.known_issue("nonesuch")
def test_that_names_an_issue_that_there_is_not(guest):
    pass
"""


def test_what_an_earlier_run_left_is_gone_when_a_test_begins_anew(project: pytest.Pytester, tmp_path: Path) -> None:
    """A page and cores of a failure that was mended since would be taken for this run's."""
    project.makepyfile(test_it="def test_lab(lab): pass")
    assert results(project, "--vfio-results", str(tmp_path)) == {"passed": 1}
    (folder,) = tmp_path.iterdir()
    beside = tmp_path / "of another" / "index.html"
    beside.parent.mkdir()
    for page in (folder / "index.html", beside):
        page.touch()
    assert results(project, "--vfio-results", str(tmp_path)) == {"passed": 1}
    assert [(folder / "index.html").exists(), beside.exists()] == [False, True]


FAILS_TWICE = """
import pytest
from userdev.errors import VerdictError

@pytest.mark.parametrize("kept", ["first", "second"])
def test_it(lab, kept):
    if kept == "first":
        lab.failure = VerdictError("the first failure")
    raise VerdictError("the second failure")
"""


def test_the_first_failure_of_a_test_is_the_one_that_is_kept(project: pytest.Pytester, tmp_path: Path) -> None:
    project.makepyfile(test_it=FAILS_TWICE)
    assert results(project, "--vfio-results", str(tmp_path)) == {"failed": 2}
    for kept, other in (("first", "second"), ("second", "first")):
        error = (tmp_path / f"test_it.py-test_it-{kept}" / "error.txt").read_text()
        assert f"the {kept} failure" in error
        assert f"the {other} failure" not in error


WITHOUT_A_BODY = {
    "a fixture that fails": "assert 5 == 4 + 2",
    "a fixture that cannot go on": "raise UserError('no such thing', hint='look elsewhere')",
    "a fixture that fails in words": "pytest.fail('no such thing')",
}
SKIPS = "pytest.skip('nothing to look at')"
OF_SET_UP = """
import pytest
from userdev.errors import UserError

@pytest.fixture
def begun(lab):
    {statement}

def test_it(begun):
    pass
"""
OF_A_BODY = """
import pytest
from userdev.errors import UserError

def test_it(lab):
    {statement}
"""


def made_in(project: pytest.Pytester, texts: Collection[str], statements: Iterable[str]) -> dict[str, str]:
    """A file of each text with each of these statements: which of them the results in which folder are of."""
    of_folders = {}
    for number, (text, statement) in enumerate(itertools.product(texts, statements)):
        project.makepyfile(**{f"test_{number}": text.format(statement=statement)})
        of_folders[f"test_{number}.py-test_it"] = statement
    return of_folders


def assert_has_its_page(folder: Path, statement: str) -> None:
    assert (folder / "index.html").exists(), folder
    assert ("look elsewhere" in (folder / "error.txt").read_text()) is ("hint" in statement), folder


def test_whatever_fails_in_set_up_or_body_leaves_the_same_page(project: pytest.Pytester, tmp_path: Path) -> None:
    """A server that does not come up ends the set-up of a test."""
    folders = made_in(project, (OF_SET_UP, OF_A_BODY), WITHOUT_A_BODY.values())
    assert results(project, "--vfio-results", str(tmp_path)) == {"errors": 3, "failed": 3}
    for folder, statement in folders.items():
        assert_has_its_page(tmp_path / folder, statement)


OF_AN_END = """
import pytest
from userdev.errors import UserError

@pytest.fixture
def begun(lab):
    yield
    {statement}

def test_it(begun):
    pass
"""


def test_what_fails_at_the_end_of_a_test_leaves_a_page_too(project: pytest.Pytester, tmp_path: Path) -> None:
    """As a fixture does that looks what a test has left."""
    *failing, skipped = made_in(project, [OF_AN_END], [*WITHOUT_A_BODY.values(), SKIPS]).items()
    assert results(project, "--vfio-results", str(tmp_path)) == {"passed": 4, "errors": 3, "skipped": 1}
    for folder, statement in failing:
        assert_has_its_page(tmp_path / folder, statement)
    assert not (tmp_path / skipped[0] / "index.html").exists()


def test_what_was_skipped_or_is_expected_to_fail_leaves_no_page(project: pytest.Pytester, tmp_path: Path) -> None:
    folders = made_in(project, (OF_SET_UP, OF_A_BODY), (SKIPS, "pytest.xfail('known')"))
    assert results(project, "--vfio-results", str(tmp_path)) == {"skipped": 2, "xfailed": 2}
    for folder, statement in folders.items():
        assert (tmp_path / folder).exists(), statement
        assert not (tmp_path / folder / "index.html").exists(), (folder, statement)


def test_a_folder_is_named_after_its_test_and_is_one_folder() -> None:
    for test, folder in (
        ("tests/test_x.py::test_y[a]", "tests-test_x.py-test_y-a"),
        ("test_x.py::TestIt::test_y", "test_x.py-TestIt-test_y"),
        ("test_x.py::test_y[0.5-ü]", "test_x.py-test_y-0.5-ü"),
    ):
        assert folder_name(test) == folder


def test_no_two_tests_have_one_folder_and_none_has_a_name_too_long() -> None:
    """What the later one of two leaves there would be taken for the other's, which it has removed."""
    values = ("1", "-1", "a/b", "a-b", "a b", "a--b", "a", "", "-", "é" * 300, "é" * 301)
    tests = [f"tests/test_x.py::test_y[{value}]" for value in values]
    tests += ["tests/test_x.py::test_y", "tests-test_x.py::test_y", "test_y[a]/test_x.py", "test_y-a/test_x.py"]
    names = [folder_name(test) for test in tests]
    assert len({*names}) == len(tests), names
    for name in names:
        assert "/" not in name, name
        assert len(name.encode()) < 255, name


AGAIN = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    for log in (False, True):
        item._initrequest()
        runtestprotocol(item, nextitem=nextitem, log=log)
    return True
"""
FIRST_FAILS = """
times = []

def test_it(lab):
    times.append(lab)
    assert len(times) > 1
"""


def test_one_that_is_run_again_and_passes_leaves_its_failure_to_the_run_that_failed(
    project: pytest.Pytester, tmp_path: Path
) -> None:
    """As plugins do that run those again which fail: what was seen of a flake is of that run, and is kept."""
    project.makeconftest(AGAIN)
    project.makepyfile(test_it=FIRST_FAILS)
    for _ in range(2):  # what an earlier session left is no run of this one
        kept, evidence = tmp_path / "kept", tmp_path / "evidence"
        places = ("--vfio-results", str(evidence), "--bundle", str(kept))
        assert results(project, *places) == {"passed": 1}
        first, again = sorted(evidence.iterdir())
        assert again.name == f"{first.name}.run2"
        assert (first / "error.txt").exists()
        assert not (again / "error.txt").exists()
        assert [open_bundle(each).bundle.outcome.verdict for each in sorted(kept.iterdir())] == ["FAIL", "PASS"]
        shutil.rmtree(kept)
        (evidence / f"{first.name}.run3").mkdir()


def test_results_are_where_the_run_began_wherever_a_test_goes(project: pytest.Pytester) -> None:
    project.makeconftest(
        "import pytest\n@pytest.fixture(autouse=True)\ndef there(tmp_path, monkeypatch): monkeypatch.chdir(tmp_path)"
    )
    project.makepyfile(test_it="def test_it(lab): pass")
    assert results(project) == {"passed": 1}
    assert [folder.name for folder in (project.path / "results").iterdir()] == ["test_it.py-test_it"]


BOOTS = """
import pytest
from types import SimpleNamespace

def boot(device="", *, fresh=None):
    return device, fresh

@pytest.fixture
def lab():
    return SimpleNamespace(boot=boot)

def test_that_says_nothing(request, guest):
    assert guest == ("", request.config.getoption("--fresh"))

@pytest.mark.guest("edu")
def test_that_names_a_device(request, guest):
    assert guest == ("edu", request.config.getoption("--fresh"))

@pytest.mark.guest(fresh=True)
def test_that_is_always_fresh(guest):
    assert guest == ("", True)

@pytest.mark.guest(device="edu", fresh=False)
def test_that_is_never(guest):
    assert guest == ("edu", False)
"""


@pytest.mark.parametrize("options", [[], ["--fresh"]])
def test_what_a_marker_says_goes_before_what_the_run_says(project: pytest.Pytester, options: list[str]) -> None:
    project.makepyfile(BOOTS)
    assert results(project, *options) == {"passed": 4}


@pytest.mark.network
@pytest.mark.timeout(900)
def test_a_guest_is_booted_and_a_failure_leaves_its_evidence(project: pytest.Pytester, tmp_path: Path) -> None:
    project.makepyfile(test_failures=GUESTS, test_adder_in_a_guest=blocks()["test_adder_in_a_guest"])
    done = project.runpytest_subprocess("--vfio-results", str(tmp_path))
    assert done.parseoutcomes() == {"passed": 2, "failed": 1, "errors": 1}
    done.stdout.fnmatch_lines(["*for the record*"])
    kept = [path.name for path in tmp_path.iterdir() if (path / "index.html").exists()]
    assert [name.rpartition("-")[2] for name in kept] == ["test_that_fails"]
    done.stdout.fnmatch_lines([f"*{tmp_path}/*test_that_fails*"])


def test_a_full_disk_is_one_sentence_with_what_to_do_about_it(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device", "results/log"))
    monkeypatch.setattr(import_module("vfio_user.harness.verdicts"), "trial", full)
    project.makepyfile("def test_it(lab): pass")
    said = project.runpytest_inprocess(*HERE, f"--basetemp={project.path / 't'}").stdout.str()
    assert "No space left on device: 'results/log'" in said
    assert "make room" in said
    assert "pytest_plugin.py" not in said.partition("short test summary")[0].partition("ERRORS")[2]
