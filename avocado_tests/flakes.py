"""Runs the guest-driven tests N times and counts every verdict that changed: `scripts/flakes N`.

A verdict is avocado's status of a test, with XFAIL for a known issue. One that differs from the test's most frequent
verdict has changed; the goal is none in a hundred runs. That takes a night: with `--resume` the whole runs of one that
was interrupted count, and it goes on behind them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from userdev.errors import UserError
from vfio_user.harness import RESULTS_VARIABLE, XFAIL, results_folder, results_root

Verdicts = Mapping[str, str]
"""Of one run: a test's name and its verdict."""


RESUME = "--resume"
_ASKED = "asked.json"


def main(arguments: list[str]) -> int:
    resume, arguments = RESUME in arguments, [argument for argument in arguments if argument != RESUME]
    if not arguments or not arguments[0].isdigit() or not int(arguments[0]):
        raise UserError("say how many times", hint="scripts/flakes 100")
    asked = arguments[1:]
    folder = _last(asked) if resume else results_folder("flakes")
    (folder / _ASKED).write_text(json.dumps(asked))
    runs: list[Verdicts] = []
    for number in range(1, int(arguments[0]) + 1):
        there = read_run(folder / str(number))
        runs.append(run_once(folder / str(number), asked) if there is None else there)
        counts = Counter(runs[-1].values())
        told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        before = "" if there is None else " (from before)"
        print(f"run {number}{before}: {told}; {changes(runs)} changed so far", flush=True)
    for test, counts in sorted(tally(runs).items()):
        if len(counts) > 1:
            print(f"{test}: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}")
    print(f"{changes(runs)} verdicts changed in {len(runs)} runs of {len(tally(runs))} tests; evidence: {folder}")
    return 1 if changes(runs) else 0


def _last(asked: Sequence[str]) -> Path:
    """The folder of the last time that the same tests were asked for."""
    parent = results_root()
    for folder in sorted(parent.glob("flakes-*"), reverse=True):
        noted = folder / _ASKED
        if noted.exists() and json.loads(noted.read_text()) == list(asked):
            return folder
    raise UserError(f"{parent} has no run of these tests to go on with", hint=f"leave {RESUME} out")


def run_once(folder: Path, arguments: list[str]) -> Verdicts:
    """One run of the suite, with its evidence in `folder`; what an interrupted one has left there is thrown away."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with (folder / "output.log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vfio_user", "test-e2e", *arguments],
            env={**os.environ, RESULTS_VARIABLE: str(folder)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode < 0 or done.returncode == _INTERRUPTED:
        by = f" by signal {-done.returncode}" if done.returncode < 0 else ""
        raise UserError(f"run {folder.name} was ended{by}", hint=f"go on with {RESUME}")
    if done.returncode not in _OF_VERDICTS:
        said = (folder / "output.log").read_text(errors="replace")[-2000:]
        raise UserError(f"run {folder.name} could not be done", hint=f"go on with {RESUME} once it can:\n{said}")
    (folder / _WHOLE).touch()
    found = read_run(folder)
    if found is None:
        raise UserError("a run gave no results", hint=(folder / "output.log").read_text()[-2000:])
    return found


_INTERRUPTED = 130
_OF_VERDICTS = (0, 1)
"""Exit statuses of a run whose results are verdicts: not of one on a full disk, say, though it has some."""

_WHOLE = "whole"
"""A file in the folder of a run that came to its end: avocado writes results of one that was interrupted too."""


def read_run(folder: Path) -> Verdicts | None:
    """The verdicts of a run that came to its end; None where there is none in this folder."""
    found = sorted(folder.glob("job-*/results.json"))
    if not found or not (folder / _WHOLE).exists():
        return None
    return verdicts(json.loads(found[-1].read_text()))


def verdicts(results: Mapping[str, Sequence[Mapping[str, str]]]) -> Verdicts:
    """From avocado's results.json. A test's name there begins with the folder of the checkout."""
    return {
        Path(test["name"]).name: XFAIL if str(test.get("fail_reason", "")).startswith(XFAIL) else test["status"]
        for test in results["tests"]
    }


def tally(runs: Iterable[Verdicts]) -> dict[str, Counter[str]]:
    """How often each test had each verdict; one that was not in a run at all is "missing" there."""
    runs = list(runs)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for test in {name for run in runs for name in run}:
        counts[test].update(run.get(test, "missing") for run in runs)
    return dict(counts)


def changes(runs: Iterable[Verdicts]) -> int:
    """Verdicts that differ from the most frequent one of their test."""
    return sum(counts.total() - counts.most_common(1)[0][1] for counts in tally(runs).values())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"flakes: {error}\n  {error.hint}")
