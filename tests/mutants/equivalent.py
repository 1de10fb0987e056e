"""Mutants that somebody has judged to change nothing that anybody could see (`equivalent.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutants.mutant import Mutant

EQUIVALENT = Path(__file__).parent / "equivalent.yaml"


@dataclass(frozen=True)
class Equivalent:
    """One of them, with the reason; `old` and `new` are lines as `scripts/mutants` prints them."""

    file: str
    old: str
    new: str
    why: str

    def is_one(self, mutant: Mutant) -> bool:
        return (mutant.file, mutant.old, mutant.new) == (self.file, self.old.strip(), self.new.strip())


def equivalents() -> list[Equivalent]:
    return [Equivalent(**entry) for entry in yaml.safe_load(EQUIVALENT.read_text())]
