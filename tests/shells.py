"""Shells of Debian's, unpacked with all that they need: our completion is tried with those that a machine has not."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.user_namespaces import in_root
from userdev.process import Deadline
from vfio_user.harness.debian import DebianArchive

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TERM": "dumb", "LC_ALL": "C.UTF-8"}


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
        for folder in ("tmp", "dev"):
            (root / folder).mkdir(exist_ok=True)
        (root / "dev" / "null").touch()
        return cls(root, name)

    def prepare(self, script: str, answer: str) -> None:
        """Put our script there, and a program in place of ours that says `answer` whatever it is asked."""
        (self.root / "script").write_text(script)
        (self.root / "answer").write_text(answer)
        program = self.root / "usr" / "bin" / "vfio-user"
        place = next(folder for folder in ("bin", "usr/bin") if (self.root / folder / self.name).exists())
        program.write_text(f"#!/{place}/{self.name}\ncat /answer\n")
        program.chmod(0o755)

    @property
    def command(self) -> list[str]:
        """The command line that runs it."""
        return [*in_root(self.root), self.name]

    def says(self, asked: str) -> str:
        """What it prints of a command."""
        done = subprocess.run(
            [*self.command, "-c", asked], env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class Typing:
    """Somebody at a terminal, in front of a shell that has read nothing but what is typed."""

    def __init__(self, shell: Shell) -> None:
        self._pid, self._terminal = pty.fork()
        if not self._pid:
            os.execvpe(shell.command[0], [*shell.command, "-f", "-i"], ENVIRONMENT)
        self.seen = ""

    def type(self, keys: str, until: str) -> None:
        """Type, and wait until that is seen; keys with a newline are a command."""
        begin, deadline = len(self.seen), Deadline(60)
        os.write(self._terminal, keys.encode())
        while until not in self.seen[begin:]:
            ready, _, _ = select.select([self._terminal], [], [], deadline.remaining)
            assert ready, f"typed {keys!r}, and {until!r} does not come:\n{self.seen[begin:]}"
            self.seen += os.read(self._terminal, 4096).decode(errors="replace")

    def close(self) -> None:
        """Leave: the shell is hung up on."""
        os.close(self._terminal)
        os.waitpid(self._pid, 0)
