"""The seam between the harness and a protocol that device servers speak: a `Family` for each.

Whoever boots, plugs, looks at and migrates devices asks a device's family for what differs: how QEMU is told of a
socket, how our servers of it are started, and what QEMU would not survive.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from packaging.version import Version

from userdev.errors import UserError
from userdev.process import run_to_end
from vfio_user.harness import qemu_guards
from vfio_user.harness.attachment import Attachment, SocketChardev, VhostUserNetdev
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
    def keeps_sessions(self) -> bool:
        """Whether its interposer can keep a session alive, and capture what goes past it: QEMU connects only once."""

    @property
    def names_registers(self) -> bool:
        """Whether devices of ours declare registers, whose names a trace can bring along."""

    @property
    def moved_by_qemu(self) -> bool:
        """Whether QEMU migrates such devices by itself; else it is done from here, through their interposers."""

    @property
    def listens_itself(self) -> bool:
        """Whether our servers make their socket, once their device is there, instead of inheriting one.

        One that cannot serve has ended then before QEMU connects, which might wait for another without an end.
        """

    def devices(self) -> list[str]:
        """The names of the devices that our servers have."""

    def serving(self, device: str, where: Sequence[str], options: Sequence[str], python: str = ...) -> list[str]:
        """The command line of a server of ours, run by `python`; `where` says on which socket."""

    def attach(
        self, device: str, identity: str, path: Path, place: Place, properties: Mapping[str, object]
    ) -> Attachment:
        """The attachment by which QEMU has the device whose server listens at `path`; `properties` are those of
        QEMU's.

        `device` is the name of a device of ours, nothing for somebody's server.

        Raises:
            UserError: that does not say which device of QEMU's it is.
        """

    def check_server(self, version: Version, name: str, path: Path, properties: Mapping[str, object]) -> None:
        """Raise `UserError` for a server that a QEMU of this version would not survive, with these properties of its
        device.
        """

    def check_scenario(self, path: Path) -> None:
        """Raise `UserError` for a file of faults that is wrong, with its lines."""

    def check_unplug(self, version: Version, identity: str, *, msix: bool) -> None:
        """Raise `UserError` where a QEMU of this version would not survive that the device goes."""


class VfioUser:
    """vfio-user devices: QEMU's vfio-user-pci (hw/vfio-user/pci.c) connects to the socket by itself."""

    name = "vfio-user"
    package = "vfio_user"
    trace_pattern = "vfio_user_*"
    keeps_sessions = True
    names_registers = True
    moved_by_qemu = False
    listens_itself = False

    def devices(self) -> list[str]:
        """The names of the installed devices: entry points of the group `vfio_user.devices`, sorted."""
        return sorted(_installed("vfio_user.devices"))

    def serving(
        self, device: str, where: Sequence[str], options: Sequence[str], python: str = sys.executable
    ) -> list[str]:
        """The command line of `vfio-user serve` for a device."""
        return [python, "-P", "-m", self.package, "serve", device, *where, *options]

    def attach(
        self, device: str, identity: str, path: Path, place: Place, properties: Mapping[str, object]
    ) -> Attachment:
        """A vfio-user-pci (hw/vfio-user/pci.c) whose `socket` is at `path`; QEMU connects to it at once."""
        socket = {"type": "unix", "path": str(path)}
        wanted = {"driver": "vfio-user-pci", "id": identity, **bus_place(place), "socket": socket}
        return Attachment(wanted | with_dashes(properties))

    def check_server(self, version: Version, name: str, path: Path, properties: Mapping[str, object]) -> None:
        """Connect to the server as a client and look for what this QEMU would not survive.

        Raises:
            UserError: there is something of that kind (`qemu_guards.check_server`).
        """
        qemu_guards.check_server(version, name, path)

    def check_scenario(self, path: Path) -> None:
        """Read a file of faults in vfio-user's language.

        Raises:
            UserError: it is wrong.
        """
        from vfio_user.interposer.faults.scenario import load_scenario  # most guests have no faults

        load_scenario(path)

    def check_unplug(self, version: Version, identity: str, *, msix: bool) -> None:
        """Ask whether this QEMU survives the unplugging of the device.

        Raises:
            UserError: it does not (`qemu_guards.check_unplug`).
        """
        qemu_guards.check_unplug(version, identity, msix=msix)


class VhostUser:
    """Virtio devices behind vhost-user: a character device of QEMU's connects, and a device for each type has it.

    Which one that is follows from the name of a device of ours, vhost-user-rng; else it is the property `driver`. What
    QEMU has no device for is driven by the one that takes any: vhost-user:MODULE:CLASS is, for example.
    """

    name = "vhost-user"
    package = "vhost_user"
    trace_pattern = "vhost_user_*"
    keeps_sessions = False
    names_registers = False
    moved_by_qemu = True
    listens_itself = True

    def devices(self) -> list[str]:
        """The installed devices, entry points of the group `vhost_user.devices`, called as QEMU's: vhost-user-rng."""
        return sorted(f"{_VHOST_USER}{name}" for name in _installed("vhost_user.devices"))

    def serving(
        self, device: str, where: Sequence[str], options: Sequence[str], python: str = sys.executable
    ) -> list[str]:
        """The command line of `vhost-user serve` for a device."""
        name = _served_name(device)
        return [python, "-P", "-m", self.package, "serve", name, *where, *options]

    def attach(
        self, device: str, identity: str, path: Path, place: Place, properties: Mapping[str, object]
    ) -> Attachment:
        """A character device that connects to `path` at once, and the device that is driven through it.

        Raises:
            UserError: neither the name nor a property says which device of QEMU's that is, or it is to be of a type
                that QEMU does not know.
        """
        wanted = with_dashes(properties)
        driver = wanted.get("driver") or self._driver_of(device, path)
        if driver == _GENERIC and device:
            wanted = self._driven_as(device) | wanted
        if driver == _GENERIC:
            _check_type(wanted.get("virtio-id"))
        if driver in _TRANSLATED_IF_TOLD and device:
            wanted = {"iommu_platform": True} | wanted
        reconnect = _RECONNECT_MS if driver in _RECONNECTING else 0
        chardev = SocketChardev(f"{identity}-socket", path, reconnect, goes_with_user=driver == _NET)
        base = {"id": identity, **bus_place(place)}
        if driver == _NET:
            netdev = VhostUserNetdev(f"{identity}-net", chardev.identity)
            card = {"driver": "virtio-net-pci", "netdev": netdev.identity, "romfile": ""}
            return Attachment(base | wanted | card, (chardev, netdev))
        return Attachment(base | {"chardev": chardev.identity} | wanted | {"driver": driver}, (chardev,))

    def _driver_of(self, device: str, path: Path) -> str:
        """The device of QEMU's for one of our names: of its own type, or the one that takes any."""
        if not device:
            raise UserError(
                f"{path.name!r} does not say which device of QEMU's has it",
                hint="give the property driver, for example [driver=vhost-user-blk-pci]",
            )
        return f"{device}-pci" if device.removeprefix(_VHOST_USER) in _TYPES else _GENERIC

    def _driven_as(self, device: str) -> dict[str, object]:
        """What the device that takes any is told of one of ours, as its server prints it."""
        command = self.serving(device, ["--print-capabilities"], [])
        said = run_to_end(repr(device), command, _CAPABILITIES_SECONDS)
        try:
            capabilities = json.loads(said.stdout)
            return {name: capabilities[ours] for name, ours in _CAPABILITIES.items()}
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{device!r} cannot be served: {said.stderr.strip()}") from None

    def check_server(self, version: Version, name: str, path: Path, properties: Mapping[str, object]) -> None:
        """Connect to the server as a front-end, where it depends on its features what QEMU does.

        Raises:
            UserError: this QEMU would not survive it (`qemu_guards.check_back_end`).
        """
        wanted = with_dashes(properties)
        if wanted.get("driver") in _TRANSLATED_IF_TOLD and "iommu_platform" not in wanted:
            qemu_guards.check_back_end(version, name, path)

    def check_scenario(self, path: Path) -> None:
        """Read a file of faults in vhost-user's language.

        Raises:
            UserError: it is wrong.
        """
        from userdev.interposer.faults.scenario import load_scenario
        from vhost_user.interposer.faults.scenario import Scenario

        load_scenario(Scenario, path)

    def check_unplug(self, version: Version, identity: str, *, msix: bool) -> None:
        """Refuse nothing: QEMU survives that the device goes."""


_VHOST_USER = "vhost-user-"
_AUTHORED = "vhost-user:"
"""Before MODULE:CLASS: of this protocol."""
_TYPES = ("blk", "fs", "gpio", "i2c", "input", "net", "rng", "rtc", "scsi", "snd", "spi", "vsock")
"""What QEMU has devices for (`-device help` of 11.1)."""
_BASE_TYPES = ("gpio", "i2c", "input", "rng", "rtc", "snd", "spi")
"""Those that are variants of the one that takes any (hw/virtio/vhost-user-base.c)."""
_NET = "vhost-user-net-pci"
"""QEMU has no device of that name: its network card has a network that has the character device."""
_GENERIC = "vhost-user-test-device-pci"
"""Drives whatever it is told to (hw/virtio/vhost-user-test-device.c)."""
_KNOWN_TYPES = frozenset({*range(1, 14), *range(16, 42), 45})
"""Device types of the specification that QEMU has names for (virtio_device_names in hw/virtio/virtio.c, 11.1)."""
_CAPABILITIES = {"virtio-id": "virtio-id", "num_vqs": "queues", "vq_size": "queue-size", "config_size": "config-size"}
"""What it is told, and what a server of ours calls that (vhost_user/backend/catalogue.py)."""
_CAPABILITIES_SECONDS = 60.0
"""An author's module may take long to import, and must not take for ever."""
_TRANSLATED_IF_TOLD = (_GENERIC, *(f"{_VHOST_USER}{kind}-pci" for kind in _BASE_TYPES))
"""QEMU's devices that offer a guest ACCESS_PLATFORM because the server does (hw/virtio/vhost-user-base.c), told to
translate or not: the known issue `untold-translation`."""
_RECONNECTING = ("vhost-user-blk-pci", "vhost-user-scsi-pci", _NET)
"""QEMU's devices that go on with another back-end; the others do not support it, and are not asked to."""
_RECONNECT_MS = 100

VFIO_USER = VfioUser()
VHOST_USER = VhostUser()

FAMILIES: tuple[Family, ...] = (VFIO_USER, VHOST_USER)
"""All that the harness knows; a device that is named is looked for in their order."""


@cache
def _installed(group: str) -> frozenset[str]:
    """The names of a group's entry points. To look for them reads about all that is installed, which takes 20 ms."""
    return frozenset(entry_points(group=group).names)


def family_of(device: str) -> Family | None:
    """The family that has a device of ours of this name; None where none has.

    MODULE:CLASS is vfio-user's, vhost-user:MODULE:CLASS the other's.
    """
    if device.startswith(_AUTHORED):
        return VHOST_USER
    if ":" in device:
        return FAMILIES[0]
    return next((family for family in FAMILIES if device in family.devices()), None)


def family_of_driver(driver: str) -> Family | None:
    """The family whose servers are behind a device of QEMU's of this name; None where that is not known."""
    return next((family for family in FAMILIES if driver.startswith(f"{family.name}-")), None)


def devices() -> list[str]:
    """The names of the devices that our servers have, of all families."""
    return sorted(name for family in FAMILIES for name in family.devices())


def _check_type(virtio_id: object) -> None:
    try:
        number = int(str(virtio_id), 0)
    except ValueError:
        return  # it is none, or none is said, as QEMU says
    if number not in _KNOWN_TYPES:
        raise UserError(
            f"virtio_id {number} is no device type that QEMU knows",
            hint="it knows 1 to 13, 16 to 41 and 45 (virtio 1.3, Device Types); for a trial take one that the guest"
            " has no driver for, 30 (a video encoder), say",
        )


def inside_qemu(
    driver: str, identity: str, place: Place, properties: Mapping[str, object] = MappingProxyType({})
) -> Attachment:
    """A device model of QEMU's own, which needs no server."""
    return Attachment({"driver": driver, "id": identity, **bus_place(place), **with_dashes(properties)})


_UNDERSCORED = frozenset(
    {
        *("any_layout", "event_idx", "in_order", "indirect_desc", "iommu_platform", "notify_on_empty", "queue_reset"),
        *("config_size", "num_vqs", "vq_size"),
        "failover_pair_id",
    }
)
"""Properties of virtio devices that QEMU spells so itself."""


def with_dashes(properties: Mapping[str, object]) -> dict[str, object]:
    """Properties as QEMU spells them: x_msg_timeout is x-msg-timeout."""
    return {name if name in _UNDERSCORED else name.replace("_", "-"): value for name, value in properties.items()}


def _served_name(device: str) -> str:
    """The name that `vhost-user serve` has for a device of ours."""
    return device.removeprefix(_AUTHORED).removeprefix(_VHOST_USER)
