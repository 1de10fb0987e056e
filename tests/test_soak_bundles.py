"""A soak keeps a bundle of what it has lost, of the guest that lost it with the fewest events."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.bundle_kit import make_results
from tests.soak_kit import Loses, Pretended, PretendedGuest
from userdev.errors import VerdictError
from vfio_user.bundle import OpenBundle, open_bundle
from vfio_user.bundle.model import without_option
from vfio_user.cli import soak as soak_command
from vfio_user.cli._soak_again import Again
from vfio_user.soak import USUAL_WEIGHTS, Happening, SoakedSpec


class Kept(Pretended):
    """Guests that leave results; `recorded` are the folders of those in which everything may be recorded."""

    def __init__(self, loses: Loses) -> None:
        super().__init__(loses)
        self.recorded: list[str] = []

    @contextmanager
    def __call__(self, folder: Path, *, recorded: bool = False) -> Iterator[PretendedGuest]:
        make_results(folder, said=f"a guest in {folder.name}")
        (folder / "evidence.json").unlink()
        if recorded:
            self.recorded.append(folder.name)
        with super().__call__(folder) as guest:
            yield guest


def two_kills(lived: Sequence[Happening]) -> str:
    return "work of edu" if sum(each.event == "kill" for each in lived) == 2 else ""


def soaked(monkeypatch: pytest.MonkeyPatch, results: Path, *words: str, loses: Loses = two_kills) -> Kept:
    """The command with guests that are none, as it ends."""
    pretended = Kept(loses)
    monkeypatch.setenv("VFIO_USER_RESULTS", str(results))
    monkeypatch.setattr(soak_command, "performances", lambda *_, **__: pretended)
    with suppress(VerdictError):
        soak_command.command.main([*words], standalone_mode=False)
    return pretended


def bundles(folder: Path) -> list[OpenBundle]:
    return [open_bundle(path.parent) for path in sorted(folder.rglob("bundle.json"))]


def test_a_failure_is_kept_as_it_was_with_the_fewest_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soaked(monkeypatch, tmp_path, "--seed", "3", "--until", "first-failure", "--bundle", "auto")
    [kept] = bundles(tmp_path)
    assert kept.folder.parent.name.startswith("failure1-try")
    recipe = kept.bundle.recipe
    assert recipe.seeds == {"soak": 3}
    assert len(recipe.arguments[-1].split(",")) == 2, "two kills are all that it takes"
    assert kept.bundle.outcome.cause == "work of edu: it is gone"

    again = soaked(monkeypatch, tmp_path / "again", *recipe.arguments, "--bundle", str(tmp_path / "second"))
    assert again.recorded == ["guest1"]
    second = open_bundle(tmp_path / "second").bundle
    assert (second.outcome, second.recipe.arguments) == (kept.bundle.outcome, recipe.arguments)


def test_only_guests_with_short_lives_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guests = soaked(monkeypatch, tmp_path, "--seed", "3", "--until", "40", "--bundle", "auto")
    assert guests.recorded
    assert all(name.startswith("failure") for name in guests.recorded)


def test_a_failure_that_was_not_reduced_is_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--seed", "3", "--until", "first-failure", "--tries", "0", "--bundle", str(tmp_path / "kept"))
    soaked(monkeypatch, tmp_path, *words)
    [kept] = bundles(tmp_path / "kept")
    assert kept.folder.name == "failure1"
    assert (kept.folder / "guest-dev0-edu.server.log").read_text() == "a guest in guest1\n"


def test_a_soak_that_loses_nothing_is_kept_where_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soaked(monkeypatch, tmp_path / "none", "--seed", "3", "--until", "5", "--bundle", "auto", loses=lambda _: "")
    assert bundles(tmp_path / "none") == []
    soaked(monkeypatch, tmp_path, "--seed", "3", "--until", "5", "--bundle", str(tmp_path / "kept"), loses=lambda _: "")
    recipe = open_bundle(tmp_path / "kept").bundle.recipe
    assert recipe.arguments[-4:] == ("--seed", "3", "--until", "5")
    assert "--only" not in without_option(recipe.arguments, "--device")


def test_what_does_a_failure_again_says_the_weights_as_they_were() -> None:
    name, usual = next((name, weight) for name, weight in USUAL_WEIGHTS.items() if weight)
    for weight, said in {
        usual: "",
        0.5: f"{name}=0.5",
        0.25: f"{name}=0.25",
        0.0: f"{name}=0",
        40.0: f"{name}=40",
    }.items():
        again = Again(SoakedSpec(("edu",)), {**USUAL_WEIGHTS, name: weight}, 3, None)
        words = shlex.split(again.command([4, 9]))
        assert words[-4:] == ["--seed", "3", "--only", "4,9"], weight
        assert [words[at + 1] for at, word in enumerate(words) if word == "--weight"] == ([said] if said else []), (
            weight
        )
        assert list(again.recipe([4, 9]).arguments) == words[2:], weight
