"""A run that fails leaves a bundle; the bundle alone, somewhere else, does it again and says what is otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from userdev.trace.exchanges import Exchange
from vfio_user.avocado_test import GuestTest
from vfio_user.traces import open_trace

SERVE = f"{sys.executable} -P -m vfio_user serve %s --socket-path {{socket}}"

TYPED = "info proc\ncatch syscall 44 46\ncontinue\ndelete\ndetach\nquit\n"
"""To gdb: stop where the server answers what was held, by sendto or sendmsg (x86-64)."""


class Bundles(GuestTest):
    """
    :avocado: tags=bundle,evidence
    """

    def test_a_failure_is_done_again_from_its_bundle_alone(self) -> None:
        """As `run --bundle auto`, a copy of the bundle, and two calls of `repro`: once with the server mended, and at
        a record of the trace a debugger looks at it.
        """
        here, elsewhere = Path(self.outputdir) / "here", Path(self.outputdir) / "elsewhere"
        failed = self.command(1, "run", "--server", SERVE % "tests.faulty_edu:Corrupting", "--bundle", "auto", at=here)
        self.assertIn("bundle: ", failed)
        [bundle] = here.glob("results/run-*/bundle")
        shutil.copytree(bundle, elsewhere / "sent")
        shutil.rmtree(here)

        told = self.command(0, "repro", "sent", at=elsewhere)
        self.assertIn("FAIL, the same", told)
        self.assertNotIn("otherwise here", told)

        number = str(self.first_factorial(elsewhere / "sent"))
        words = ("repro", "sent", "--server-command", SERVE % "edu", "--break-at", number, "--gdb")
        told = self.command(1, *words, at=elsewhere, typed=TYPED)
        self.assertRegex(told, r"stands still: the server is process (\d+)(?s:.*)\bprocess \1\b")
        self.assertRegex(told, r"cmdline = '.* serve edu --socket-path ")
        self.assertIn("Catchpoint 1 (call to syscall ", told, "the message that was held has not come to the server")
        self.assertIn("PASS, not the same", told)
        self.assertIn("the guest saw: DMA both ways over page borders: WRONG", told)
        self.assertNotIn("the guest saw: computes", told)

    def first_factorial(self, bundle: Path) -> int:
        """The record by which the guest has the device compute for the first time."""
        [trace] = bundle.glob("*.trace")
        events = open_trace(trace).events()
        return next(
            event.number
            for event in events
            if isinstance(event, Exchange) and event.place.command == "REGION_WRITE" and event.place.where == "BAR0+0x8"
        )

    def command(self, status: int, *words: str, at: Path, typed: str = "") -> str:
        """What `vfio-user` says with these words in a folder, where it ends with that status; `typed` is its input."""
        at.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "VFIO_USER_RESULTS": str(at / "results")}
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "vfio_user", *words],
            cwd=at,
            env=environment,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.log.info("%s\n%s", words, ran.stdout)
        self.assertEqual(ran.returncode, status, ran.stdout)
        return ran.stdout
