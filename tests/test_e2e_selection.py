"""Which guest-driven tests a run chooses, and by which names."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.avocado_job.naming import told_names
from vfio_user.avocado_job.selection import filters, package_folders, reference, suite_folder
from vfio_user.cli import cli, test_e2e
from vfio_user.harness.cell import CELL_VARIABLE, Cell


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run prepares for the processes of its tests is gone behind it."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("PATH", "PYTHONPATH", CELL_VARIABLE):
        monkeypatch.setenv(name, os.environ.get(name, ""))


@for_each_row(
    [
        ((), ["-nightly"]),
        (("irq",), ["irq,-nightly"]),
        (("irq", "dma,msix"), ["irq,-nightly", "dma,msix,-nightly"]),
        (("nightly",), ["nightly"]),
        (("nvme,nightly",), ["nvme,nightly"]),
        (("nightly-build",), ["nightly-build,-nightly"]),
    ]
)
def test_nightly_tests_are_left_out_unless_they_are_asked_for(tags: tuple[str, ...], chosen: list[str]) -> None:
    assert filters(tags, everything=False) == chosen


def test_a_night_leaves_nothing_out() -> None:
    assert filters((), everything=True) == []
    assert filters(("irq",), everything=True) == ["irq"]


@for_each([0, 1, 12, 13, 20])
def test_a_dozen_names_are_told_and_how_many_more_there_are(count: int) -> None:
    names = [f"name{number}" for number in range(count)]
    told = told_names("it", names).partition("there are: ")[2]
    shown, _, more = told.partition(" and ")
    assert shown == ", ".join(names[:12])
    assert more == (f"{count - 12} more" if count > 12 else "")


def cell_of(monkeypatch: pytest.MonkeyPatch, before: Mapping[str, Any], words: Sequence[str]) -> Cell:
    """The cell of a run with these words, of a bundle whose cell is that."""
    cells: list[Cell] = []
    monkeypatch.setattr(test_e2e, "prepare_environment", lambda _root, _factor, cell, _folders: cells.append(cell))
    monkeypatch.setattr(test_e2e, "make_job", lambda _: SimpleNamespace(test_suites=()))
    monkeypatch.setattr(test_e2e, "provision", lambda *_: None)
    monkeypatch.setattr(test_e2e, "_run", lambda *_, **__: None)
    test_e2e.command.main(["registers", *words, "--cell", Cell(**before).text], standalone_mode=False)
    (cell,) = cells
    return cell


OURS, THEIRS = "./ours {socket}", "./theirs {socket}"


@for_each_row(
    [
        ({}, [], {}),
        ({"qemu": "/a"}, [], {"qemu": "/a"}),
        ({"qemu": "/a"}, ["--qemu", "/b"], {"qemu": "/b"}),
        ({"interpose": True}, [], {"interpose": True}),
        ({}, ["--interpose"], {"interpose": True}),
        ({"trace": True}, [], {"trace": True}),
        ({}, ["--trace"], {"trace": True}),
        ({"capture_dma": True}, [], {"capture_dma": True}),
        ({}, ["--capture-dma"], {"capture_dma": True, "trace": True}),
        ({"hardware": {"cpus": 2, "memory": 512}}, ["--cpus", "4"], {"hardware": {"cpus": 4, "memory": 512}}),
        ({"servers": {"edu": OURS, "gpio": OURS}}, [], {"servers": {"edu": OURS, "gpio": OURS}}),
        (
            {"servers": {"edu": OURS, "gpio": OURS}},
            ["--server", f"edu={THEIRS}"],
            {"servers": {"edu": THEIRS, "gpio": OURS}},
        ),
        ({"device": "gpio", "dialect": "old"}, ["--trace"], {"device": "gpio", "dialect": "old", "trace": True}),
    ]
)
def test_what_a_run_says_goes_over_what_its_bundle_says_and_the_rest_stays(
    before: Mapping[str, Any],
    words: list[str],
    after: Mapping[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path))
    assert cell_of(monkeypatch, before, words) == Cell(**after)


def test_a_server_that_no_test_has_started_is_told_of_a_run_that_passed() -> None:
    boards = [{"whiteboard": board} for board in ("", "not {json", json.dumps({"tried": [OURS]}))]
    test_e2e.require_tried({}, boards)
    test_e2e.require_tried({"edu": OURS}, boards)
    with pytest.raises(UserError, match=r"no test started the server given for gpio\b") as refused:
        test_e2e.require_tried({"edu": OURS, "gpio": THEIRS}, boards)
    assert "options" in refused.value.hint


def listed(*arguments: str) -> list[str]:
    done = CliRunner().invoke(cli, ["test-e2e", "--list", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.split()


def test_names_are_the_same_wherever_the_checkout_is() -> None:
    assert all(name.startswith("avocado_tests/test_") for name in listed("known_issues", "dma"))


@pytest.mark.parametrize("name", ["disconnections", "test_disconnections", "test_disconnections.py"])
def test_a_topic_is_its_file_of_tests(name: str) -> None:
    """Beside which there is a module of the same name."""
    assert listed(name)[0].startswith("avocado_tests/test_disconnections.py:")


def test_a_method_is_exactly_that(tmp_path: Path) -> None:
    """Others whose names begin or end so, and those of classes whose names do, are not meant."""
    classes, methods = ("A", "AA", "A_"), ("test_a", "test_ab", "test_a_test_a")
    body = "".join(f"    def {method}(self):\n        pass\n" for method in methods)
    file = tmp_path / "test_names.py"
    file.write_text("from avocado import Test\n" + "".join(f"class {c}(Test):\n{body}" for c in classes))
    assert listed(f"{file}:A.test_a") == [f"{file}:A.test_a"]
    assert listed(f"{file}:A") == [f"{file}:A.{method}" for method in methods]
    assert listed(str(file)) == [f"{file}:{c}.{m}" for c in classes for m in methods]


def test_a_file_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="no test file nothing") as refused:
        reference("nothing:A.test_a", suite_folder())
    assert " dma," in refused.value.hint


def test_a_test_file_that_is_nearly_one_beside_the_plan_is_told(tmp_path: Path) -> None:
    (tmp_path / "my_tests.py").touch()
    with pytest.raises(UserError) as refused:
        reference("my_test.py", None, tmp_path)
    assert "did you mean 'my_tests.py'?" in refused.value.hint


@for_each_row(
    [
        (["registers:Registers.test_factorail"], "did you mean 'Registers.test_factorial'?"),
        (["registers:Registrs"], "did you mean 'Registers'?"),
        (["registers", "-t", "edu", "-t", "edo"], "did you mean 'edu'?"),
        ([str(Path(__file__).parent / "flag.py")], "GuestTest"),
    ]
)
def test_a_test_or_tag_that_there_is_not_is_told_with_what_was_meant(words: list[str], meant: str) -> None:
    error = CliRunner().invoke(cli, ["test-e2e", "--list", *words]).exception
    assert isinstance(error, UserError)
    assert meant in error.hint


def test_parameters_may_be_beside_variants(tmp_path: Path) -> None:
    """An interposer before every server is no parameter of avocado's; with one of those its own words are given."""
    file = tmp_path / "test_params.py"
    file.write_text("from avocado import Test\nclass A(Test):\n    def test_a(self):\n        pass\n")
    variants = ("-o", "run.dict_variants=[{name: a}, {name: b}]")
    assert listed(str(file), "--interpose") == listed(str(file))
    done = CliRunner().invoke(cli, ["test-e2e", "--list", str(file), *variants, "-o", "run.test_parameters=[[a, b]]"])
    assert isinstance(done.exception, UserError)
    assert "test parameters" in str(done.exception)


def test_what_a_test_imports_of_its_package_is_found_where_the_package_is(tmp_path: Path) -> None:
    package = tmp_path / "mine" / "more"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    names = [f"{package}/test_a.py:^A[.]", f"{package.parent}/test_b.py", f"{tmp_path}/test_alone.py", "mine/test_b.py"]
    assert package_folders(names, Path("/")) == [tmp_path]
    assert package_folders([names[0], names[3]], tmp_path) == []
