"""What the guest itself can tell of a migration: whether it is the same guest, with the same devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.guest import GuestFailure, GuestLost
from vfio_user.harness.machine import MachineError
from vfio_user.harness.migration.report import Report
from vfio_user.harness.server import ServerFailure


@dataclass(frozen=True)
class GuestView:
    """`devices` has for each device, by its address: driver, and config space but for what changes by itself."""

    boot_id: str
    uptime: float
    devices: dict[str, dict[str, Any]]


def look(guest: BootedGuest) -> GuestView:
    """Ask the guest. Raises what `Guest.call` raises."""
    seen = guest.call(_look, [plugged.address for plugged in guest.devices])
    return GuestView(seen["boot_id"], seen["uptime"], seen["devices"])


def compare(report: Report, before: GuestView, guest: BootedGuest) -> GuestView | None:
    """Look again, and put what was found into the report; None where the guest does not answer."""
    try:
        after = look(guest)
    except (GuestLost, GuestFailure, MachineError, ServerFailure) as error:
        report.judge("the guest answers", False, str(error))
        return None
    report.judge("no reboot", after.boot_id == before.boot_id, f"boot id {after.boot_id}")
    report.judge("time goes on", after.uptime >= before.uptime, f"uptime {before.uptime} s, then {after.uptime} s")
    for address, device in before.devices.items():
        now = after.devices[address]
        report.judge(f"driver of {address}", now["driver"] == device["driver"], now["driver"] or "none")
        different = [name for name, value in device["registers"].items() if now["registers"][name] != value]
        said = ", ".join(f"{name} is {now['registers'][name]}, was {device['registers'][name]}" for name in different)
        report.judge(f"config space of {address}", not different, said)
    return after


def _look(addresses: list[str]) -> dict[str, Any]:
    from pathlib import Path

    def registers(config: bytes) -> dict[str, str]:
        """What nobody but the guest changes. Its kernel does so with INTX_DISABLE at each interrupt of a uio device."""

        def word(at: int, width: int = 4) -> str:
            return f"{int.from_bytes(config[at : at + width], 'little'):#x}"

        bars = {f"BAR {index}": word(0x10 + 4 * index) for index in range(6)}
        command = f"{int(word(4, 2), 16) & ~0x400:#x}"
        return {"ids": word(0), "command": command, **bars, "interrupt line": word(0x3C, 1)}

    def device(folder: Path) -> dict[str, object]:
        driver = folder / "driver"
        return {
            "driver": driver.resolve().name if driver.exists() else "",
            "registers": registers((folder / "config").read_bytes()),
        }

    devices = Path("/sys/bus/pci/devices")
    return {
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "uptime": float(Path("/proc/uptime").read_text().split()[0]),
        "devices": {address: device(devices / address) for address in addresses},
    }
