"""Migration between hosts that are reached by SSH: real SSH servers, in namespaces that have no image of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from avocado_tests.migration_faults import AT_EVERY_PHASE, IN_SPITE_OF_IT, ON_THE_WAY
from avocado_tests.test_migration import FailingWell, MigrationTest
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import RESULTS_VARIABLE, Child, Limits, Phase, another_machine, ensure_qemu, two_hosts

CUT_BEFORE = [
    case
    for case in (*AT_EVERY_PHASE, *ON_THE_WAY)
    if case.of_the_link and case.phase in (Phase.PRE_COPY, Phase.DEVICE_STATE, Phase.SWITCHOVER)
]


class LinkBetweenSshHosts(FailingWell):
    """
    The link that is cut is that between the two hosts; the harness reaches both as before.

    :avocado: tags=edu,migration,nightly,ssh
    """

    timeout = 3 * GuestTest.timeout

    def test_guest_stays_where_it_is(self) -> None:
        """When the link is cut before all has arrived."""
        self.go_through(CUT_BEFORE, "ssh")

    def test_guest_moves_in_spite_of_it(self) -> None:
        """When the link is cut afterwards."""
        self.go_in_spite_of((replace(case, limits=Limits(total=100)) for case in IN_SPITE_OF_IT), "ssh")


class BySsh(MigrationTest):
    """
    :avocado: tags=edu,migration,nightly,ssh
    """

    timeout = 2 * GuestTest.timeout

    def test_there_and_back(self) -> None:
        """Everything runs behind real SSH servers, in namespaces that have no image of their own."""
        with self.lab() as lab:
            self.matrix(lab, [("interrupts", "msix"), ("dma", "msi")], hosts="ssh", hops=2, iommu=True)

    def test_qemu_is_put_where_there_is_none(self) -> None:
        """And once it is there, nothing is sent again."""
        qemu = ensure_qemu(progress=self.log.info)
        with two_hosts("ssh") as pair, TemporaryDirectory(prefix="vfu-") as folder:
            number = count()

            def there(*argv: str) -> str:
                child = Child("look", pair.b.command(argv), log=Path(folder) / f"{next(number)}.log")
                try:
                    child.wait(60)
                    return child.log.read_text().splitlines()[-1]
                finally:
                    child.stop()

            age = ("stat", "-c", "%i %z", qemu.argv[0])
            self.assertIn("cannot start", there(*qemu.argv, "--version"))
            pair.b.provide(*qemu.folders)
            self.assertIn("QEMU", there(*qemu.argv, "--version"))
            first = there(*age)
            pair.b.provide(*qemu.folders)
            self.assertEqual(there(*age), first)


class BetweenThisMachineAndAnother(GuestTest):
    """
    One that has its own user, home, Python and temporary files, and nothing of ours where it is here.

    :avocado: tags=edu,migration,soak,ssh
    """

    def test_there_a_restart_of_the_server_and_back(self) -> None:
        """The server there is started, and again, by the interposer there; the seed has these events."""
        with another_machine() as other:
            command = [sys.executable, "-P", "-m", "vfio_user", "soak", "--hosts", other.hosts, "--device", "edu"]
            done = subprocess.run(
                [*other.here, *command, "--only-events", "hop,kill", "--seed", "3", "--only", "7,9,8"],
                env={**os.environ, RESULTS_VARIABLE: self.outputdir, "VFIO_USER_CACHE": str(other.cache)},
                capture_output=True,
                text=True,
                check=False,
            )
        self.log.info("%s%s", done.stdout, done.stderr)
        self.assertEqual(done.returncode, 0, done.stderr)
        [summary] = Path(self.outputdir).glob("soak-*/summary.json")
        self.assertEqual(
            [(name, of["count"]) for name, of in json.loads(summary.read_text())["by_event"].items()],
            [("hop", 2), ("kill", 1)],
        )
