"""How QEMU is told to have a device: at a running machine over QMP, or on the command line of one to be started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_WORD = re.compile(r"[\w-]+")
_OF_EVERY_DEVICE = frozenset({"driver", "id", "bus", "addr", "socket", "chardev", "netdev"})
"""What the harness says of a device, not whoever asks for one."""

QmpCommand = tuple[str, Mapping[str, object]]
"""A command of QMP and its arguments."""


class Prerequisite(Protocol):
    """What QEMU has to have before it can have a device."""

    @property
    def adding(self) -> QmpCommand:
        """QMP's command that makes it."""

    @property
    def removing(self) -> QmpCommand | None:
        """QMP's command that takes it back, which QEMU refuses while it is used; None: it goes with its user."""

    @property
    def options(self) -> tuple[str, str]:
        """The same on a command line: an option and its value."""


@dataclass(frozen=True)
class SocketChardev:
    """A character device of QEMU's that is connected to the UNIX socket at `path` (qapi/char.json)."""

    identity: str
    path: Path
    reconnect: int = 0
    """ms after which it connects again when the other side has gone; 0: never."""
    goes_with_user: bool = False
    """Whether QEMU itself takes it back with what has it, as with a network (net/vhost-user.c)."""

    @property
    def adding(self) -> QmpCommand:
        """QMP's `chardev-add` of it, as a client of the socket."""
        where = {"type": "unix", "data": {"path": str(self.path)}}
        again = {"reconnect-ms": self.reconnect} if self.reconnect else {}
        backend = {"type": "socket", "data": {"addr": where, "server": False, **again}}
        return "chardev-add", {"id": self.identity, "backend": backend}

    @property
    def removing(self) -> QmpCommand | None:
        """QMP's `chardev-remove` of it, which QEMU refuses while it is used; None: it goes with its user."""
        return None if self.goes_with_user else ("chardev-remove", {"id": self.identity})

    @property
    def options(self) -> tuple[str, str]:
        """The same on a command line: `-chardev` and its value, with commas doubled."""
        again = f",reconnect-ms={self.reconnect}" if self.reconnect else ""
        return "-chardev", f"socket,id={self.identity},path={escaped(str(self.path))}{again}"


@dataclass(frozen=True)
class VhostUserNetdev:
    """A network of QEMU's whose other side is behind a character device (qapi/net.json, NetdevVhostUserOptions)."""

    identity: str
    chardev: str
    """The id of that one; QEMU waits until it is connected."""

    @property
    def adding(self) -> QmpCommand:
        """QMP's `netdev_add` of it."""
        return "netdev_add", {"type": "vhost-user", "id": self.identity, "chardev": self.chardev}

    @property
    def removing(self) -> QmpCommand:
        """QMP's `netdev_del` of it."""
        return "netdev_del", {"id": self.identity}

    @property
    def options(self) -> tuple[str, str]:
        """The same on a command line: `-netdev` and its value."""
        return "-netdev", f"vhost-user,id={self.identity},chardev={self.chardev}"


@dataclass(frozen=True)
class Attachment:
    """A device and what it needs: there before it, in this order, and gone after it."""

    device: Mapping[str, object]
    """The arguments of `device_add`: `driver`, `id`, where it is, and its properties."""
    needs: tuple[Prerequisite, ...] = ()

    @property
    def identity(self) -> str:
        """QEMU's id of the device, by which `device_del` and its events name it."""
        return str(self.device["id"])

    def blames_server(self, reason: str) -> bool:
        """Whether what QEMU gives as its reason to refuse it is its server's doing.

        It has one where something of it is behind a socket, and is not to blame where QEMU names a property.
        """
        is_served = bool(self.needs) or "socket" in self.device
        return is_served and not self.device.keys() & set(_WORD.findall(reason)) - _OF_EVERY_DEVICE

    @property
    def options(self) -> list[str]:
        """The same on a command line; JSON, since QEMU takes `socket` of vfio-user-pci in no other form."""
        device = json.dumps(dict(self.device), separators=(",", ":"))
        return [*(word for needed in self.needs for word in needed.options), "-device", device]


def escaped(text: str) -> str:
    """Escape a value that may hold commas for QEMU's option parser."""
    return text.replace(",", ",,")
