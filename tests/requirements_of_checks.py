"""What the checks of a catalogue require, each place of it, and which of them has found somebody.

A check fails by its first requirement that is not kept: that the check can fail says nothing of those behind it. A
requirement that no server fails might be written the wrong way round, or never be come to.
"""

from __future__ import annotations

import ast
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from userdev.conformance import Check, CheckFailed, Workbench

B = TypeVar("B", bound=Workbench)

REQUIRE = {"require", "CheckFailed"}


class Place(NamedTuple):
    """Lines of a file."""

    file: str
    first: int
    last: int


class Requirements:
    """Of the catalogue in a package."""

    def __init__(self, package: ModuleType, of_bench: Collection[str]) -> None:
        """`of_bench`: methods of its bench that require something of what they are given."""
        self._places: dict[Place, str] = {}
        self._found: set[Place] = set()
        for path in Path(str(package.__file__)).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and _requires(node.func, of_bench):
                    self._places[Place(str(path), node.lineno, node.end_lineno or 0)] = ast.unparse(node)

    def __len__(self) -> int:
        return len(self._places)

    def watched(self, check: Check[B]) -> Check[B]:
        """The same check, whose failures are known here."""

        def run(bench: B) -> None:
            try:
                check.run(bench)
            except CheckFailed as failure:
                self._note(failure)
                raise

        return replace(check, run=run)

    def that_found_nobody(self) -> list[str]:
        """Their places and texts, in no order that matters."""
        left = sorted(self._places.keys() - self._found)
        return [f"{Path(place.file).name}:{place.first}: {self._places[place]}" for place in left]

    def _note(self, failure: CheckFailed) -> None:
        trace = failure.__traceback__
        while trace is not None:
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
            self._found |= {place for place in self._places if place.file == file and place.first <= line <= place.last}
            trace = trace.tb_next


def _requires(function: ast.expr, of_bench: Collection[str]) -> bool:
    match function:
        case ast.Name(name):
            return name in REQUIRE
        case ast.Attribute(_, name):
            return name in of_bench
    return False
