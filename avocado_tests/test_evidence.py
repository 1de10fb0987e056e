"""What is left of a run in which somebody died: the first cause, and everything that leads to it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from userdev.errors import UserError, VerdictError
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import INDEX, RECORD, Child, Lab


class Evidence(GuestTest):
    """
    :avocado: tags=evidence
    """

    def test_a_server_crashes(self) -> None:
        """The server is named although QEMU ended as well, later."""
        page = self.run_in_which("server", "QEMU")
        self.assertRegex(str(self.record["first_cause"]), r"^guest-dev0-edu was killed by SIGSEGV")
        for part in (
            "REGION_READ",
            "device_add",
            "the end is near",
            "so says the kernel",
            "Edu is listening",
            "-device",
        ):
            self.assertIn(part, page)

    def test_qemu_crashes(self) -> None:
        page = self.run_in_which("QEMU")
        self.assertRegex(str(self.record["first_cause"]), r"^guest was killed by SIGSEGV")
        self.assertRegex(page, r"QEMU \d+\.\d+")
        self.assertRegex(page, r"in qemu_\w+ \(\)", "no thread of the backtrace has a function of QEMU by its name")
        for part in ("device_add", "Edu is listening"):
            self.assertIn(part, page)

    def run_in_which(self, *dying: str) -> str:
        """The page of a run in which these crash, in this order."""
        folder = Path(self.outputdir) / "run"
        folder.mkdir()
        with self.assertRaises((UserError, VerdictError)), Lab("run", folder=folder) as lab:
            guest = lab.boot(device="edu", iommu=True, trace=True, migratable=True)
            self.edu(guest, "liveness")
            guest.succeed("echo the end is near > /dev/console; echo so says the kernel > /dev/kmsg")
            guest.collect(folder)
            server = guest.device.server
            assert server is not None
            for child in ({"server": server.child, "QEMU": guest.machine.child}[name] for name in dying):
                self.crash(child)
            guest.machine.check()
        self.record = json.loads((folder / RECORD).read_text())
        names = [death["name"] for death in self.record["deaths"]]
        self.assertEqual(names, [{"server": "guest-dev0-edu", "QEMU": "guest"}[name] for name in dying])
        for death in self.record["deaths"]:
            self.assertTrue((folder / death["core"]).stat().st_size, death)
            self.assertRegex((folder / death["backtrace"]).read_text(), r"#0 ")
        return (folder / INDEX).read_text()

    def crash(self, child: Child) -> None:
        os.kill(child.pid, signal.SIGSEGV)  # behind the harness's back
        self.assertEqual(child.wait(30), -signal.SIGSEGV)
