"""Which mutants are tried: drawn by room and seed, those left out that somebody has judged to be equivalent."""

from __future__ import annotations

import random

from tests.mutants.equivalent import equivalents
from tests.mutants.mutant import Mutant
from tests.mutants.mutations import drafts
from tests.mutants.rooms import files


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
