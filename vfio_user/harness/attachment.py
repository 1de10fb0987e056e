"""How QEMU is told to have a device: at a running machine over QMP, or on the command line of one to be started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

QmpCommand = tuple[str, Mapping[str, object]]
"""A command of QMP and its arguments."""


@dataclass(frozen=True)
class SocketChardev:
    """A character device of QEMU's that is connected to the UNIX socket at `path` (qapi/char.json)."""

    identity: str
    path: Path
    reconnect: int = 0
    """ms after which it connects again when the other side has gone; 0: never."""

    @property
    def adding(self) -> QmpCommand:
        """QMP's `chardev-add` of it, as a client of the socket."""
        where = {"type": "unix", "data": {"path": str(self.path)}}
        again = {"reconnect-ms": self.reconnect} if self.reconnect else {}
        backend = {"type": "socket", "data": {"addr": where, "server": False, **again}}
        return "chardev-add", {"id": self.identity, "backend": backend}

    @property
    def removing(self) -> QmpCommand:
        """QMP's `chardev-remove` of it; QEMU refuses while a device uses it."""
        return "chardev-remove", {"id": self.identity}

    @property
    def options(self) -> tuple[str, str]:
        """The same on a command line: `-chardev` and its value, with commas doubled."""
        again = f",reconnect-ms={self.reconnect}" if self.reconnect else ""
        return "-chardev", f"socket,id={self.identity},path={escaped(str(self.path))}{again}"


@dataclass(frozen=True)
class Attachment:
    """A device and the character devices that it needs: there before it, and gone after it."""

    device: Mapping[str, object]
    """The arguments of `device_add`: `driver`, `id`, where it is, and its properties."""
    chardevs: tuple[SocketChardev, ...] = ()

    @property
    def identity(self) -> str:
        """QEMU's id of the device, by which `device_del` and its events name it."""
        return str(self.device["id"])

    @property
    def options(self) -> list[str]:
        """The same on a command line; JSON, since QEMU takes `socket` of vfio-user-pci in no other form."""
        device = json.dumps(dict(self.device), separators=(",", ":"))
        return [*(word for chardev in self.chardevs for word in chardev.options), "-device", device]


def escaped(text: str) -> str:
    """Escape a value that may hold commas for QEMU's option parser."""
    return text.replace(",", ",,")
