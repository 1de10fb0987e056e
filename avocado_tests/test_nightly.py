"""A night with real guests: a plan's cells, a server of somebody else's among them, by the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.c_server import c_server
from vfio_user.avocado_test import GuestTest
from vfio_user.nightly.summary import Status, Verdict, read_summary

PLAN = """\
name: small
servers: servers.yaml
qemus: {gone: /nonexistent/qemu}
groups:
  guests:
    servers: [edu, in-c]
    tests: ["registers:Registers.test_factorial"]
  any:
    servers: [in-c]
    tests: ["any_server:AnyDevice"]
    vary: {qemu: [usual, gone]}
"""
SERVERS = """\
servers:
  in-c:
    about: a server in C
    protocol: vfio-user
    kind: edu
    command: "%s {socket}"
    probe: yes
"""


class Nightly(GuestTest):
    """
    :avocado: tags=plan
    """

    def test_a_small_night_says_what_became_of_every_case(self) -> None:
        folder = Path(self.workdir)
        (folder / "plan.yaml").write_text(PLAN)
        (folder / "servers.yaml").write_text(SERVERS % c_server(progress=self.log.info))
        command = [sys.executable, "-m", "vfio_user", "nightly", "--plan", str(folder / "plan.yaml")]
        environment = {**os.environ, "VFIO_USER_RESULTS": self.outputdir}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=self.timeout)
        self.log.info("%s\n%s", ran.stdout, ran.stderr)
        self.assertEqual(ran.returncode, 1)  # what nobody could run is new
        (kept,) = Path(self.outputdir).glob("nightly/small-*")
        night = read_summary(kept)
        found = {(one.cell, one.test.rpartition(".")[2]): one.verdict for one in night.results}
        self.assertIs(night.status, Status.FINISHED)
        self.assertEqual(
            found,
            {
                ("edu", "test_factorial"): Verdict.PASS,
                ("in-c", "test_factorial"): Verdict.PASS,
                ("in-c", "test_the_guest_resets_it"): Verdict.PASS,
                ("in-c", "test_it_goes_to_another_host_and_back"): Verdict.SKIP,
                ("in-c+qemu=gone", "test_the_guest_resets_it"): Verdict.WEDGED,
                ("in-c+qemu=gone", "test_it_goes_to_another_host_and_back"): Verdict.WEDGED,
            },
        )
        versions = {cell.id: cell.versions for cell in night.cells}
        self.assertRegex(versions["edu"]["qemu"], r"^\d+\.\d+")
        self.assertRegex(versions["edu"]["kernel"], r"^\d+\.\d+")
