"""The bundles of a night: which of its cases leave one, and where they go."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from vfio_user.bundle import ALWAYS, AUTO, USUAL_MIB, bundle_of, moved
from vfio_user.harness.cell import Cell


@dataclass(frozen=True)
class Bundles:
    """What --bundle says: "" for none, `AUTO`, or a folder that those of all cases are moved to."""

    wanted: str = ""
    size: int = USUAL_MIB
    """MiB of each at most."""

    def in_cell(self, cell: Cell) -> Cell:
        """A cell whose tests keep them. It is what it is: messages are recorded where it has an interposer."""
        if not self.wanted:
            return cell
        kept = AUTO if self.wanted == AUTO else ALWAYS
        return replace(cell, trace=cell.interpose, bundle=kept, bundle_size=self.size)

    def take(self, results: Path, case: str, night: Path) -> str:
        """The bundle that a case has left in its folder, in its place, as a path from the night's; "": there is none.

        Raises:
            UserError: it cannot be moved.
        """
        place = bundle_of(results)
        if place is None:
            return ""
        if self.wanted not in ("", AUTO):
            place = moved(place, Path(self.wanted).absolute(), case)
        return os.path.relpath(place, night)
