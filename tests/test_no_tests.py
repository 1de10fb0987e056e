"""A file in which avocado finds no test: what is wrong with it, and in which line."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.test_nightly_plan import stage_refusal
from userdev.errors import UserError
from vfio_user.avocado_job.no_tests import passed_over, why_no_tests
from vfio_user.cli import test_e2e

IMPORT = "from vfio_user.avocado_test import GuestTest\n"
CLASS = "class Mine(GuestTest):\n    def test_it(self):\n        pass\n"
RIGHT = IMPORT + CLASS
NO_COLON = RIGHT.replace("test_it(self):", "test_it(self)")

WRONG: dict[str, tuple[str, int | None, str]] = {
    "a colon is missing": (NO_COLON, 3, "expected ':'"),
    "a bracket is open": ("x = (\n", 1, "never closed"),
    "it is indented as nothing is": (f"{IMPORT}  x = 1\n", 2, "unexpected indent"),
    "no base of that name": (RIGHT.replace("(GuestTest)", "(GuestTes)"), 2, "did you mean 'GuestTest'?"),
    "nothing is imported": (CLASS, 1, "derives from GuestTest, which the file has not"),
    "no such module": (RIGHT.replace("avocado_test", "avocadotest"), 1, "did you mean 'vfio_user.avocado_test'?"),
    "no such package": (RIGHT.replace("vfio_user", "vfiouser"), 1, "no module 'vfiouser.avocado_test'"),
    "below what is no package": (RIGHT.replace("avocado_test ", "avocado_test.more "), 1, "no module"),
    "the module has no such name": (RIGHT.replace("GuestTest", "GuestTes"), 1, "did you mean 'GuestTest'?"),
    "a module beside it has none": ("from beside import Base\n" + CLASS.replace("GuestTest", "Base"), 1, "no 'Base'"),
    "its bytes are no text": ("x = '\udcff'\n", 1, "can't decode"),
    "no method is a test": (RIGHT.replace("test_it", "it"), None, "has no tests"),
    "a class of another kind": (CLASS.replace("GuestTest", "Exception"), None, "has no tests"),
    "nothing is known of what others give": ("from beside import *\n" + CLASS, None, "has no tests"),
    "nothing is known of relative imports": ("from .x import GuestTest\n" + CLASS, None, "has no tests"),
    "nothing at all": ("", None, "has no tests"),
}


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A folder with another module, and the place of a file of tests."""
    (tmp_path / "beside.py").write_text("other = 1\n")
    return tmp_path / "mine_tests.py"


def test_what_is_wrong_with_a_file_without_tests_is_told_with_its_line(beside: Path) -> None:
    for case, (text, line, said) in WRONG.items():
        beside.write_bytes(text.encode(errors="surrogateescape"))
        what, hint = why_no_tests(str(beside))
        assert what.startswith(f"{beside}:{line}: " if line else f"{beside} "), case
        assert said in what + hint, case
    beside.write_bytes(b"x = 1\n\0")
    assert "null bytes" in " ".join(why_no_tests(str(beside)))


def test_a_plan_and_a_run_with_such_a_file_say_so(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside.write_text(NO_COLON)
    plan = beside.with_name("plan.yaml")
    plan.write_text(f"name: mine\ngroups:\n  all:\n    servers: [edu]\n    tests: [{beside}]\n")
    expected = f"{beside}:3: expected ':'"
    assert f"plan.yaml:5: {expected}" in stage_refusal(plan)
    monkeypatch.setattr(test_e2e, "prepare_environment", lambda *_: None)
    refused = CliRunner().invoke(test_e2e.command, [str(beside), "--list"]).exception
    assert isinstance(refused, UserError)
    assert str(refused) == expected


def test_a_class_that_avocado_passes_over_beside_others_is_told(beside: Path) -> None:
    """Its tests would never be run, and nothing would ever say so."""
    alone = CLASS.replace("(GuestTest)", "")
    for case, (text, told) in {
        "a base is forgotten": (RIGHT + alone.replace("Mine", "Other"), [f"{beside}:5: no test of Other is run"]),
        "all are tests": (RIGHT, []),
        "others derive from it": (f"{IMPORT}{alone}class Other(Mine, GuestTest):\n    pass\n", []),
        "it has no tests": (RIGHT + alone.replace("Mine", "Other").replace("test_it", "it"), []),
        "another module may know": (RIGHT + CLASS.replace("Mine(GuestTest)", "Other(mixins.Mixin)"), []),
        "it is no Python": (NO_COLON, []),
    }.items():
        beside.write_text(text)
        assert [sentence.partition(": it derives")[0] for sentence in passed_over(str(beside))] == told, case
