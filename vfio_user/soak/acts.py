"""How each event is done to a guest or to a device of it, and what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from userdev.control import ControlError
from userdev.process import Deadline
from vfio_user.harness import Conductor, DeviceServer, Limits, Phase, Plan, Report, Tuning, Verdict
from vfio_user.harness.hosts.host import HostFailure
from vfio_user.soak.failed import Failed
from vfio_user.soak.guest import Scene, SoakedDevice

Facts = Mapping[str, Any]
Act = Callable[[Scene, SoakedDevice, float], Facts]
"""Do it to a device, or to the guest that has it; the number from 0 to 1 is for what is left open."""

_MIGRATION = Plan(limits=Limits(total=180))
_HOP = replace(_MIGRATION, tuning=Tuning(channels=2))  # the guest's memory in half the time that one stream takes
_HURRY = 2.0  # seconds for a migration whose link was cut, before it is given up
_REPLACED_SECONDS = 60.0
_SHORTEST, _LONGEST = 0.05, 1.0  # seconds of a pause; QEMU's patience with a server is 5


def hop(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    """Migrate the guest to the other host; where it comes back by the next event, have that begun."""
    machine, here = scene.guest.name, scene.guest.host
    then = here if scene.comes_back else None
    report = scene.lab.migrate(scene.guest, to=scene.pair.other(here), plan=_HOP, then=then)
    _require_hosts(report)
    if not report.ok:
        raise Failed("migration", report.sentence)
    scene.left(machine)
    return _measured(report)


def cut(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    """Migrate it over a link that is cut when its memory is to be copied: it stays, and the link is mended."""
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
    _require_hosts(report)
    if report.verdict is not Verdict.STAYED:
        raise Failed("migration over a link that was cut", report.sentence)
    scene.left(report.machine)
    return {}


def _require_hosts(report: Report) -> None:
    if report.hindered:
        raise HostFailure(report.sentence)


def _measured(report: Report) -> Facts:
    dirty = next((record.details for record in report.phases if record.phase is Phase.DIRTY_PAGES), None)
    pages = {"dirty_pages": dirty["pages"] + dirty["unmapped"]} if dirty else {}
    phases = {str(record.phase): round(record.seconds, 4) for record in report.phases}
    return {"downtime": report.downtime, "ram_bytes": report.ram_bytes, **pages, "phases": phases}


def reset(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    """Reset the machine by QMP, and wait until the guest is up."""
    scene.guest.reset()
    return {}


def reboot(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    """Have the guest reboot itself, and wait until it is up."""
    scene.guest.reboot()
    return {}


def flr(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    """Have the guest reset a function; a driver that is not told of that leaves it for the time."""
    scene.guest.call(reset_function, scene.plugged(device).address, not survives_flr(device))
    return {}


def replug(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    """Unplug the device, end its server, start another and plug it in."""
    plugged, server = scene.plugged(device), scene.server(device)
    scene.guest.unplug(plugged, keep_server=True)
    scene.lab.end(None, [server])
    scene.plug(device)
    return {}


def kill(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    """Kill the server; on return another is in its place, and the guest's driver of a vfio-user device knows."""
    server = scene.server(device)
    if device.assignment.device.family.keeps_sessions:
        before = server.control.survival()["crashes"]
        server.kill()
        _await_replaced(server, before)
        if not device.is_driven_by_program:  # the guest's driver is the one that has to tell it anew
            flr(scene, device, chance)
    else:
        server.kill()
        server.restart()
    return {}


def _await_replaced(server: DeviceServer, crashes: int) -> None:
    """Until the interposer has put another in its place; it tells of that when it is asked."""
    deadline = Deadline(_REPLACED_SECONDS)
    none = f"none took the place of {server.name}"
    try:
        while (survival := server.control.survival())["crashes"] == crashes or survival["recovering"]:
            if deadline.passed:
                raise Failed("another server", f"{none} in {_REPLACED_SECONDS:g} s")
            time.sleep(0.01)
    except ControlError as error:  # it has given up, and the session with it
        raise Failed("another server", f"{none}: {error}") from error


def upgrade(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    """Have the server hand over to another, or end in order and another take its place."""
    server = scene.server(device)
    if not device.assignment.device.family.keeps_sessions:
        server.owner.stop()
        server.restart()
        return {}
    done = server.control.call("restart", hand_over=True)
    if not done["handed_over"]:
        raise Failed("upgrade", f"the server of {device.name} was replaced, and nothing was handed over")
    return {}


def interposer(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    """Kill the interposer, and start another where it was."""
    server = scene.server(device)
    server.kill_interposer()
    server.restart_interposer()
    return {}


def pause_server(scene: Scene, device: SoakedDevice, chance: float) -> Facts:
    """Have the server stand still for a moment."""
    server = scene.server(device)
    server.owner.pause()
    try:
        seconds = _pause(chance)
    finally:
        server.owner.go_on()
    return {"paused": seconds}


def pause_qemu(scene: Scene, _: SoakedDevice, chance: float) -> Facts:
    """Have QEMU stand still for a moment."""
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


def survives_flr(device: SoakedDevice) -> bool:
    """Whether its driver is told of a reset and goes on: NVMe's is; virtio's, and a program, are not."""
    return device.assignment.device.served == "nvme"


# -- in the guest -----------------------------------------------------------------------------------------------------


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
