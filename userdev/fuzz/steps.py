"""What a sequence is made of: steps that are plain values, and the choices of which their arguments are drawn.

A step means something wherever it stands: what it is about is named by a number (a slot of memory, a vector, a ring),
and whether that is there is for the player to know. So steps can be left out, and what is left can be played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from userdev.errors import UserError

Value = int | str | tuple["Value", ...]
"""Bytes are written in hexadecimal."""


@dataclass(frozen=True)
class Step:
    """One thing that is done to a server: the name of its kind, and its arguments by name."""

    name: str
    arguments: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, name: str, **arguments: Value) -> Step:
        """Make a step of keywords."""
        return cls(name, tuple(arguments.items()))

    def __str__(self) -> str:
        said = ", ".join(f"{name}={_shown(value)}" for name, value in self.arguments)
        return f"{self.name}({said})"

    def plain(self) -> list[Any]:
        """The step as JSON has it."""
        return [self.name, dict(self.arguments)]

    @classmethod
    def from_plain(cls, plain: Any) -> Step:
        """Read what `plain` has made.

        Raises:
            UserError: it is no step.
        """
        match plain:
            case [str(name), dict(arguments)]:
                return cls(name, tuple((str(key), _value(value)) for key, value in arguments.items()))
        raise UserError(f"{plain!r} is no step", hint="a step is [NAME, {ARGUMENT: VALUE}]")


def _shown(value: Value) -> str:
    return hex(value) if isinstance(value, int) and abs(value) > 9 else str(value)


def _value(plain: Any) -> Value:
    match plain:
        case bool() | float() | None:
            pass
        case int() | str():
            return plain
        case list():
            return tuple(map(_value, plain))
    raise UserError(f"{plain!r} is no value of a step", hint="numbers, texts and lists of them are")


@dataclass(frozen=True)
class Pick:
    """One of these; what is there more than once is drawn more often."""

    values: Sequence[Value]


@dataclass(frozen=True)
class Few:
    """One of a few of these, which are drawn once for a sequence: so that its steps have to do with each other."""

    values: Sequence[Value]
    most: int = 3


@dataclass(frozen=True)
class Number:
    """Any number from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Blob:
    """So many bytes, of any content."""

    low: int
    high: int


@dataclass(frozen=True)
class Several:
    """A list of what is drawn from `of`."""

    of: Choice
    low: int
    high: int


Choice = Pick | Few | Number | Blob | Several

_HEXADECIMAL = frozenset("0123456789abcdef")


def fits(choice: Choice, value: Value) -> bool:
    """Whether a value could have been drawn, or is a number between those that could."""
    match choice, value:
        case Pick(values) | Few(values), int():
            numbers = [each for each in values if isinstance(each, int)]
            return bool(numbers) and min(numbers) <= value <= max(numbers)
        case Pick(values) | Few(values), _:
            return value in values
        case Number(low, high), int():
            return low <= value <= high
        case Blob(_, high), str():
            return len(value) <= 2 * high and not len(value) % 2 and _HEXADECIMAL.issuperset(value)
        case Several(of, _, high), tuple():
            return len(value) <= high and all(fits(of, each) for each in value)
    return False


S = TypeVar("S")
"""What plays steps: a session with a server."""


@dataclass(frozen=True)
class Kind(Generic[S]):
    """A kind of step: how it is played, and what its arguments are drawn from.

    `play` is given the session, and the arguments as keywords. `weight`: how many times as often as others it is drawn.
    """

    name: str
    play: Callable[..., None]
    arguments: dict[str, Choice]
    weight: int = 1

    def takes(self, step: Step) -> bool:
        """Whether a step is one of this kind: a find may be another device's, and was perhaps edited."""
        arguments = dict(step.arguments)
        return arguments.keys() == self.arguments.keys() and all(
            fits(self.arguments[name], value) for name, value in arguments.items()
        )
