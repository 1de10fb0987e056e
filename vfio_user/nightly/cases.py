"""The cases of a night: every test of a group in every cell, as avocado's suites and variants have them.

A group is a suite, its cells are the variants (`run.dict_variants`). Avocado keeps no parameters in its results, so a
variant's id is the cell's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from userdev.errors import UserError
from vfio_user.avocado_job.job import avocado
from vfio_user.avocado_job.naming import missing_test, name_tests
from vfio_user.avocado_job.selection import NIGHTLY
from vfio_user.harness.cell import CELL_PARAMETER
from vfio_user.nightly.abilities import Abilities
from vfio_user.nightly.bundles import Bundles
from vfio_user.nightly.cells import NightCell
from vfio_user.nightly.plan import Plan
from vfio_user.nightly.summary import case_id

ONCE = "once"
"""The tag of tests that depend on no cell, and may start nothing of one."""

ID_PARAMETER = "cell_id"
"""The parameter that has a cell's id, by which avocado names the variant."""

Tags = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A test in a cell. `skipped` says why it is not run there, where it is not."""

    cell: NightCell
    test: str
    skipped: str = ""
    depends_on_cell: bool = True
    is_of_its_kind: bool = False
    """It says that it is of devices of the kind that its cell has: also what is made for it is one."""

    @property
    def id(self) -> str:
        """The same in every night."""
        return case_id(self.cell.id, self.test)


@dataclass(frozen=True)
class Suite:
    """The cases of a group; `runnables` are avocado's, of the test files, without a variant."""

    name: str
    cases: Sequence[Case]
    suite: Any
    tags: Mapping[str, Tags] = field(default_factory=dict)


def tests_of(references: Sequence[str], base: Path) -> Mapping[str, Tags]:
    """The tags of every test that these references name, by FILE:CLASS.METHOD, in avocado's order.

    A file is called as from the folder `base` (`name_of`).

    Raises:
        MissingTest: avocado finds none of one.
        UserError: it refuses them.
    """
    from avocado.core.suite import TestSuite

    _, TestSuiteError = avocado()
    try:
        suite = TestSuite.from_config({"resolver.references": list(references)}, name="tests")
    except TestSuiteError as error:
        raise missing_test(references) or UserError(f"avocado finds no test: {error}") from None
    name_tests(suite, base)
    return {runnable.identifier: runnable.tags or {} for runnable in suite.tests}


def of_every_night(tests: Mapping[str, Tags]) -> Mapping[str, Tags]:
    """Those that do not take long."""
    return {test: tags for test, tags in tests.items() if NIGHTLY not in tags}


def cases_of(
    cells: Sequence[NightCell], tests: Mapping[str, Tags], abilities: Callable[[NightCell], Abilities]
) -> Iterator[Case]:
    """The cases of a group's cells: tests for another protocol or kind of device are none.

    Those that depend on no cell are the first cell's alone.
    """
    for cell in cells:
        can = abilities(cell)
        for test, tags in tests.items():
            if ONCE in tags:
                if cell.is_first:
                    yield Case(cell, test, depends_on_cell=False)
                continue
            if not _is_for(cell, tags):
                continue
            lacking = [
                f"{name}: {can.get(name, 'nobody knows of it')}"
                for name in _values(tags, "needs")
                if can.get(name, "?")
            ]
            skipped = f"the server cannot do this: {'; '.join(lacking)}" if lacking else ""
            yield Case(cell, test, skipped, is_of_its_kind=cell.server.kind in _values(tags, "kind"))


def suite_settings(
    plan: Plan,
    group: str,
    cells: Sequence[NightCell],
    devices: Mapping[str, str],
    bundles: Bundles = Bundles(),  # noqa: B008  # nothing of it changes
) -> dict[str, Any]:
    """Avocado's settings for a group: its tests, and the cells that can be run as variants.

    `devices` are the texts of the servers' devices, by their names.
    """
    return {
        "resolver.references": list(plan.references[group]),
        "run.dict_variants": [
            {
                ID_PARAMETER: cell.id,
                CELL_PARAMETER: bundles.in_cell(
                    cell.guest_cell(plan.qemu(cell.qemu), devices[str(cell.values["server"])])
                ).text,
            }
            for cell in cells
        ],
        "run.dict_variants.variant_id_keys": [ID_PARAMETER],
        "run.execution_order": "tests-per-variant",
    }


def variant_of(runnable: Any) -> str:
    """The cell's id of one of avocado's runnables."""
    return str((runnable.variant or {}).get("variant_id", ""))


def _is_for(cell: NightCell, tags: Tags) -> bool:
    protocols, kinds = _values(tags, "protocol"), _values(tags, "kind")
    return (not protocols or cell.server.protocol in protocols) and (not kinds or cell.server.kind in kinds)


def _values(tags: Tags, name: str) -> list[str]:
    """Of a tag NAME:VALUE, which may be there several times."""
    return sorted(tags.get(name) or ())
