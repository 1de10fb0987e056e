"""Which mutants are tried: drawn by room and seed, those left out that somebody has judged to be equivalent."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.mutants.mutant import Mutant
from tests.mutants.mutations import drafts
from tests.mutants.rooms import files

EQUIVALENT = Path(__file__).parent / "equivalent.yaml"


@dataclass(frozen=True)
class Equivalent:
    """A mutant that changes nothing that anybody could see."""

    file: str
    old: str
    new: str
    why: str

    def is_one(self, mutant: Mutant) -> bool:
        return (mutant.file, mutant.old, mutant.new) == (self.file, self.old.strip(), self.new.strip())


def equivalents() -> list[Equivalent]:
    return [Equivalent(**entry) for entry in yaml.safe_load(EQUIVALENT.read_text())]


def sample(room: str, seed: int, count: int) -> list[Mutant]:
    """As many mutants of the room, in the order in which they were drawn: a longer sample begins with a shorter one."""
    known = equivalents()
    everything = [draft for file in files(room) for draft in drafts(file)]
    random.Random(f"{seed} {room}").shuffle(everything)
    drawn: dict[str, Mutant] = {}
    for draft in everything:
        if len(drawn) == count:
            break
        mutant = draft.mutant()
        if mutant is not None and not any(one.is_one(mutant) for one in known):
            drawn[mutant.id] = mutant
    return list(drawn.values())
