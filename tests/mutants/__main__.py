"""`scripts/mutants`: mutants that survived, and the score by room."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Container, Sequence
from pathlib import Path

import click

from tests.mutants.judging import Fate, Journal, Judge
from tests.mutants.mutant import Mutant
from tests.mutants.reach import Measured, measure
from tests.mutants.rooms import ROOMS
from tests.mutants.sampling import sample
from tests.seeded_bugs.planting import ROOT
from tests.seeded_bugs.warm import with_collected_tests

PATIENCE_SECONDS = 5.0
PATIENCE_FACTOR = 20
"""A test may take this much longer than it did when it was measured."""


@click.command()
@click.argument("rooms", nargs=-1, type=click.Choice(list(ROOMS)))
@click.option("--seed", type=int, help="The same seed draws the same mutants of the same code; a new one by default.")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Mutants of each room.")
@click.option("--again", is_flag=True, help="Try again what survived of this seed: there are tests for it now.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Tests at once.")
@click.option("--tests", multiple=True, metavar="PATTERN", help="Files of tests that count; all by default.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "results/mutants",
    help="What was measured is kept here: a run with the same seed that was interrupted goes on.",
)
def main(
    rooms: tuple[str, ...],
    seed: int | None,
    count: int,
    again: bool,
    jobs: int,
    tests: tuple[str, ...],
    results: Path,
) -> None:
    """Draw mutants of each room, run each against the unit tests that reach its lines, and print what survived.

    The status is 0 whatever the score is: a sample is for reading.
    """
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}")
    results = results.resolve()
    reach = measure(results, tests, jobs=jobs)
    known = {Fate.KILLED} if again else set(Fate)
    scores: list[str] = []

    def work() -> None:
        folder = results / f"seed-{seed}"
        scores.extend(_judged(room, sample(room, seed, count), reach, folder, jobs, known) for room in rooms or ROOMS)

    def limit(test: str) -> float:
        return PATIENCE_SECONDS + PATIENCE_FACTOR * reach.seconds.get(test, 0.0)

    with_collected_tests(sorted(reach.files), limit, work)
    click.echo(f"\nseed {seed}\n" + "\n".join(scores))


def _judged(
    room: str, drawn: Sequence[Mutant], reach: Measured, folder: Path, jobs: int, known: Container[Fate | None]
) -> str:
    """Run a room's mutants but for those whose fate is known, say what has survived, and return its score."""
    before = _processor_seconds()
    journal = Journal(folder / f"{room}.jsonl")
    left = [mutant for mutant in drawn if journal.fates.get(mutant.id) not in known]
    for mutant, fate, test in Judge.of_forks(reach, jobs=jobs).fates(left):
        journal.enter(mutant, fate, test)
        if fate is not Fate.KILLED:
            click.echo(_told(mutant, fate))
    killed = sum(journal.fates[mutant.id] is Fate.KILLED for mutant in drawn)
    percent = 100 * killed / len(drawn) if drawn else 100
    score = f"{room:12} {killed:4}/{len(drawn):<4} killed {percent:5.1f} %  {_processor_seconds() - before:5.0f} CPU s"
    click.echo(score)
    return score


def _processor_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    return sum(os.times()[:4])


def _told(mutant: Mutant, fate: Fate) -> str:
    lines = [f"- {line}" for line in mutant.old.splitlines()] + [f"+ {line}" for line in mutant.new.splitlines()]
    return "\n  ".join([f"{fate}: {mutant.file}:{mutant.line}", *lines])


if __name__ == "__main__":
    sys.exit(main())
