"""What an event needs, device by device: why it cannot be done to one, or nothing."""

from __future__ import annotations

from collections.abc import Callable

from userdev.errors import UserError
from vfio_user.harness import Plugged
from vfio_user.harness.migration.destination import require_image_there
from vfio_user.harness.migration.guest_migration import require_movable
from vfio_user.soak.guest import Scene, SoakedDevice

Lacks = Callable[[Scene, SoakedDevice], str]
"""Why it cannot be done to a device; nothing: it can."""

NO_CABLE = "there is no cable between these hosts"


def nothing(scene: Scene, device: SoakedDevice) -> str:
    """Say that it can always be done."""
    return ""


def no_migration(scene: Scene, device: SoakedDevice) -> str:
    """Say why QEMU, or the device's server, does not migrate it, or not between these hosts."""
    try:
        require_movable(scene.guest, scene.plugged(device))
        require_image_there(device.assignment.device, scene.pair.a, scene.pair.b)
    except UserError as error:
        return str(error)
    return ""


def no_cable(scene: Scene, device: SoakedDevice) -> str:
    """Say why there is no link to cut, or no migration to do over it."""
    return NO_CABLE if scene.pair.cable is None else no_migration(scene, device)


def no_flr(scene: Scene, device: SoakedDevice) -> str:
    """Say that the guest's kernel has no FLR for it."""
    methods = scene.guest.call(reset_methods, scene.plugged(device).address)
    return "" if "flr" in methods else f"the guest has no function-level reset for it{_with_flr(device)}"


def no_unplug(scene: Scene, device: SoakedDevice) -> str:
    """Say why this QEMU would not survive its unplugging."""
    plugged = scene.plugged(device)
    try:
        device.assignment.device.family.check_unplug(scene.guest.qmp.version, device.identity, msix=plugged.msix)
    except UserError as error:
        return str(error)
    return ""


def no_other_server(scene: Scene, device: SoakedDevice) -> str:
    """Say why no other server could take the place of one that was killed."""
    if not device.assignment.device.family.keeps_sessions:
        return "" if _reconnects(scene.plugged(device)) else "QEMU does not connect to another server"
    if device.is_driven_by_program:
        return ""
    if not device.persists:
        return "what it keeps is gone with its server"
    return no_flr(scene, device)


def no_upgrade(scene: Scene, device: SoakedDevice) -> str:
    """Say why its server cannot hand over to another."""
    if not device.assignment.device.family.keeps_sessions:
        return no_other_server(scene, device)
    supports = scene.server(device).control.call("migration_support")["supports"]
    return "" if "STOP_COPY" in supports else "its server hands nothing over"


def no_other_interposer(scene: Scene, device: SoakedDevice) -> str:
    """Say that QEMU would not connect to another interposer."""
    return "" if _reconnects(scene.plugged(device)) else "QEMU connects only once, and loses it"


def _with_flr(device: SoakedDevice) -> str:
    """How a device that we serve has a function-level reset, behind the sentence that it has none."""
    wanted = device.assignment.device
    if wanted.served == "edu":
        return "; --device 'edu --flr yes' has one"
    is_function = ":" in wanted.served and wanted.family.keeps_sessions
    return "; a device with the capability PciExpress(flr=True) has one" if is_function else ""


def _reconnects(plugged: Plugged) -> bool:
    """Whether QEMU goes on with another server."""
    return any(getattr(needed, "reconnect", 0) for needed in plugged.attachment.needs)


# -- in the guest -----------------------------------------------------------------------------------------------------


def reset_methods(address: str) -> list[str]:
    """The ways in which the guest's kernel can reset a PCI function (ABI/testing/sysfs-bus-pci, reset_method)."""
    from pathlib import Path

    methods = Path("/sys/bus/pci/devices", address, "reset_method")
    return methods.read_text().split() if methods.exists() else []
