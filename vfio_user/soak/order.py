"""The order of events: a weighted random choice by number, so that a number has the same event wherever it is asked."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from userdev.documents import parse, read_text
from userdev.errors import UserError, meant

HOP = "hop"
"""The event that is begun before its time where one comes after another."""


@dataclass(frozen=True)
class Happening:
    """An event at its place in the order. `target` is the device it is done to, nothing for the whole guest.

    `chance`, from 0 to 1, is for what else the event leaves open, such as how long a pause is.
    """

    number: int
    event: str
    target: str = ""
    chance: float = 0.0

    def __str__(self) -> str:
        return " ".join(filter(None, (f"{self.number}", self.event, self.target)))


class Order:
    """What happens at each number, from 1: given by the seed, the weights, and what can happen to the guest.

    `possible` has the targets of each event that can happen. The draw of one number has nothing to do with others', so
    that an interrupted soak, and one that only does a few of them, have the same.
    """

    def __init__(self, seed: int, weights: Mapping[str, float], possible: Mapping[str, Sequence[str]]) -> None:
        """Keep what can be drawn.

        Raises:
            UserError: that is nothing.
        """
        self._seed = seed
        self._possible = {name: tuple(possible[name]) for name in sorted(possible) if weights.get(name, 0) > 0}
        self._weights = [weights[name] for name in self._possible]
        if not self._possible:
            wanted = ", ".join(name for name, weight in weights.items() if weight > 0)
            raise UserError(f"nothing of what is wanted can happen to this guest: {wanted}")

    def happening(self, number: int) -> Happening:
        """The event of this number."""
        draw = random.Random(f"{self._seed}/{number}")
        [event] = draw.choices([*self._possible], self._weights)
        return Happening(number, event, draw.choice(self._possible[event]), draw.random())


def weights_of(
    usual: Mapping[str, float], file: Path | None = None, options: Iterable[str] = ()
) -> Mapping[str, float]:
    """The weights of events: the usual ones, those of a YAML file (EVENT: WEIGHT), then EVENT=WEIGHT of a command line.

    Raises:
        UserError: an event that there is not, what is no weight, or no event with one.
    """
    found, there = dict(usual), f"there are: {', '.join(usual)}"
    for place, name, said in [*_of_file(file), *_of_options(options)]:
        if name not in usual:
            raise UserError(f"{place}there is no event {name!r}", hint=meant(name, usual) + there)
        found[name] = _weight(place, name, said)
    if not any(found.values()):
        raise UserError("no event has a weight: nothing would ever happen", hint=there)
    return found


def _of_file(file: Path | None) -> list[tuple[str, str, object]]:
    if file is None:
        return []
    found = parse(read_text(file, "file of weights"), str(file)).value
    if not isinstance(found, dict):
        raise UserError(f"{file} has no weights", hint="a line for each: EVENT: WEIGHT")
    return [(f"{file}: ", str(name), said) for name, said in found.items()]


def _of_options(options: Iterable[str]) -> list[tuple[str, str, object]]:
    found: list[tuple[str, str, object]] = []
    for option in options:
        name, equals, said = option.partition("=")
        if not equals:
            raise UserError(f"{option!r} is no weight of an event", hint="for example hop=3")
        found.append(("", name.strip(), said))
    return found


def _weight(place: str, name: str, said: object) -> float:
    try:
        weight = float(said) if isinstance(said, int | float | str) and not isinstance(said, bool) else -1.0
    except (ValueError, OverflowError):
        weight = -1.0
    if not (math.isfinite(weight) and weight >= 0):
        raise UserError(f"{place}{said!r} is no weight of {name}", hint="a number from 0 on; 0: never")
    return weight
