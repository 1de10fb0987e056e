"""A night of a plan whose two slots are network namespaces with an SSH server each; in the folder of its tests.

    python -m tests.night_of_slots PLAN BASE

Status 0 where the night came to its end, or was ended in order, 3 where it was ended at once.

In PLAN, IDENTITY and KNOWN_HOSTS stand for files of the slots a and b. Whether there is one at a name c nobody knows:
it has the address of a, and a port at which nobody listens.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from vfio_user.avocado_job.ending import EndedAtOnce
from vfio_user.avocado_job.surroundings import prepare_environment
from vfio_user.harness.hosts.sshd import ssh_namespaces
from vfio_user.nightly.matrix import draw_plan
from vfio_user.nightly.night import Night
from vfio_user.nightly.plan import read_plan
from vfio_user.nightly.slots import hosts_of, place_of
from vfio_user.nightly.staging import staged
from vfio_user.nightly.summary import Status

ROOT = Path(__file__).parent.parent


def main(path: str, base: str) -> int:
    with ssh_namespaces() as (a, b, _):
        prepare_environment(ROOT)
        plan = read_plan(Path(path))
        drawn = draw_plan(plan)
        near = {"a": a, "b": b}
        hosts = {
            name: replace(near.get(name, a), name=name, port=host.port, python=host.python)
            for name, host in hosts_of(plan).items()
        }
        said: dict[str, list[str]] = {"first": [], "second": []}
        night = Night(plan, drawn, Path(base), spare=0)

        def say(line: str) -> None:
            said["first"].append(line)
            print(line, file=sys.stderr)

        try:
            summary = night.run(staged(plan, drawn), place_of(plan, hosts), say)
        except EndedAtOnce:
            return 3
        if summary.status is not Status.FINISHED:
            return 0
        place_of(plan, hosts).make_ready({"usual": ""}, plan.text.images, said["second"].append)
        Path(base, "said.json").write_text(json.dumps(said))
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
