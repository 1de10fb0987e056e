"""What the pytest plugin tells beside a test's outcome: what a device raised, and rules of faults that never acted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_pytest_plugin import HERE, results
from tests.test_pytest_plugin import project as project  # a stranger's folder

pytest_plugins = ["pytester"]


RAISED = """
import pytest
from userdev.process import Child
from vfio_user.harness import GuestLost

LOG = '''12:00:00.000 ERROR vhost_user.backend: queue 1: the device failed
Traceback (most recent call last):
  File "mine.py", line 31, in transmit
    raise ValueError("boo")
ValueError: boo
'''

@pytest.fixture
def mine(tmp_path):
    log = tmp_path / "mine.server.log"
    log.write_text(LOG)
    child = Child("mine", ["sleep", "600"], log=log)
    yield child
    child.stop()

def test_it(mine, lab):
    lab.records.note(mine)
    raise GuestLost("the guest's agent did not answer 'say()' in 92 s", evidence="(the console is empty)")
"""


def test_what_a_device_raised_before_is_told_as_the_cause_and_what_to_do_is_no_console(
    project: pytest.Pytester, tmp_path: Path
) -> None:
    project.makepyfile(test_it=RAISED)
    options = ("--vfio-results", str(tmp_path / "kept"), f"--basetemp={project.path / 't'}")
    said = project.runpytest_inprocess(*HERE, *options).stdout.str()
    told = dict(re.findall(r"^-+ ([a-z ]+) -+\n(.*?)(?=\n[-=]{3})", said, re.DOTALL | re.MULTILINE))
    assert "mine: ValueError: boo (mine.py:31, in transmit); after that guest lost" in told["first cause"]
    assert "console" in told["what was seen"]
    assert "timeout=" in told["what to do"]


def test_what_a_device_raised_beside_a_test_that_passes_is_warned_of_with_its_line(project: pytest.Pytester) -> None:
    """Who wants such a test to fail makes the warning an error."""
    passes = RAISED.partition("    raise GuestLost")[0]
    project.makepyfile(test_it=passes)
    is_told, is_wrong = (("-W", f"{action}::vfio_user.pytest_plugin.DeviceWarning") for action in ("default", "error"))
    for wanted, outcome in ((is_told, "warnings"), (is_wrong, "errors")):
        done = project.runpytest_inprocess(*HERE, f"--basetemp={project.path / 't'}", *wanted)
        assert done.parseoutcomes() == {"passed": 1, outcome: 1}
        told = done.stdout.str()
        assert "mine: ValueError: boo (mine.py:31, in transmit)" in told
        assert "results/test_it.py-test_it" in told
        assert "pytest_plugin.py" not in told
    project.makepyfile(test_it=RAISED)
    assert results(project, *is_told) == {"failed": 1}, "that tells of it already"


UNTRIED = """
from types import SimpleNamespace

RULES = [{"name": "late", "matched": 0, "acted": 0, "in_vain": 0, "probability": 1.0},
         {"name": "soon", "matched": 2, "acted": 2, "in_vain": 0, "probability": 1.0}]

def test_it(lab):
    control = SimpleNamespace(call=lambda _: {"rules": RULES})
    parts = {"child": SimpleNamespace(group_is_alive=lambda: False), "device": SimpleNamespace(as_dict=dict)}
    lab.servers.append(SimpleNamespace(name="s", has_faults=True, control=control, stop=lambda: None, **parts))
"""


def test_a_rule_of_faults_that_never_acted_is_warned_of_and_is_beside_a_failure(
    project: pytest.Pytester, tmp_path: Path
) -> None:
    project.makepyfile(test_it=UNTRIED)
    is_told, is_wrong = (("-W", f"{action}::vfio_user.pytest_plugin.FaultWarning") for action in ("default", "error"))
    for wanted, outcome in ((is_told, "warnings"), (is_wrong, "errors")):
        done = project.runpytest_inprocess(*HERE, f"--basetemp={project.path / 't'}", *wanted)
        assert done.parseoutcomes() == {"passed": 1, outcome: 1}
        assert "'late' never acted" in done.stdout.str()
        assert "'soon'" not in done.stdout.str()
    project.makepyfile(test_it=UNTRIED + "    assert lab.servers == []\n")
    assert results(project, "--vfio-results", str(tmp_path), *is_told) == {"failed": 1, "warnings": 1}
    [folder] = tmp_path.iterdir()
    assert "'late' never acted" in (folder / "error.txt").read_text()
