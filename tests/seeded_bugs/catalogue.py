"""The bugs as they are written down, and what is wrong with the way they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

from tests.seeded_bugs.planting import ROOT

FOLDER = Path(__file__).parent / "bugs"


class CatalogueError(Exception):
    """An entry that cannot be used."""


@dataclass(frozen=True)
class Bug:
    """One bug: whole lines `old` of `file` become `new`, at whatever indentation they have there."""

    id: str
    what: str
    """What goes wrong, as a bug report would say it."""
    file: str
    """From the root of the checkout."""
    old: str
    new: str
    test: str
    """What must fail: pytest's name of it; for `guest` avocado's (FILE:CLASS.METHOD)."""
    guest: bool = False
    """Only a guest in QEMU can tell."""

    @property
    def module(self) -> str:
        """The module's name in `import`."""
        return module_name(self.file)

    @property
    def path(self) -> Path:
        return ROOT / self.file

    @cached_property
    def planted(self) -> str:
        """The module's text with the bug in it.

        Raises:
            CatalogueError: the old lines are not there, or there more than once: the entry no longer fits the code.
        """
        return self.planted_in(self.path.read_text())

    def planted_in(self, text: str) -> str:
        """The same of this text, which may have other bugs in other places.

        Raises:
            CatalogueError: the old lines are not there, or there more than once.
        """
        lines = text.splitlines()
        old = self.old.rstrip().splitlines()
        starts = [at for at in range(len(lines) - len(old) + 1) if lines[at].endswith(old[0])]
        places = [at for at in starts if _matches(lines[at : at + len(old)], old)]
        if len(places) != 1:
            raise CatalogueError(
                f"bug {self.id} no longer fits {self.file}: its old lines are there {len(places)} times, not once"
            )
        (at,) = places
        lines[at : at + len(old)] = [_indent(lines[at]) + line for line in self.new.rstrip().splitlines()]
        return "\n".join(lines) + "\n"


def module_name(file: str) -> str:
    """The name in `import` of a file of the checkout."""
    for folder in ("servers/", "guest_images/programs/"):  # a guest has its programs in one folder
        file = file.removeprefix(folder)
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _matches(lines: Sequence[str], old: Sequence[str]) -> bool:
    indent = _indent(lines[0])
    return all(line == (indent + wanted if wanted else "") for line, wanted in zip(lines, old, strict=True))


@cache
def load() -> Mapping[str, Bug]:
    """All bugs by id, in the order of the files.

    Raises:
        CatalogueError: an entry is malformed, or an id is there twice.
    """
    bugs: dict[str, Bug] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for entry in yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            try:
                bug = Bug(**entry)
            except TypeError as error:
                raise CatalogueError(f"{path.name}: {entry.get('id', entry)}: {error}") from None
            if bug.id in bugs:
                raise CatalogueError(f"{path.name}: there are two bugs {bug.id}")
            bugs[bug.id] = bug
    return bugs
