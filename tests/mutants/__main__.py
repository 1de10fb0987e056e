"""`scripts/mutants`: mutants that survived, and the score by room."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import click

from tests.mutants.judging import Fate, Journal, judge
from tests.mutants.mutant import Mutant
from tests.mutants.reach import measure
from tests.mutants.rooms import ROOMS
from tests.mutants.sampling import sample
from tests.seeded_bugs.planting import ROOT


@click.command()
@click.argument("rooms", nargs=-1, type=click.Choice(list(ROOMS)))
@click.option("--seed", type=int, help="The same seed draws the same mutants of the same code; a new one by default.")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Mutants of each room.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Tests at once.")
@click.option("--tests", multiple=True, metavar="PATH", help="Only these of the tests; all by default.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "results/mutants",
    help="What was measured is kept here: a run with the same seed that was interrupted goes on.",
)
def main(
    rooms: tuple[str, ...], seed: int | None, count: int, jobs: int, tests: tuple[str, ...], results: Path
) -> None:
    """Draw mutants of each room, run each against the unit tests that reach its lines, and print what survived.

    The status is 0 whatever the score is: a sample is for reading.
    """
    seed = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}")
    reach = measure(results.resolve(), tests, jobs=jobs)
    scores: list[str] = []
    for room in rooms or ROOMS:
        began = time.monotonic()
        drawn = sample(room, seed, count)
        journal = Journal(results / f"seed-{seed}" / f"{room}.jsonl")
        left = [mutant for mutant in drawn if mutant.id not in journal.fates]
        for mutant, fate in judge(left, reach, jobs=jobs):
            journal.enter(mutant, fate)
            if fate is not Fate.KILLED:
                click.echo(_told(mutant, fate))
        killed = sum(journal.fates[mutant.id] is Fate.KILLED for mutant in drawn)
        score = 100 * killed / len(drawn) if drawn else 100
        scores.append(f"{room:12} {killed:4}/{len(drawn):<4} killed {score:5.1f} %  {time.monotonic() - began:5.0f} s")
        click.echo(scores[-1])
    click.echo(f"\nseed {seed}\n" + "\n".join(scores))


def _told(mutant: Mutant, fate: Fate) -> str:
    lines = [f"- {line}" for line in mutant.old.splitlines()] + [f"+ {line}" for line in mutant.new.splitlines()]
    return "\n  ".join([f"{fate}: {mutant.file}:{mutant.line}", *lines])


if __name__ == "__main__":
    sys.exit(main())
