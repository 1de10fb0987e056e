"""Combinations by pairs: each two values meet, and what was drawn once stays."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.test_nightly_plan import PLAN, written
from userdev.errors import UserError
from vfio_user.nightly import matrix
from vfio_user.nightly.cells import cells_of
from vfio_user.nightly.matrix import Drawn, Row, draw, draw_plan, write_lock
from vfio_user.nightly.plan import Plan, read_plan

AXES: dict[str, tuple[Any, ...]] = {
    "server": ("a", "b", "c"),
    "qemu": ("usual", "sid"),
    "cpus": (1, 2),
    "iommu": (False, True),
    "interpose": (False, True),
}


def allowed(axes: Mapping[str, Sequence[Any]], *without: Row) -> list[Row]:
    rows = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [row for row in rows if not any(left_out.items() <= row.items() for left_out in without)]


def pairs(rows: Sequence[Row]) -> set[Any]:
    return {pair for row in rows for pair in itertools.combinations(row.items(), 2)}


@functools.cache
def drawn_once() -> Sequence[Row]:
    """The rows of all that `AXES` allow."""
    return draw(AXES, allowed(AXES))


def test_each_two_values_meet_in_a_fraction_of_all_rows() -> None:
    everything = allowed(AXES)
    rows = drawn_once()
    assert pairs(rows) == pairs(everything)
    assert len(rows) <= 10 < len(everything)


def test_what_is_left_out_is_nowhere_and_the_rest_meets() -> None:
    without: tuple[Row, ...] = ({"server": "a", "iommu": True}, {"qemu": "sid", "cpus": 2, "interpose": True})
    everything = allowed(AXES, *without)
    rows = draw(AXES, everything)
    assert pairs(rows) == pairs(everything)
    assert not any(left_out.items() <= row.items() for row in rows for left_out in without)


def test_nothing_is_drawn_again_where_all_is_there() -> None:
    rows = drawn_once()
    assert draw(AXES, allowed(AXES), rows) == rows
    assert draw(AXES, allowed(AXES), [*rows, *rows]) == rows, "one that is locked twice is one"


@for_each(
    [{"server": ("a", "b", "c", "d")}, {"cpus": (1, 2, 4)}, {"memory": (512, 1024)}], ids=lambda more: next(iter(more))
)
def test_something_new_adds_rows_and_changes_none(more: dict[str, tuple[Any, ...]]) -> None:
    rows = drawn_once()
    axes = AXES | more
    drawn = draw(axes, allowed(axes), rows)
    before = [{"memory": 512, **row} if "memory" in more else row for row in rows]
    assert drawn[: len(rows)] == before
    assert pairs(drawn) == pairs(allowed(axes))


def test_what_is_gone_from_the_plan_is_gone_and_the_rest_stays() -> None:
    rows = drawn_once()
    axes = AXES | {"server": ("a", "b")}
    drawn = draw(axes, allowed(axes), rows)
    kept = [row for row in rows if row["server"] != "c"]
    assert drawn[: len(kept)] == kept
    assert pairs(drawn) == pairs(allowed(axes))


@for_each([{"server": ("a", "b", "c")}, {"server": ("a",), "cpus": (1, 2)}, {"server": ("a",)}])
def test_every_value_has_a_row_where_there_is_nothing_to_meet(axes: dict[str, tuple[Any, ...]]) -> None:
    axes = {"interpose": (False,), **axes}
    assert draw(axes, allowed(axes)) == allowed(axes)


def test_ids_are_the_same_in_the_next_night(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    drawn = draw_plan(plan)
    assert drawn.is_new
    write_lock(plan, drawn)
    again = draw_plan(read_plan(written(tmp_path)))
    assert not again.is_new
    assert cells_of(plan, again) == cells_of(plan, drawn)
    assert plan.digest(again.text()) == plan.digest(drawn.text())


def _drawn_anew(plan: Plan) -> Drawn:
    matrix._table.cache_clear()
    return draw_plan(plan)


def test_without_a_lock_file_the_same_is_drawn_each_time(tmp_path: Path) -> None:
    """What --list and --dry-run name is what is run, and who draws numbers of his own draws the same as without us."""
    plan = read_plan(written(tmp_path))
    random.seed(7)
    drawn, again = (_drawn_anew(plan) for _ in range(2))
    after = random.random()
    random.seed(7)
    assert after == random.random()
    assert again == drawn
    assert draw(AXES, allowed(AXES)) == drawn_once()


def test_a_lock_file_has_a_line_for_each_combination(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    drawn = draw_plan(plan)
    lines = drawn.text().splitlines()
    assert sum('"server"' in line for line in lines) == sum(map(len, drawn.rows.values()))


@for_each(["", "[]", "{}", '{"schema": 2, "groups": {}}', '{"schema": 1, "groups": {"first": [1]}}', "[" * 2000])
def test_what_is_no_lock_file_is_refused(text: str, tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    plan.lock_path.write_text(text)
    with pytest.raises(UserError, match=r"plan\.lock\.json"):
        draw_plan(plan)


def test_a_group_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path, PLAN.replace("{server: theirs, cpus: 2}", "{iommu: off}")))
    with pytest.raises(UserError, match="first"):
        draw_plan(plan)
