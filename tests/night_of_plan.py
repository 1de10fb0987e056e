"""A night of a plan, run as `vfio-user nightly` runs it, in a place that has everything: of tests that boot no guest.

    python -m tests.night_of_plan PLAN BASE [SPARE]

SPARE are MiB that are to be free. Status 0 where the night came to its end, 3 where it was ended at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from vfio_user.avocado_job.ending import EndedAtOnce
from vfio_user.avocado_job.surroundings import prepare_environment
from vfio_user.harness.debian import Progress
from vfio_user.nightly.matrix import draw_plan
from vfio_user.nightly.night import Night
from vfio_user.nightly.place import Here, Readiness, this_machine
from vfio_user.nightly.plan import read_plan
from vfio_user.nightly.staging import staged
from vfio_user.nightly.summary import Slot

NEVER = 900.0
"""Seconds behind which a night of tests that take a moment does not end any more, however busy the machine is."""


class Furnished(Here):
    """This machine, as if every QEMU were there but the one called gone."""

    def make_ready(self, qemus: Mapping[str, str], images: Sequence[str], say: Progress) -> Readiness:
        slot = Slot(name="here", machine=this_machine([]), parallel=self.parallel)
        there = {name: "11.1.3" for name in qemus if name != "gone"}
        return Readiness((slot,), there, {"gone": "it is gone"} if "gone" in qemus else {}, "6.12")


def main(path: str, base: str, spare: str = "0") -> int:
    prepare_environment(Path.cwd())
    plan = read_plan(Path(path))
    drawn = draw_plan(plan)
    night = Night(plan, drawn, Path(base), spare=int(spare))
    try:
        summary = night.run(staged(plan, drawn), Furnished(plan.text.parallel), partial(print, file=sys.stderr))
    except EndedAtOnce:
        return 3
    print(summary.status, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
