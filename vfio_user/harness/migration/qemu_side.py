"""QEMU's half of a migration: capabilities, the stream, and the events that say how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vfio_user.errors import UserError
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.machine import Machine
from vfio_user.harness.qmp import Qmp, QmpTimeout

_ENDED = ("failed", "cancelled")


class MigrationFailed(UserError):
    """QEMU gave the migration up."""


@dataclass(frozen=True)
class Tuning:
    """How QEMU migrates. `bandwidth` is in bytes a second, `channels` of multifd (0: one stream without it)."""

    bandwidth: int = 1 << 40
    downtime_limit: float = 0.05
    channels: int = 0


def set_up(machine: Machine, tuning: Tuning, *, pause: bool) -> None:
    """Capabilities and parameters, which both sides need alike."""
    wanted = {
        "events": True,
        "pause-before-switchover": pause,
        "mapped-ram": False,
        "multifd": bool(tuning.channels),
    }
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    machine.qmp.command("migrate-set-capabilities", capabilities=capabilities)
    parameters: dict[str, Any] = {
        "max-bandwidth": tuning.bandwidth,
        "downtime-limit": int(tuning.downtime_limit * 1000),
    }
    if tuning.channels:
        parameters["multifd-channels"] = tuning.channels
    machine.qmp.execute("migrate-set-parameters", parameters)
    machine.qmp.events.forget("MIGRATION")


def listen(machine: Machine, address: str) -> str:
    """Have a machine wait for its guest; the URI to migrate to. The kernel chooses the port."""
    machine.qmp.execute("migrate-incoming", {"uri": f"tcp:{address}:0", "exit-on-error": False})
    where = machine.qmp.command("query-migrate")["socket-address"][0]
    return f"tcp:{where['host']}:{where['port']}"


def status_event(machine: Machine, seconds: float) -> str | None:
    """The next status that QEMU tells, None when none comes in time. Raises `MigrationFailed` with QEMU's reason."""
    try:
        status: str = machine.qmp.wait_event("MIGRATION", seconds)["data"]["status"]
    except QmpTimeout:
        return None
    if status in _ENDED:
        raise MigrationFailed(f"{machine.name}: {failure(machine.qmp, status)}")
    return status


def await_status(machine: Machine, wanted: str, deadline: Deadline) -> None:
    """Wait for a status. Raises `MigrationFailed`, or `QmpTimeout`."""
    while (status := status_event(machine, deadline.remaining)) != wanted:
        if status is None:
            raise QmpTimeout(f"{machine.name}: the migration was not {wanted} in {deadline.seconds:g} s")


def failure(qmp: Qmp, status: str) -> str:
    """Why a migration ended badly, in QEMU's words."""
    return str(qmp.command("query-migrate").get("error-desc") or f"the migration is {status}")


def stamp(event: dict[str, Any]) -> float:
    """When QEMU says that an event happened, in seconds since 1970."""
    return float(event["timestamp"]["seconds"]) + float(event["timestamp"]["microseconds"]) / 1e6
