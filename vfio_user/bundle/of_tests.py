"""Bundles of guest-driven tests: each test keeps its own among its results, and whoever runs them moves it."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from userdev.errors import UserError
from vfio_user.bundle.keeping import IN_RESULTS, Keeping
from vfio_user.bundle.model import Recipe
from vfio_user.bundle.packing import USUAL_MIB
from vfio_user.harness.cell import Cell

DATA = "data"
"""The folder in avocado's of a test that has what the test leaves."""


OUTSIDE = "outside"
"""The folder, on a night's slot, with files of tests that are not in the folder of the night."""


def keeping_test(test: str, cell: Cell) -> Keeping:
    """What keeps a bundle of a test of avocado's, as its cell says; `test` is FILE:CLASS.METHOD."""
    path, colon, name = test.partition(":")
    path = path.removeprefix(OUTSIDE) if path.startswith(f"{OUTSIDE}/") else path
    own = Path(path)
    word = f"{own.name if own.parent.name == 'avocado_tests' else path}{colon}{name}"
    said = dataclasses.replace(cell, bundle="", bundle_size=0, trace=False)
    recipe = Recipe(command="test-e2e", arguments=(word,), cell=dataclasses.asdict(said))
    return Keeping(cell.bundle, recipe, of=f"vfio-user test-e2e {word}", most=(cell.bundle_size or USUAL_MIB) << 20)


def keeping_pytest(test: str, options: Sequence[str], qemu: str, wanted: str) -> Keeping:
    """What keeps a bundle of a test of pytest's, as `wanted`; `test` is its id, `options` are those of the fixtures."""
    words = (test, *options, *(("--qemu", qemu) if qemu else ()))
    return Keeping(wanted, Recipe(command="pytest", arguments=words), of=f"pytest {shlex.join(words)}")


def bundle_of(results: Path) -> Path | None:
    """The bundle that a test of avocado's has left in its folder; None where it has not."""
    place = results / DATA / IN_RESULTS
    return place if place.is_dir() else None


def moved(place: Path, folder: Path, test: str) -> Path:
    """A bundle moved to `folder`, by the test's name; where it is then.

    Raises:
        UserError: it cannot be moved.
    """
    target = folder / re.sub(r"[^\w.+=-]+", "-", test).strip("-")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(place, target)
    except OSError as error:
        raise UserError(f"the bundle {place} cannot be moved to {target}: {error.strerror or error}") from error
    return target
