"""Shells of Debian's, unpacked with all that they need: our completion is tried with those that a machine has not."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vfio_user.harness.debian import DebianArchive


@dataclass(frozen=True)
class Shell:
    """The folder that it is in, and its name."""

    root: Path
    name: str

    @classmethod
    def unpacked(cls, root: Path, name: str) -> Self:
        """Fetch it and unpack it there."""
        archive = DebianArchive(["bookworm"])
        archive.unpack(archive.fetch([name, "coreutils"]), root)
        (root / "tmp").mkdir(exist_ok=True)
        return cls(root, name)

    def completes(self, script: str, line: str, answer: str) -> str:
        """What the shell makes of a command line that is being typed: `answer` is what our program says of it."""
        program = self.root / "usr" / "bin" / "vfio-user"
        program.write_text("#!/bin/cat\n" + answer)  # which shows this very file
        program.chmod(0o755)
        (self.root / "script").write_text(script)
        asked = ASKED[self.name].format(line=line)
        command = ["unshare", "--map-root-user", f"--root={self.root}", self.name, "-c", asked]
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


ASKED = {
    "fish": 'source /script; complete -C "{line}"',
    "zsh": "source /script; whence -w _vfio_user_completion",
}
"""What each is asked: fish completes for who asks, zsh only for who types, so that it is asked for the function."""
