"""A recipe's arguments are the command line again, whatever was said on it, and only what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from vfio_user.bundle.made_with import own_versions
from vfio_user.cli import cli
from vfio_user.cli._bundling import _text, recipe_of
from vfio_user.harness import artifacts

LINES = {
    "run": ["--device", "nvme", "--server", "./server --x 'a b' {socket}", "--memory", "1024", "--no-iommu", "--fresh"],
    "migrate": ["--device", "edu --msix 0", "--device", "nvme", "--mode", "native", "--iommu", "--downtime", "0.5"],
    "soak": ["--until", "30", "--until", "first-failure", "--weight", "hop=3", "--only-events", "hop,reset"],
    "test-e2e": [
        "dma",
        "registers:Registers.test_x",
        "--tag",
        "irq,-nightly",
        "--cpus",
        "2",
        "--server",
        "edu=./s {socket}",
    ],
}


def parsed(name: str, words: list[str]) -> tuple[click.Context, dict[str, Any]]:
    """The context of a subcommand with these words, and what they come to."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    context = command.make_context(name, list(words))
    return context, dict(context.params)


@pytest.mark.parametrize("name", LINES)
def test_the_words_of_a_recipe_say_the_same(name: str) -> None:
    context, said = parsed(name, LINES[name])
    recipe, inputs = recipe_of(name, context)
    assert recipe.command == name
    assert parsed(name, list(recipe.arguments))[1] == said
    assert inputs == {}


@pytest.mark.parametrize("name", LINES)
def test_what_was_not_said_is_not_in_a_recipe(name: str) -> None:
    recipe, _ = recipe_of(name, parsed(name, [])[0])
    assert recipe.arguments == ()


def test_where_results_go_is_not_in_a_recipe(tmp_path: Path) -> None:
    words = ["--json", "--bundle", str(tmp_path / "kept"), "--bundle-size", "3", "--cpus", "2"]
    assert recipe_of("run", parsed("run", words)[0])[0].arguments == ("--cpus", "2")
    words = ["--quiet", "--journal", str(tmp_path / "soak.jsonl"), "--bundle", "auto", "--cpus", "2"]
    assert recipe_of("soak", parsed("soak", words)[0])[0].arguments == ("--cpus", "2")


def test_files_that_were_named_are_inputs_by_names_that_differ(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file.yaml").write_text(name)
    words = ["--weights", str(tmp_path / "one/file.yaml")]
    recipe, inputs = recipe_of("soak", parsed("soak", words)[0])
    assert recipe.arguments == ("--weights", "{inputs}/file.yaml")
    assert inputs == {"file.yaml": tmp_path / "one/file.yaml"}
    recipe, inputs = recipe_of("run", parsed("run", ["--faults", str(tmp_path / "two/file.yaml")])[0])
    assert inputs == {"file.yaml": tmp_path / "two/file.yaml"}


def test_files_of_one_name_are_two_and_one_that_was_named_twice_is_one(tmp_path: Path) -> None:
    found: list[Path] = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        found.append(tmp_path / name / "file.yaml")
        found[-1].write_text(name)
    inputs: dict[str, Path] = {}
    words = [_text(path, inputs) for path in (*found, *found)]
    assert len(inputs) == 3
    assert set(inputs.values()) == {*found}
    assert words[:3] == words[3:]
    assert [inputs[word.removeprefix("{inputs}/")] for word in words[:3]] == found


@pytest.mark.parametrize("name", ["run", "soak", "migrate", "test-e2e", "nightly"])
def test_a_bound_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(click.BadParameter, match="0 is not in the range"):
        parsed(name, ["--bundle-size", "0"])


def test_a_package_without_a_version_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "version", lambda name: None)
    assert own_versions()["vfio-user"] == "not installed"
