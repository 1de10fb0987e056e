"""A new project passes its own tests and checks, whatever it is called, before anybody has changed a line."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.cli import docs
from vfio_user.cli.new import command
from vfio_user.new_project import PROTOCOLS, Names, write_project

ROOT = Path(__file__).parent.parent
CHECKS = {"github": "vendor.github-workflows", "gitlab": "vendor.gitlab-ci"}


def new(folder: Path, *words: str) -> Path:
    """The folder of a new project."""
    made = CliRunner().invoke(command, [*words, "--folder", str(folder / "project")])
    assert made.exception is None, made.output
    return folder / "project"


def run(folder: Path, *words: str) -> None:
    """Run a tool in a project as its author does, with what is installed here."""
    environment = {**os.environ, "MYPYPATH": str(ROOT)}  # mypy does not look through what is installed editable
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_its_tests_pass(tmp_path: Path, protocol: str) -> None:
    run(new(tmp_path, "my-device2", "--protocol", protocol), "pytest", "-p", "no:cacheprovider", "-W", "error")


@for_each(PROTOCOLS, ["x", "a-device-with-the-longest-name"])
def test_it_is_formatted_and_has_no_lint(protocol: str, name: str, tmp_path: Path) -> None:
    project = new(tmp_path, name, "--protocol", protocol)
    run(project, "ruff", "check", "--no-cache", ".")
    run(project, "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.network  # with the longer tests: mypy reads all that it uses of vfio-user
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_its_types_are_right(tmp_path: Path, protocol: str) -> None:
    run(new(tmp_path, "mydevice", "--protocol", protocol), "mypy", "--follow-imports", "silent")


@for_each(CHECKS)
def test_its_ci_is_what_the_service_reads(service: str, tmp_path: Path) -> None:
    import check_jsonschema  # by the worker alone that needs it

    project = new(tmp_path, "mydevice", "--ci", service)
    own = ["--data-transform", "gitlab-ci", ".gitlab-ci.yml"] if service == "gitlab" else [".github/workflows/test.yml"]
    with contextlib.chdir(project):
        checked = CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", CHECKS[service], *own])
    assert checked.exit_code == 0, checked.output


@for_each(PROTOCOLS)
def test_the_device_is_found_by_its_name_once_it_is_installed(protocol: str, tmp_path: Path) -> None:
    project = tomllib.loads((new(tmp_path, "my_nic", "--protocol", protocol) / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-nic"
    assert not project["dependencies"], "vfio-user is on no index: what is called so there is somebody else's"
    assert project["entry-points"] == {f"{protocol.replace('-', '_')}.devices": {"my-nic": "my_nic:MyNic"}}


@for_each(
    [
        "My",
        "1st",
        "a b",
        "a--b",
        "",
        "-x",
        "../x",
        "class",
        "json",
        "vfio_user",
        "tests",
        "vfio-user",
        "userdev-servers",
        "pytest",
        "click",
        "a" * 31,
    ]
)
def test_a_name_that_no_module_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError):
        Names.of(name)


@for_each_row(
    [
        *(("vfio-user", name) for name in ("pci-device", "msi-x", "pci-ids", "edu", "nvme")),
        *(("vhost-user", name) for name in ("chain", "vhost-device", "queues", "rng")),
    ]
)
def test_a_name_that_something_else_in_it_has_is_refused(protocol: str, name: str, tmp_path: Path) -> None:
    """A class that hides what it is made of, or a device that serve has by that name already."""
    with pytest.raises(UserError, match=name):
        write_project(tmp_path / "project", Names.of(name), protocol, None)
    assert not (tmp_path / "project").exists()


def test_a_name_may_be_that_of_a_device_of_another_protocol_or_of_a_word_in_it(tmp_path: Path) -> None:
    for protocol, name in (("vhost-user", "edu"), ("vfio-user", "chain"), ("vfio-user", "add")):
        assert write_project(tmp_path / f"{protocol}-{name}", Names.of(name), protocol, None)


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mine.txt").write_text("mine")
    for words in (["mydevice"], ["mydevice", "--protocol", "vhost-user"]):
        made = CliRunner().invoke(command, [*words, "--folder", str(tmp_path / "project")])
        assert isinstance(made.exception, UserError)
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["mine.txt"]


def test_no_file_is_taken_for_a_place_and_an_empty_folder_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        made = CliRunner().invoke(command, [name])
        assert isinstance(made.exception, UserError), name
        assert made.exception.hint, name
        assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "project").mkdir()
    assert (new(tmp_path, "mydevice") / "mydevice.py").is_file()


def test_what_it_says_to_type_next_is_one_word_of_a_shell_each(tmp_path: Path) -> None:
    for name in ("plain", "with a blank", "it's", "$HOME"):
        said = CliRunner().invoke(command, ["mydevice", "--folder", str(tmp_path / name)]).output
        [line] = [line for line in said.splitlines() if line.strip().startswith("cd ")]
        assert shlex.split(line) == ["cd", str(tmp_path / name)], name


def test_it_says_how_to_go_on_by_a_page_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built one, or its source in a checkout; where neither is there the command tells how to build them."""
    checkout, nowhere = docs.PAGES, tmp_path / "vfio_user" / "_pages"
    for protocol, page in (("vfio-user", "devices"), ("vhost-user", "vhost-user")):
        for built, folder, said in (
            (True, checkout, f"vfio-user docs {page}"),
            (False, checkout, f"less {checkout.parent.parent / 'docs' / page}.md"),
            (False, nowhere, f"vfio-user docs {page}"),
        ):
            monkeypatch.setattr(docs, "there", lambda built=built: built)
            monkeypatch.setattr(docs, "PAGES", folder)
            project = str(tmp_path / f"{protocol}-{built}-{folder == nowhere}")
            told = CliRunner().invoke(command, ["mydevice", "--protocol", protocol, "--folder", project]).output
            assert any(line.strip().startswith(said) for line in told.splitlines()), (protocol, built, folder, told)
            if not built:
                refusal = CliRunner().invoke(docs.command, [page]).exception
                assert isinstance(refusal, UserError)
                assert ((f"{page}.md" in refusal.hint), "scripts/docs" in refusal.hint) == (
                    said.startswith("less"),
                    True,
                )
            monkeypatch.undo()


def test_all_that_it_says_to_type_is_there(tmp_path: Path) -> None:
    readme = (new(tmp_path, "mydevice") / "README.md").read_text()
    from vfio_user.cli import COMMANDS

    typed = [line.split() for line in readme.splitlines() if line.startswith("vfio-user ")]
    assert typed
    assert {words[1] for words in typed} <= COMMANDS.keys()
