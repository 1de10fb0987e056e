"""What may happen to a guest, as a table: how it is done, what it needs, whose work ends by it, what is measured.

What is lost by right ends before an event and begins anew after it: programs at a reset, what a program has told a
device that forgets. Everything else goes on, and has to be right afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness import Conductor, DeviceServer, Limits, Phase, Plan, Plugged, Report, Verdict
from vfio_user.harness.migration.guest_migration import require_migratable
from vfio_user.soak.failed import Failed
from vfio_user.soak.guest import Scene, SoakedDevice

Facts = Mapping[str, Any]
Act = Callable[[Scene, SoakedDevice, float], Facts]
"""Do it to a device, or to the guest that has it; the number from 0 to 1 is for what is left open."""
Lacks = Callable[[Scene, SoakedDevice], str]
"""Why it cannot be done to a device; nothing: it can."""
Rule = Callable[[SoakedDevice], bool]


def _never(_: SoakedDevice) -> bool:
    return False


def _always(_: SoakedDevice) -> bool:
    return True


@dataclass(frozen=True)
class Event:
    """A row. `weight` is the usual one; `needs` and `verifies` are for a reader."""

    what: str
    weight: float
    act: Act
    lacks: Lacks
    needs: str
    verifies: str
    of_guest: bool = False
    """It is done to the guest, and has to be possible with each of its devices; else to one device."""
    ends_work: Rule = _never
    """Whether the work with a device that it is done to ends before it, and begins anew after it."""
    keeps: bool = True
    """Whether disks that it is done to have to have what was written just before."""
    boots: bool = False
    """Whether the guest boots by it."""


# -- how it is done ---------------------------------------------------------------------------------------------------

_MIGRATION = Plan(limits=Limits(total=180))
_HURRY = 2.0  # seconds for a migration whose link was cut, before it is given up
_REPLACED_SECONDS = 60.0
_SHORTEST, _LONGEST = 0.05, 1.0  # seconds of a pause; QEMU's patience with a server is 5


def _hop(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    machine = scene.guest.name
    report = scene.lab.migrate(scene.guest, to=scene.pair.other(scene.guest.host), plan=_MIGRATION)
    if not report.ok:
        raise Failed("migration", f"{report.verdict}: {report.reason}")
    scene.left(machine)
    return _measured(report)


def _cut(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    cable = scene.pair.cable
    assert cable is not None

    def watch(phase: Phase) -> None:
        if phase is Phase.PRE_COPY:
            cable.cut()
            conductor.hurry(_HURRY)

    conductor = Conductor(watch)
    try:
        to = scene.pair.other(scene.guest.host)
        report = scene.lab.migrate(scene.guest, to=to, plan=_MIGRATION, conductor=conductor)
    finally:
        cable.mend()
    if report.verdict is not Verdict.STAYED:
        raise Failed("migration over a link that was cut", f"{report.verdict}: {report.reason}")
    scene.left(report.machine)
    return {}


def _measured(report: Report) -> Facts:
    dirty = next((record.details for record in report.phases if record.phase is Phase.DIRTY_PAGES), None)
    pages = {"dirty_pages": dirty["pages"] + dirty["unmapped"]} if dirty else {}
    phases = {str(record.phase): round(record.seconds, 4) for record in report.phases}
    return {"downtime": report.downtime, "ram_bytes": report.ram_bytes, **pages, "phases": phases}


def _reset(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    scene.guest.reset()
    return {}


def _reboot(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    scene.guest.reboot()
    return {}


def _flr(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    scene.guest.call(reset_function, scene.plugged(device).address, not _survives_flr(device))
    return {}


def _replug(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    plugged, server = scene.plugged(device), scene.server(device)
    scene.guest.unplug(plugged, keep_server=True)
    scene.lab.end(None, [server])
    scene.plug(device)
    return {}


def _kill(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    server = scene.server(device)
    if device.assignment.device.family.keeps_sessions:
        before = server.control.survival()["crashes"]
        server.kill()
        _await_replaced(server, before)
        if not device.is_driven_by_program:  # the guest's driver is the one that has to tell it anew
            _flr(scene, device, chance)
    else:
        server.kill()
        server.restart()
    return {}


def _await_replaced(server: DeviceServer, crashes: int) -> None:
    """Until the interposer has put another in its place; it tells of that when it is asked."""
    deadline = Deadline(_REPLACED_SECONDS)
    while (survival := server.control.survival())["crashes"] == crashes or survival["recovering"]:
        if deadline.passed:
            raise Failed("another server", f"none took the place of {server.name} in {_REPLACED_SECONDS:g} s")
        time.sleep(0.01)


def _upgrade(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    server = scene.server(device)
    if not device.assignment.device.family.keeps_sessions:
        server.owner.stop()
        server.restart()
        return {}
    done = server.control.call("restart", hand_over=True)
    if not done["handed_over"]:
        raise Failed("upgrade", f"the server of {device.name} was replaced, and nothing was handed over")
    return {}


def _interposer(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    server = scene.server(device)
    server.interposer.child.signal(9)
    server.restart_interposer()
    return {}


def _pause_server(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    server = scene.server(device)
    server.owner.pause()
    try:
        seconds = _pause(chance)
    finally:
        server.owner.go_on()
    return {"paused": seconds}


def _pause_qemu(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    scene.guest.qmp.command("stop")
    try:
        seconds = _pause(chance)
    finally:
        scene.guest.qmp.command("cont")
    return {"paused": seconds}


def _pause(chance: float) -> float:
    seconds = round(_SHORTEST + chance * (_LONGEST - _SHORTEST), 3)
    time.sleep(seconds)  # what a pause is
    return seconds


# -- what it needs ----------------------------------------------------------------------------------------------------

_STAY_BEHIND = frozenset({"vhost-user-rng"})
"""Devices that QEMU refuses to migrate."""


def _nothing(scene: Scene, device: SoakedDevice) -> str:
    return ""


def _no_migration(scene: Scene, device: SoakedDevice) -> str:
    if device.assignment.device.served in _STAY_BEHIND:
        return "QEMU does not migrate it"
    try:
        require_migratable(scene.guest)
    except UserError as error:
        return str(error)
    return ""


def _no_cable(scene: Scene, device: SoakedDevice) -> str:
    no_cable = "there is no cable between these hosts" if scene.pair.cable is None else ""
    return no_cable or _no_migration(scene, device)


def _no_flr(scene: Scene, device: SoakedDevice) -> str:
    methods = scene.guest.call(reset_methods, scene.plugged(device).address)
    return "" if "flr" in methods else "the guest has no function-level reset for it"


def _no_unplug(scene: Scene, device: SoakedDevice) -> str:
    plugged = scene.plugged(device)
    try:
        device.assignment.device.family.check_unplug(scene.guest.qmp.version, device.identity, msix=plugged.msix)
    except UserError as error:
        return str(error)
    return ""


def _no_other_server(scene: Scene, device: SoakedDevice) -> str:
    if not device.assignment.device.family.keeps_sessions:
        return "" if _reconnects(scene.plugged(device)) else "QEMU does not connect to another server"
    if device.is_driven_by_program:
        return ""
    if not device.persists:
        return "what it keeps is gone with its server"
    return _no_flr(scene, device)


def _no_upgrade(scene: Scene, device: SoakedDevice) -> str:
    if not device.assignment.device.family.keeps_sessions:
        return _no_other_server(scene, device)
    supports = scene.server(device).control.call("migration_support")["supports"]
    return "" if "STOP_COPY" in supports else "its server hands nothing over"


def _no_other_interposer(scene: Scene, device: SoakedDevice) -> str:
    return "" if _reconnects(scene.plugged(device)) else "QEMU connects only once, and loses it"


def _reconnects(plugged: Plugged) -> bool:
    """Whether QEMU goes on with another server."""
    return any(getattr(needed, "reconnect", 0) for needed in plugged.attachment.needs)


# -- whose work ends --------------------------------------------------------------------------------------------------


def _survives_flr(device: SoakedDevice) -> bool:
    """NVMe's driver does its own part at a reset; virtio's, and a program, are not told."""
    return device.assignment.device.served == "nvme"


def _forgets_at_flr(device: SoakedDevice) -> bool:
    return not _survives_flr(device)


def _forgets_at_kill(device: SoakedDevice) -> bool:
    return device.is_driven_by_program or device.may_lose


def _loses_on_the_way(device: SoakedDevice) -> bool:
    return device.may_lose


_WORK_GOES_ON = "all work went on and was right"
_WORK_ANEW = "its work was right, and begins anew"

EVENTS: Mapping[str, Event] = {
    "hop": Event(
        "the guest goes to the other host with its devices",
        4,
        _hop,
        _no_migration,
        "devices that can be migrated",
        f"verdict migrated; {_WORK_GOES_ON}",
        of_guest=True,
    ),
    "cut": Event(
        "the link between the hosts is cut while the guest goes to the other, and mended",
        1,
        _cut,
        _no_cable,
        "hosts with a cable (namespaces), devices that can be migrated",
        f"verdict stayed; {_WORK_GOES_ON}",
        of_guest=True,
    ),
    "system-reset": Event(
        "QMP system_reset",
        1,
        _reset,
        _nothing,
        "any guest",
        "the guest boots; disks have what was written; work begins anew",
        of_guest=True,
        ends_work=_always,
        boots=True,
    ),
    "reboot": Event(
        "the guest reboots itself",
        1,
        _reboot,
        _nothing,
        "any guest",
        "the guest boots; disks have what was written; work begins anew",
        of_guest=True,
        ends_work=_always,
        boots=True,
    ),
    "flr": Event(
        "the guest resets a function; drivers that are not told of that leave it for the time",
        3,
        _flr,
        _no_flr,
        "a device with FLR",
        f"{_WORK_ANEW}; with nvme it goes on",
        ends_work=_forgets_at_flr,
    ),
    "replug": Event(
        "a device is unplugged, its server ended; another server is started, the device plugged in",
        2,
        _replug,
        _no_unplug,
        "a device that QEMU survives the unplugging of",
        f"{_WORK_ANEW}; a disk has what was written",
        ends_work=_always,
    ),
    "kill": Event(
        "a server is killed, and another takes its place",
        4,
        _kill,
        _no_other_server,
        "vfio-user: what it keeps outlives it, or its work begins anew; vhost-user: QEMU connects again",
        f"disks: {_WORK_GOES_ON}; others: {_WORK_ANEW}",
        ends_work=_forgets_at_kill,
    ),
    "upgrade": Event(
        "a server hands over to another, or ends in order and another takes its place",
        4,
        _upgrade,
        _no_upgrade,
        "vfio-user: a server that migrates; vhost-user: QEMU connects again",
        _WORK_GOES_ON,
        ends_work=_loses_on_the_way,
    ),
    "interposer": Event(
        "an interposer is killed, and another takes its place",
        3,
        _interposer,
        _no_other_interposer,
        "vhost-user: QEMU connects again",
        _WORK_GOES_ON,
        ends_work=_loses_on_the_way,
    ),
    "pause-server": Event(
        "a server stands still for a moment (SIGSTOP, SIGCONT)",
        6,
        _pause_server,
        _nothing,
        "any server",
        _WORK_GOES_ON,
        keeps=False,
    ),
    "pause-qemu": Event(
        "QEMU stands still for a moment (stop, cont)",
        6,
        _pause_qemu,
        _nothing,
        "any guest",
        _WORK_GOES_ON,
        of_guest=True,
        keeps=False,
    ),
}

USUAL_WEIGHTS: Mapping[str, float] = {name: event.weight for name, event in EVENTS.items()}


# -- in the guest -----------------------------------------------------------------------------------------------------


def reset_methods(address: str) -> list[str]:
    """The ways in which the guest's kernel can reset a PCI function (ABI/testing/sysfs-bus-pci, reset_method)."""
    from pathlib import Path

    methods = Path("/sys/bus/pci/devices", address, "reset_method")
    return methods.read_text().split() if methods.exists() else []


def reset_function(address: str, leaves: bool) -> None:
    """Reset a PCI function by FLR; with `leaves` its driver leaves it before, and comes back."""
    from pathlib import Path

    function = Path("/sys/bus/pci/devices", address)
    (function / "reset_method").write_text("flr")
    driver = function / "driver"
    bound = leaves and driver.exists()
    if bound:
        (driver / "unbind").write_text(address)
    (function / "reset").write_text("1")
    if bound:
        Path("/sys/bus/pci/drivers_probe").write_text(address)
