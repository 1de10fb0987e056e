"""What a check is: an id that stays, the rule it holds a server to, and a small function that tries it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from userdev.errors import UserdevError, meant

B = TypeVar("B")
"""The bench: one check's view of the server."""

CheckFunction = Callable[[B], None]

HURRIED_SECONDS = 0.5
"""That an answer is waited for which will most likely not come."""

_NAME = re.compile("[a-z0-9]+(-[a-z0-9]+)*")


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

    def __init__(self, what: str, request: str = "") -> None:
        """`request` is what it does not do, where that is one that whoever needs it cannot do without."""
        super().__init__(what)
        self.request = request
        self.level = Level.MUST
        """The authority of the rule, where that is no check's."""


class Skip(UserdevError):
    """The check does not apply to this server; the text says why."""


class Unmet(UserdevError):
    """What the check needs first is the rule of another check, `id`, and went wrong; the text says how."""

    def __init__(self, id: str, what: str, request: str = "") -> None:
        """`request` as of `CheckFailed`."""
        super().__init__(what)
        self.id = id
        self.request = request


@contextmanager
def relying(id: str) -> Iterator[None]:
    """Have what goes wrong in here be the finding of the check `id`, not of the one that is under way.

    Raises:
        Unmet: instead of any error of the server.
    """
    try:
        yield
    except (Skip, Unmet):
        raise
    except UserdevError as error:
        raise Unmet(id, str(error), getattr(error, "request", "")) from error


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
    needs: tuple[str, ...] = ()
    """Ids of checks before this one: where one of them has failed, a failure of this one says nothing of its own."""
    revision: str = ""
    """For `Level.REFERENCE`: from which revision on a reference does so, where an older one in use does not."""

    @property
    def group(self) -> str:
        """The part of the id before the slash."""
        return self.id.partition("/")[0]


class Group(Generic[B]):
    """The checks of one group, as a table that functions enter themselves in."""

    def __init__(
        self, name: str, rule: str, *, dialects: frozenset[str] | None = None, needs: tuple[str, ...] = ()
    ) -> None:
        """`rule` and `dialects` hold for every check that says nothing else, and `needs` for all."""
        self.name = name
        self.rule = rule
        self.dialects = dialects
        self.needs = needs
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
        needs: tuple[str, ...] = (),
        revision: str = "",
    ) -> Callable[[CheckFunction[B]], CheckFunction[B]]:
        """Enter a function; the first line of its docstring is the check's title."""

        def enter(run: CheckFunction[B]) -> CheckFunction[B]:
            title = (run.__doc__ or "").partition("\n")[0].rstrip(".")
            self.add(name, title, run, rule=rule, level=level, dialects=dialects, needs=needs, revision=revision)
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
        needs: tuple[str, ...] = (),
        revision: str = "",
    ) -> None:
        """Enter a function as the check `name`, with its title.

        Raises:
            TypeError: the level is none.
            ValueError: the name is none, or there already, or the check has no title.
        """
        id = f"{self.name}/{name}"
        if not isinstance(level, Level):
            raise TypeError(f"check {id}: level={level!r} is none of {', '.join(map(str, Level))}")
        if not _NAME.fullmatch(name):
            raise ValueError(f"check {id}: a name is small letters, digits and hyphens, as reads-twice")
        if any(check.id == id for check in self.checks):
            raise ValueError(f"check {id} is there twice: results are told apart by it")
        if not title:
            raise ValueError(f"check {id} has no title: the first line of its function's docstring")
        all_needs = tuple(need for need in (*self.needs, *needs) if need != id)
        self.checks.append(
            Check(id, title, rule or self.rule, run, level, dialects or self.dialects, all_needs, revision)
        )


def require_known_needs(checks: Sequence[Check[B]], catalogue: Iterable[Check[B]]) -> None:
    """See to it that every check needs only what there is: one of them, or of the catalogue.

    Raises:
        ValueError: one needs another; nothing would ever tell that it relies on nothing.
    """
    known = {check.id for check in (*checks, *catalogue)}
    for id, need in ((check.id, need) for check in checks for need in check.needs if need not in known):
        raise ValueError(f"check {id} needs {need!r}, and there is no such check. {meant(need, known)}".rstrip())


def require(condition: object, what: str) -> None:
    """The server has to keep this.

    Raises:
        CheckFailed: it does not.
    """
    if not condition:
        raise CheckFailed(what)
