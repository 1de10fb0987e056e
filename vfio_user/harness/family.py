"""The seam between the harness and a protocol that device servers speak: a `Family` for each.

Whoever boots, plugs, looks at and migrates devices asks a device's family for what differs: how QEMU is told of a
socket, how our servers of it are started, and what QEMU would not survive.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from packaging.version import Version

from vfio_user.harness import qemu_guards
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.command_line import Place, bus_place

Property = str | int | bool
"""A property of a QEMU device, as JSON has it."""


class Family(Protocol):
    """What the harness asks of a protocol."""

    @property
    def name(self) -> str:
        """The protocol's, as in "a vfio-user device"."""

    @property
    def package(self) -> str:
        """The Python package whose command serves devices, and by which a command line is known for ours."""

    @property
    def trace_pattern(self) -> str:
        """The events of QEMU's `-trace` that have to do with it."""

    @property
    def interposable(self) -> bool:
        """Whether our interposer speaks it: without that there are no faults, no traces and no migration by us."""

    def devices(self) -> list[str]:
        """The names of the devices that our servers have."""

    def serving(self, device: str, where: Sequence[str], options: Sequence[str]) -> list[str]:
        """The command line of a server of ours; `where` says on which socket."""

    def attach(self, identity: str, path: Path, place: Place, properties: Mapping[str, object]) -> Attachment:
        """How QEMU is told to have the device whose server listens at `path`; `properties` are those of QEMU's."""

    def check_server(self, version: Version, name: str, path: Path) -> None:
        """Raise `UserError` for a server that a QEMU of this version would not survive."""

    def check_unplug(self, version: Version, identity: str, *, msix: bool) -> None:
        """Raise `UserError` where a QEMU of this version would not survive that the device goes."""


class VfioUser:
    """vfio-user devices: QEMU's vfio-user-pci (hw/vfio-user/pci.c) connects to the socket by itself."""

    name = "vfio-user"
    package = "vfio_user"
    trace_pattern = "vfio_user_*"
    interposable = True

    def devices(self) -> list[str]:
        """The names of the installed devices: entry points of the group `vfio_user.devices`, sorted."""
        return sorted(point.name for point in entry_points(group="vfio_user.devices"))

    def serving(self, device: str, where: Sequence[str], options: Sequence[str]) -> list[str]:
        """The command line of `vfio-user serve` for a device, by the Python that runs this."""
        return [sys.executable, "-P", "-m", self.package, "serve", device, *where, *options]

    def attach(self, identity: str, path: Path, place: Place, properties: Mapping[str, object]) -> Attachment:
        """A vfio-user-pci (hw/vfio-user/pci.c) whose `socket` is at `path`; QEMU connects to it at once."""
        socket = {"type": "unix", "path": str(path)}
        device = {"driver": "vfio-user-pci", "id": identity, **bus_place(place), "socket": socket}
        return Attachment(device | with_dashes(properties))

    def check_server(self, version: Version, name: str, path: Path) -> None:
        """Connect to the server as a client and look for what this QEMU would not survive.

        Raises:
            UserError: there is something of that kind (`qemu_guards.check_server`).
        """
        qemu_guards.check_server(version, name, path)

    def check_unplug(self, version: Version, identity: str, *, msix: bool) -> None:
        """Ask whether this QEMU survives the unplugging of the device.

        Raises:
            UserError: it does not (`qemu_guards.check_unplug`).
        """
        qemu_guards.check_unplug(version, identity, msix=msix)


VFIO_USER = VfioUser()

FAMILIES: tuple[Family, ...] = (VFIO_USER,)
"""All that the harness knows; a device that is named is looked for in their order."""


def family_of(device: str) -> Family | None:
    """The family that has a device of ours of this name, the first where it is a MODULE:CLASS; None where none has."""
    if ":" in device:
        return FAMILIES[0]
    return next((family for family in FAMILIES if device in family.devices()), None)


def devices() -> list[str]:
    """The names of the devices that our servers have, of all families."""
    return sorted(name for family in FAMILIES for name in family.devices())


def inside_qemu(
    driver: str, identity: str, place: Place, properties: Mapping[str, object] = MappingProxyType({})
) -> Attachment:
    """A device model of QEMU's own, which needs no server."""
    return Attachment({"driver": driver, "id": identity, **bus_place(place), **with_dashes(properties)})


def with_dashes(properties: Mapping[str, object]) -> dict[str, object]:
    """Properties as QEMU spells them: x_msg_timeout is x-msg-timeout."""
    return {name.replace("_", "-"): value for name, value in properties.items()}
