"""All benchmarks, or some, and one table of their figures beside their goals.

    python -m benchmarks [--only NAME] [--quick] [--against REVISION] [--json FILE]

Each runs as `python -m benchmarks.NAME` does, in a process of its own; goals.py has the goals. With `--against` each is
run in turn with the same one of another revision of this repository, which gets a work tree and an environment of its
own for the time: then the table has its figure too. Exit status 1 where a goal is missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.build import of_servers
from benchmarks.goals import BENCHMARKS, Benchmark, Figures, Goal

ROOT = Path(__file__).parent.parent
SET_UP = '. "$1"; set_up lint,test >&2; echo "$venv"'


@dataclass
class Row:
    """A figure of the table. `before` is that of the other revision."""

    benchmark: str
    what: str
    unit: str
    wanted: str
    value: float | None
    before: float | None
    met: bool | None
    """None: it was not measured."""


@dataclass(frozen=True)
class Tree:
    """A checkout, and the interpreter whose environment has it."""

    root: Path
    python: str


@contextmanager
def revision(name: str) -> Iterator[Tree]:
    """Another revision, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vfu-against-") as folder:
        root = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run([*git, "add", "--detach", str(root), name], capture_output=True, text=True, check=False)
        if added.returncode:
            raise click.ClickException(f"there is no revision {name}: {added.stderr.strip()}")
        try:
            set_up = ["sh", "-euc", SET_UP, str(root / "scripts/test"), str(root / "scripts/setup.sh")]
            environment = {name: value for name, value in os.environ.items() if name != "VFIO_USER_VENV"}
            venv = subprocess.run(set_up, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout.strip()
            yield Tree(root, f"{venv}/bin/python")
        finally:
            subprocess.run([*git, "remove", "--force", str(root)], check=True)


def measure(name: str, benchmark: Benchmark, tree: Tree, quick: bool) -> Figures | None:
    """Run one; what it has written, or None where it could not."""
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
        written = Path(folder) / "figures.json"
        arguments = [*benchmark.arguments, *(benchmark.quick if quick else ()), "--json", str(written)]
        began = time.monotonic()
        ran = subprocess.run([tree.python, "-m", f"benchmarks.{name}", *arguments], cwd=tree.root, check=False)
        print(f"({name}: {time.monotonic() - began:.0f} s, status {ran.returncode})", file=sys.stderr)
        return json.loads(written.read_text()) if written.exists() else None


def rows(name: str, benchmark: Benchmark, found: Figures | None, before: Figures | None) -> list[Row]:
    """The rows of one."""
    made = []
    for goal in benchmark.goals:
        value, other = _figure(goal, found), _figure(goal, before)
        met = None if value is None else goal.is_met(value)
        made.append(Row(name, goal.what, goal.unit, goal.wanted, value, other, met))
    return made


def _figure(goal: Goal, figures: Figures | None) -> float | None:
    """None: it was not measured, or not by that name."""
    try:
        return None if figures is None else goal.figure(figures)
    except (KeyError, IndexError, StopIteration, ValueError, TypeError):
        return None


def show(table: Sequence[Row], against: str) -> None:
    """Print the table."""
    print(f"\n{'benchmark':18}{'what':58}{'goal':>9}{'found':>9}" + (f"{against[:9]:>10}" if against else ""))
    for row in table:
        verdict = {True: "met", False: "MISSED", None: "not measured"}[row.met]
        before = f"{_told(row.before):>10}" if against else ""
        print(f"{row.benchmark:18}{row.what:58}{row.wanted:>9}{_told(row.value):>9}{before}  {row.unit:6} {verdict}")


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


@click.command(help=__doc__)
@click.option(
    "--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="This one; may be given several times."
)
@click.option("--quick", is_flag=True, help="Few turns: a first look.")
@click.option("--against", default="", help="A revision of this repository, in turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the table here.")
def main(only: tuple[str, ...], quick: bool, against: str, json_file: Path | None) -> None:
    table: list[Row] = []
    here = Tree(ROOT, sys.executable)
    load = os.getloadavg()[0]
    with revision(against) if against else _nothing() as there:
        for name in only or BENCHMARKS:
            benchmark = BENCHMARKS[name]
            found = measure(name, benchmark, here, quick)
            before = measure(name, benchmark, there, quick) if there else None
            table += rows(name, benchmark, found, before)
    show(table, against)
    build = of_servers()
    print(f"ours: {build}; load before: {load:.1f}, after: {os.getloadavg()[0]:.1f}")
    if json_file:
        written: dict[str, Any] = {
            "when": time.time(),
            "against": against,
            "quick": quick,
            "load": load,
            "build": build,
        }
        json_file.write_text(json.dumps(written | {"rows": [asdict(row) for row in table]}, indent=2) + "\n")
    sys.exit(any(row.met is not True for row in table))


@contextmanager
def _nothing() -> Iterator[None]:
    yield None


if __name__ == "__main__":
    main()
