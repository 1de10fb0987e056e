"""Where servers and their interposers are started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from userdev.process import Child
from vfio_user.harness import coredump
from vfio_user.harness.hosts.host import LOCAL, Host
from vfio_user.harness.scratch import Scratch


@dataclass(frozen=True)
class Site:
    """A host, with sockets in `scratch` and logs in `folder`."""

    scratch: Scratch
    folder: Path
    host: Host = LOCAL

    def start(self, name: str, argv: Sequence[str], log: Path, fds: Sequence[int], socket: Path | None = None) -> Child:
        """Start a program there. `socket` is where it will listen, if it sees to that itself."""
        return Child(
            name,
            self.host.command(argv, socket),
            log=log,
            pass_fds=fds,
            environment=self.scratch.environment,
            take_core=coredump.take,
        )
