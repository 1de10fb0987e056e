"""A run that fails leaves a bundle; the bundle alone, somewhere else, does it again and says what is otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from vfio_user.avocado_test import GuestTest

SERVE = f"{sys.executable} -P -m vfio_user serve %s --socket-path {{socket}}"


class Bundles(GuestTest):
    """
    :avocado: tags=bundle,evidence
    """

    def test_a_failure_is_done_again_from_its_bundle_alone(self) -> None:
        """As `run --bundle auto`, a copy of the bundle, and two calls of `repro`: once with the server mended."""
        here, elsewhere = Path(self.outputdir) / "here", Path(self.outputdir) / "elsewhere"
        failed = self.command(1, "run", "--server", SERVE % "tests.faulty_edu:Corrupting", "--bundle", "auto", at=here)
        self.assertIn("bundle: ", failed)
        [bundle] = here.glob("results/run-*/bundle")
        shutil.copytree(bundle, elsewhere / "sent")
        shutil.rmtree(here)

        told = self.command(0, "repro", "sent", at=elsewhere)
        self.assertIn("FAIL, the same", told)
        self.assertNotIn("otherwise here", told)

        told = self.command(1, "repro", "sent", "--server-command", SERVE % "edu", "--json", at=elsewhere)
        [attempt] = json.loads(told)["attempts"]
        self.assertEqual((attempt["verdict"], attempt["same"]), ("PASS", False))
        saw = [each["what"] for each in attempt["differences"] if each["about"] == "the guest saw"]
        self.assertEqual(saw, ["DMA both ways over page borders"])

    def command(self, status: int, *words: str, at: Path) -> str:
        """What `vfio-user` says with these words in a folder, where it ends with that status."""
        at.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "VFIO_USER_RESULTS": str(at / "results")}
        ran = subprocess.run(
            [sys.executable, "-P", "-m", "vfio_user", *words], cwd=at, env=environment, capture_output=True, text=True
        )
        self.log.info("%s\n%s\n%s", words, ran.stdout, ran.stderr)
        self.assertEqual(ran.returncode, status, ran.stderr)
        return ran.stdout if status == 0 or "--json" in words else ran.stdout + ran.stderr
