"""A recipe's arguments are the command line again, whatever was said on it, and only what was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from tests.bundle_kit import make_results
from tests.cases import for_each
from vfio_user.bundle import Keeping, Recipe, open_bundle
from vfio_user.bundle.made_with import named_files, own_versions, recorded
from vfio_user.bundle.of_tests import moved
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


@for_each(LINES)
def test_the_words_of_a_recipe_say_the_same(name: str) -> None:
    context, said = parsed(name, LINES[name])
    recipe, inputs = recipe_of(name, context)
    assert recipe.command == name
    assert parsed(name, list(recipe.arguments))[1] == said
    assert inputs == {}


@for_each(LINES)
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


@for_each(["run", "soak", "migrate", "test-e2e", "nightly"])
def test_a_bound_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(click.BadParameter, match="0 is not in the range"):
        parsed(name, ["--bundle-size", "0"])


def test_a_package_without_a_version_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "version", lambda name: None)
    assert own_versions()["vfio-user"] == "not installed"


def test_files_of_one_name_are_numbered(tmp_path: Path) -> None:
    inputs: dict[str, Path] = {}
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f.yaml").write_text(name)
        _text(tmp_path / name / "f.yaml", inputs)
    assert [*inputs] == ["f.yaml", "2-f.yaml", "3-f.yaml"]


def test_a_seed_that_was_said_is_the_one_that_drew(tmp_path: Path) -> None:
    """Over that of a scenario's file by the same name."""
    scenario = tmp_path / "late.yaml"
    scenario.write_text("seed: 7\nrules: []\n")
    for said, drew in (({}, 7), ({"late.yaml": 9}, 9)):
        place = tmp_path / f"kept{drew}"
        recipe = Recipe(command="run", seeds=said)
        with Keeping(str(place), recipe, of="a run", inputs={"late.yaml": scenario}) as kept:
            kept.folder = make_results(tmp_path / "results")
        assert open_bundle(place).bundle.recipe.seeds == {"late.yaml": drew}


def test_a_file_is_named_by_its_module_or_by_a_test_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine/nic.py", "nic.py", "test_nic.py", "server"):
        (tmp_path / name).write_text(name)
    for word, files in {
        "mine.nic:Nic": ["mine/nic.py"],
        "nic:Nic": ["nic.py"],
        "test_nic.py:Nic.test_it": ["test_nic.py"],
        "./server --log x {socket}": ["server"],
        "nic": [],
        ":Nic": [],
    }.items():
        assert [*named_files([word])] == files, word


def test_accelerators_of_all_machines_are_told(tmp_path: Path) -> None:
    for kinds, told in ((["tcg"], "tcg"), (["tcg", "tcg"], "tcg"), (["tcg", "kvm"], "kvm, tcg"), ([], "")):
        machines = {f"guest.{number}": {"accelerator": kind} for number, kind in enumerate(kinds)}
        (tmp_path / "versions.json").write_text(json.dumps({"machines": machines}))
        assert recorded(tmp_path)["accelerator"] == told


def test_bundles_of_cases_that_differ_by_a_sign_have_folders_of_their_own(tmp_path: Path) -> None:
    places = []
    for case in ("edu+cpus=2/t.py:A.test", "edu-cpus-2/t.py:A.test"):
        place = tmp_path / "bundle"
        place.mkdir()
        places.append(moved(place, tmp_path / "kept", case).name)
    assert places == ["edu+cpus=2-t.py-A.test", "edu-cpus-2-t.py-A.test"]
