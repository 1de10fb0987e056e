"""The pytest plugin, as a stranger's tests use it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

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
    return pytester.runpytest_inprocess("-p", "no:cacheprovider", short, *arguments).parseoutcomes()


def test_a_device_is_tested_without_a_guest(project: pytest.Pytester) -> None:
    """As docs/testing.md shows it, in a process of its own, which finds the plugin as a stranger's does."""
    project.makepyfile(test_adder=blocks()["test_adder"])
    assert project.runpytest_subprocess("-p", "no:cacheprovider").parseoutcomes() == {"passed": 2}


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
    done = project.runpytest_inprocess()
    assert done.parseoutcomes() == {"errors": 1}
    done.stdout.fnmatch_lines(["*pytest.mark.device(*module:Class*"])


def test_the_markers_are_known(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n@pytest.mark.guest(device='edu')\ndef test_it(): pass")
    assert results(project, "--strict-markers") == {"passed": 1}


def test_a_known_issue_needs_a_guest(project: pytest.Pytester) -> None:
    project.makepyfile("import pytest\n@pytest.mark.known_issue('bar-mmap')\ndef test_it(): pass")
    assert results(project) == {"failed": 1}


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


@pytest.mark.network
@pytest.mark.timeout(900)
def test_a_guest_is_booted_and_a_failure_leaves_its_evidence(project: pytest.Pytester, tmp_path: Path) -> None:
    project.makepyfile(test_failures=GUESTS, test_adder_in_a_guest=blocks()["test_adder_in_a_guest"])
    done = project.runpytest_subprocess("--vfio-results", str(tmp_path))
    assert done.parseoutcomes() == {"passed": 2, "failed": 2}
    done.stdout.fnmatch_lines(["*for the record*"])
    kept = [path.name for path in tmp_path.iterdir() if (path / "index.html").exists()]
    assert sorted(name.rpartition("-")[2] for name in kept) == [
        "test_that_fails",
        "test_that_names_an_issue_that_there_is_not",
    ]
    done.stdout.fnmatch_lines([f"*{tmp_path}/*test_that_fails*"])
