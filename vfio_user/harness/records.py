"""What a lab writes down of all that it starts: commands, versions, and which children and files are whose."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from userdev.errors import about
from userdev.process import Child
from vfio_user.harness import evidence
from vfio_user.harness.artifacts import record_versions, write_text
from vfio_user.harness.hosts.relayed import lost_connection
from vfio_user.harness.last_words import fate_of
from vfio_user.page.names import COMMANDS, PROCESSES

if TYPE_CHECKING:
    from vfio_user.harness.image import GuestImage
    from vfio_user.harness.machine import Machine
    from vfio_user.harness.qemu import Qemu
    from vfio_user.harness.server import DeviceServer


class Records:
    """Those of one lab, in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.children: list[Child] = []
        """All that were started, for the evidence, but for those that were forgotten."""

    def note(self, child: Child) -> None:
        """Remember a child, and write down its command."""
        self.children.append(child)
        path = self._folder / COMMANDS
        with about(path), path.open("a", encoding="utf-8", errors="backslashreplace") as commands:
            commands.write(f"# {child.name}\n{shlex.join(child.argv)}\n\n")

    @property
    def lost_connection(self) -> str:
        """Why one of them on another host is heard of no more, where its connection has ended; else nothing."""
        return next(filter(None, map(lost_connection, self.children)), "")

    def forget(self, name: str) -> None:
        """Let go of the children of a machine that have ended in order, and of its files where all of them have."""
        self.children = [
            child
            for child in self.children
            if child.running or not belongs_to(name, child.name) or evidence.crashed([child])
        ]
        if not any(belongs_to(name, child.name) for child in self.children):
            for path in self._folder.iterdir():
                if belongs_to(name, path.name):
                    path.unlink(missing_ok=True)

    def write(
        self,
        images: Mapping[str, GuestImage],
        machines: Iterable[Machine],
        servers: Iterable[DeviceServer],
        qemu: Qemu | None,
    ) -> None:
        """Write down what all of it was, by versions and digests, and when each program ran."""
        lives = [_life(child) for child in self.children]
        write_text(self._folder / PROCESSES, json.dumps(lives, indent=2) + "\n")
        facts: dict[str, object] = {
            "images": {name: image.digest for name, image in images.items()},
            "machines": {machine.name: asdict(machine.config) for machine in machines},
            "devices": {server.name: server.device.as_dict() for server in servers},
        }
        if qemu is not None:
            facts["qemu"] = {"version": qemu.version.release, "digest": qemu.digest, "command": qemu.argv}
        record_versions(self._folder, facts)


def _life(child: Child) -> dict[str, object]:
    """A program from its birth to its death, for the axis of the page."""
    return {
        "name": child.name,
        "pid": child.pid,
        "when": child.began,
        "ended": child.ended,
        "fate": fate_of(child),
        "stopped": child.was_stopped,
        "on_request": child.ended_on_request,
        "in_order": child.exit_code == 0,
        "command": child.argv,
    }


def belongs_to(machine: str, name: str) -> bool:
    """Whether a file or a process is of a machine or one of its servers; guest.1.qmp.log is not of `guest`."""
    rest = name.removeprefix(machine)
    own = rest[:1] in ("", "-") or (rest[0] == "." and not rest[1:2].isdigit())
    return name.startswith(machine) and own
