"""`vfio-user soak` with real guests: nothing is lost, and what loses something is found and reduced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from avocado_tests.vhost_test import ODD
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import RESULTS_VARIABLE, SUBJECTS


class Soaking(GuestTest):
    """
    :avocado: tags=edu,migration,soak
    """

    def soak(self, *words: str, status: int = 0) -> dict[str, Any]:
        """The summary of a soak that ends with this status."""
        command = [sys.executable, "-P", "-m", "vfio_user", "soak", *words]
        done = subprocess.run(
            command,
            env={**os.environ, RESULTS_VARIABLE: self.outputdir},
            capture_output=True,
            text=True,
            check=False,
        )
        self.log.info("%s%s", done.stdout, done.stderr)
        self.assertEqual(done.returncode, status, done.stderr)
        *_, last = sorted(Path(self.outputdir).glob("soak-*/summary.json"), key=lambda path: path.stat().st_mtime)
        found: dict[str, Any] = json.loads(last.read_text())
        return found

    def test_three_hops(self) -> None:
        """There, back, and there again; every page that the device ever wrote is compared after each.

        :avocado: tags=nightly
        """
        self.soak_of_hops(3)

    def test_ten_hops(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.soak_of_hops(10)

    def soak_of_hops(self, hops: int) -> None:
        found = self.soak("--hops", str(hops), "--interrupts", "intx")
        self.assertEqual(found["by_event"].keys(), {"hop"})
        self.assertEqual(found["by_event"]["hop"]["count"], hops)

    def test_ten_events_of_all_kinds_with_devices_of_both_protocols(self) -> None:
        """The seed is one whose order has eight kinds; boots, and a cut link, have tests of their own.

        :avocado: tags=vhost-user,blk
        """
        devices = ("--device", "edu --msix 0 --flr yes", "--device", "vhost-user-blk", "--workload", "dma")
        never = [word for name in ("reboot", "system-reset", "cut") for word in ("--weight", f"{name}=0")]
        found = self.soak(
            *devices, "--workload", "blocks", *never, "--weight", "hop=2", "--until", "10", "--seed", str(MIXED)
        )
        self.assertEqual(found["events"], 10)
        self.assertEqual(len(found["by_event"]), 8, found["by_event"])

    def test_a_disk_that_forgets_what_it_had_when_it_is_killed_is_found_and_the_kill_named(self) -> None:
        """The negative control: to hosts, QEMU and the guest's kernel that is a disk as any other.

        :avocado: tags=vhost-user,blk
        """
        disk = f"{ODD}:Forgetful --image {self.workdir}/disk.img [driver=vhost-user-blk-pci]"
        events = ("--only-events", "pause-qemu,kill", "--seed", str(KILL_AFTER_PAUSES), "--until", "first-failure")
        found = self.soak("--device", disk, "--workload", "blocks", *events, "--tries", "3", status=1)
        [failure] = found["failures"]
        self.assertIn(failure["check"], ("work of Forgetful", "what was written to Forgetful"))
        self.assertEqual([event.split()[1] for event in failure["reduced_to"]], ["kill"])
        self.assertTrue(failure["minimal"])
        self.assertGreater(len(failure["last"]), 1)

    def test_each_work_of_a_disk_goes_on_for_ten_hops(self) -> None:
        """
        :avocado: tags=nightly,nvme
        """
        for kind in SUBJECTS["nvme"].kinds:
            self.soak("--hops", "10", "--device", "nvme", "--workload", kind)


MIXED = 2953
KILL_AFTER_PAUSES = 12
