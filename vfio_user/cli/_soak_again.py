"""Doing again what a soak has lost: the command line, and the bundle of each failure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfio_user.bundle import AUTO, Keeping, Recipe, Seen, outcome_of
from vfio_user.soak import FIRST, USUAL_WEIGHTS, Failed, SoakedSpec


@dataclass(frozen=True)
class Again:
    """What of a soak says which events happen to which guest."""

    spec: SoakedSpec
    weights: Mapping[str, float]
    seed: int
    qemu: str | None

    def command(self, numbers: Sequence[int]) -> str:
        """The command line that does the events of these numbers alone, for people."""
        return shlex.join(["vfio-user", "soak", *self._words, *_only(numbers)])

    def recipe(self, numbers: Sequence[int]) -> Recipe:
        """The same for a bundle."""
        return self._recipe(_only(numbers))

    def recipe_of_all(self, events: int) -> Recipe:
        """What does the whole soak again, of so many events."""
        return self._recipe(["--until", str(events)])

    def _recipe(self, which: Sequence[str]) -> Recipe:
        qemu = ["--qemu", self.qemu] if self.qemu else []
        return Recipe(command="soak", arguments=(*self._words, *which, *qemu), seeds={"soak": self.seed})

    @property
    def _words(self) -> list[str]:
        words = self.spec.words
        for name, weight in self.weights.items():
            words += ["--weight", f"{name}={weight:g}"] if weight != USUAL_WEIGHTS[name] else []
        return [*words, "--seed", str(self.seed)]


def keep_soak(
    kept: Keeping, failures: Sequence[Mapping[str, Any]], again: Again, events: int, folder: Path
) -> Iterator[Path]:
    """Keep a bundle of each failure of a soak, as it was when the shortest sequence was tried; where it is.

    One that lost nothing leaves a bundle of its first guest, where that is wanted.
    """
    if not kept.is_wanted:
        return
    for number, line in enumerate(failures, start=1):
        where = Path(line.get("tried_in") or line["folder"])
        kept.recipe = again.recipe(line.get("reduced") or [line["number"]])
        failed = Failed(line["check"], line["detail"])
        saw = [Seen(what=failed.check, ok=False, seen=failed.detail)]
        place = None if kept.wanted == AUTO else Path(kept.wanted) / f"failure{number}"
        yield kept.make(where, outcome_of(where, failed, saw), place)
    if not failures and kept.wanted != AUTO:
        kept.recipe = again.recipe_of_all(events)
        yield kept.make(folder / FIRST, outcome_of(folder / FIRST, None, []))
    kept.place = None  # all is told


def _only(numbers: Sequence[int]) -> list[str]:
    return ["--only", ",".join(map(str, numbers))]
