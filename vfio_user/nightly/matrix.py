"""Combinations of a group's values: all, or so few that each two values meet.

Avocado's CIT varianter finds the few. It draws by the interpreter's chances (avocado 113), which have one seed here for
as many values, so that a plan without a lock file has the same cells each time it is looked at. With a value more, or
another avocado, they would be others: what was drawn is kept in the lock file, and drawn again is only what is missing.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from userdev.errors import UserError, about
from vfio_user.extras import needing
from vfio_user.nightly.plan import USUALLY, Plan, Value

Row = Mapping[str, Value]
"""A combination: a value for every axis."""
Axes = Mapping[str, Sequence[Value]]

LOCK_SCHEMA = 1
MOST_COMBINATIONS = 20_000
"""Of a group, tried or not: they are gone through one by one."""

_Pair = tuple[tuple[str, Value], tuple[str, Value]]


class Drawn(NamedTuple):
    """The combinations of a plan's groups, and whether some of them are not in its lock file yet."""

    rows: Mapping[str, list[Row]]
    is_new: bool

    def text(self) -> str:
        """The lock file's: a combination is a line, so that a difference can be read."""
        groups = [
            f"  {json.dumps(name)}: [\n" + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"
            for name, rows in self.rows.items()
        ]
        return f'{{\n "schema": {LOCK_SCHEMA},\n "groups": {{\n' + ",\n".join(groups) + "\n }\n}\n"


def draw_plan(plan: Plan) -> Drawn:
    """The combinations of every group: those of the lock file that still are some, and what has to be added.

    Raises:
        UserError: the lock file is none, a group has more combinations than can be gone through, or none.
    """
    locked = read_lock(plan.lock_path)
    rows: dict[str, list[Row]] = {}
    for name, group in plan.text.groups.items():
        axes = group.axes()
        if math.prod(map(len, axes.values())) > MOST_COMBINATIONS:
            raise UserError(f"{plan.path}: group {name} has more than {MOST_COMBINATIONS:,} combinations")
        everything = _allowed(axes, group.without)
        if not everything:
            raise UserError(f"{plan.path}: group {name}: nothing is left of it, `without` leaves all out")
        rows[name] = everything if group.combine == "all" else draw(axes, everything, locked.get(name, ()))
    return Drawn(rows, any(list(locked.get(name, ())) != found for name, found in rows.items()))


def draw(axes: Axes, everything: Sequence[Row], locked: Iterable[Row] = ()) -> list[Row]:
    """Rows of `everything` in which each two values meet that meet there at all: first those of `locked`.

    A locked row without an axis of today's has its usual value there, for that it had.
    """
    rows = _kept(axes, everything, locked)
    missing = {pair for row in everything for pair in _pairs(row)} - {pair for row in rows for pair in _pairs(row)}
    if not missing:
        return rows
    candidates = _by_cit(axes, everything)
    while missing:
        best = max(candidates, key=lambda row: len(missing & _pairs(row)))
        if not missing & _pairs(best):
            candidates = list(everything)
            continue
        rows.append(best)
        missing -= _pairs(best)
    return rows


def read_lock(path: Path) -> Mapping[str, list[Row]]:
    """The rows of a lock file by group; none where there is no file.

    Raises:
        UserError: it is not one.
    """
    hint = "remove it, and all is drawn anew; then ids are others than before"
    try:
        content: Any = json.loads(path.read_text())
        if content["schema"] != LOCK_SCHEMA:
            raise UserError(f"{path}: schema {content['schema']!r} is of another version", hint=hint)
        return {str(name): [dict(row) for row in rows] for name, rows in content["groups"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no lock file of a plan: {error}", hint=hint) from None


def write_lock(plan: Plan, drawn: Drawn) -> None:
    """Keep what was drawn beside the plan."""
    path = plan.folder / plan.lock_path.name  # absolute: the plan's may be from where the night was begun
    with about(plan.lock_path):
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(drawn.text())
        beside.replace(path)


def _allowed(axes: Axes, without: Collection[Row]) -> list[Row]:
    rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [row for row in rows if not any(left_out.items() <= row.items() for left_out in without)]


def _kept(axes: Axes, everything: Sequence[Row], locked: Iterable[Row]) -> list[Row]:
    rows: list[Row] = []
    for row in locked:
        completed = {axis: row.get(axis, USUALLY.get(axis)) for axis in axes}
        found = next((allowed for allowed in everything if allowed == completed), None)
        if found is not None and found not in rows:
            rows.append(found)
    return rows


def _pairs(row: Row) -> frozenset[_Pair]:
    """Each two values of a row; an axis that has one value only meets all by itself."""
    return frozenset(itertools.combinations(row.items(), 2))


def _by_cit(axes: Axes, everything: Sequence[Row]) -> list[Row]:
    """What avocado's varianter draws, without what is left out."""
    varied = [axis for axis, values in axes.items() if len(values) > 1]
    if len(varied) < 2:
        return list(everything)
    try:
        table = _table(tuple(len(axes[axis]) for axis in varied))
    except ValueError:  # of 2 x 2 x 2 every third time (avocado 113): it takes away the last row, and draws from none
        return list(everything)
    fixed = {axis: values[0] for axis, values in axes.items() if len(values) == 1}
    drawn = [fixed | {axis: axes[axis][index] for axis, index in zip(varied, row, strict=True)} for row in table]
    return [row for row in everything if row in drawn] or list(everything)


@functools.cache  # the same each time, and groups are alike
def _table(sizes: tuple[int, ...]) -> Sequence[Sequence[int]]:
    """Of so many values, numbers of theirs in which each two meet."""
    with needing("test", "drawing combinations"):
        from avocado_varianter_cit.Cit import Cit  # brings avocado
    before = random.getstate()
    random.seed(str(sizes))  # so that what --list names without a lock file is what is run
    try:
        table: Sequence[Sequence[int]] = Cit(list(sizes), 2, set()).compute()
    finally:
        random.setstate(before)
    return table
