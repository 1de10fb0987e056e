"""What a check is: an id that stays, the rule it holds a server to, and a small function that tries it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from userdev.errors import UserdevError

B = TypeVar("B")
"""The bench: one check's view of the server."""

CheckFunction = Callable[[B], None]


class Level(Enum):
    """The authority that a check goes by."""

    MUST = "MUST"
    """The specification, or the nature of the transport."""
    REFERENCE = "REFERENCE"
    """The reference implementations: what libvfio-user does or what QEMU insists on."""
    OPEN = "OPEN"
    """Nobody: the specification leaves it open, or programs that are in use differ. What a server does is told."""


class CheckFailed(UserdevError):
    """The server does not keep the rule; the text says what it did."""


class Skip(UserdevError):
    """The check does not apply to this server; the text says why."""


@dataclass(frozen=True)
class Check(Generic[B]):
    """One rule, one function. The id is `group/name`."""

    id: str
    title: str
    rule: str
    run: CheckFunction[B]
    level: Level
    dialects: frozenset[str] | None
    """Names of the protocol's dialects that have the rule; None is all."""

    @property
    def group(self) -> str:
        """The part of the id before the slash."""
        return self.id.partition("/")[0]


class Group(Generic[B]):
    """The checks of one group, as a table that functions enter themselves in."""

    def __init__(self, name: str, rule: str, *, dialects: frozenset[str] | None = None) -> None:
        """`rule` and `dialects` hold for every check that says nothing else."""
        self.name = name
        self.rule = rule
        self.dialects = dialects
        self.checks: list[Check[B]] = []

    def __iter__(self) -> Iterator[Check[B]]:
        return iter(self.checks)

    def check(
        self,
        name: str,
        *,
        rule: str = "",
        level: Level = Level.MUST,
        dialects: frozenset[str] | None = None,
    ) -> Callable[[CheckFunction[B]], CheckFunction[B]]:
        """Enter a function; the first line of its docstring is the check's title."""

        def enter(run: CheckFunction[B]) -> CheckFunction[B]:
            title = (run.__doc__ or "").partition("\n")[0].rstrip(".")
            self.add(name, title, run, rule=rule, level=level, dialects=dialects)
            return run

        return enter

    def add(
        self,
        name: str,
        title: str,
        run: CheckFunction[B],
        *,
        rule: str = "",
        level: Level = Level.MUST,
        dialects: frozenset[str] | None = None,
    ) -> None:
        """Enter a function as the check `name`, with its title."""
        self.checks.append(
            Check(f"{self.name}/{name}", title, rule or self.rule, run, level, dialects or self.dialects)
        )


def require(condition: object, what: str) -> None:
    """The server has to keep this.

    Raises:
        CheckFailed: it does not.
    """
    if not condition:
        raise CheckFailed(what)
