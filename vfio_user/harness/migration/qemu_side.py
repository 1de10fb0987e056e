"""QEMU's half of a migration: capabilities, the stream, and the events that say how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from userdev.errors import UserdevError, UserError
from userdev.process import Deadline, tail
from vfio_user.harness.last_words import reason
from vfio_user.harness.machine import Machine
from vfio_user.harness.qmp import QmpError, QmpLost, QmpTimeout

_ENDED = ("failing", "failed", "cancelling", "cancelled")
"""What is on its way to its end may not get there by itself: the guest runs again, and its processor may be waiting for
a device that is held back, with the big lock in its hand."""
_OVER = ("failed", "cancelled")
_HANG_UP_SECONDS = 5.0
_CANCEL_SECONDS = 20.0
_TURN_SECONDS = 0.05  # seconds for an event that may have come and gone before anybody asks again
_LEGACY_HOLE = range(0xA0000, 0x100000)


class MigrationFailed(UserError):
    """QEMU gave the migration up. `explain` asks it why: not while a processor of its guest waits for us."""

    def __init__(self, machine: Machine, status: str) -> None:
        super().__init__(f"{machine.name}: the migration is {status}")
        self.machine = machine
        self.status = status

    def explain(self) -> str:
        """The reason in QEMU's words: `error-desc` of `query-migrate` where it has one, and what it printed last."""
        told = f"the migration is {self.status}"
        with suppress(UserdevError):
            told = self.machine.qmp.command("query-migrate").get("error-desc") or told
        printed = reason(tail(self.machine.child.log))
        return f"{self.machine.name}: {told}" + (f" ({printed})" if printed and printed not in told else "")


@dataclass(frozen=True)
class Tuning:
    """The settings of QEMU's migration. `bandwidth` is in bytes a second, `channels` of multifd (0: one stream
    without it).
    """

    bandwidth: int = 1 << 40
    downtime_limit: float = 0.05
    channels: int = 0


def set_up(machine: Machine, tuning: Tuning, *, pause: bool) -> None:
    """Capabilities and parameters, which both sides need alike."""
    wanted = {
        "events": True,
        "pause-before-switchover": pause,
        "mapped-ram": False,
        "x-ignore-shared": False,
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


def blocked_reasons(machine: Machine) -> list[str]:
    """Why QEMU would refuse to migrate its guest as it is now, in its words; nothing: it would not."""
    return list(machine.qmp.command("query-migrate").get("blocked-reasons", []))


def listen(machine: Machine, address: str) -> str:
    """Have a machine wait for its guest; the URI to migrate to. The kernel chooses the port."""
    read(machine, _uri(address, 0))
    where = machine.qmp.command("query-migrate")["socket-address"][0]
    return _uri(where["host"], where["port"])


def _uri(host: str, port: int | str) -> str:
    """As inet_parse takes it (QEMU, util/qemu-sockets.c): an address of IPv6 in brackets."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def read(machine: Machine, uri: str) -> None:
    """Have a machine take its guest from there."""
    machine.qmp.execute("migrate-incoming", {"uri": uri, "exit-on-error": False})


def go_on(machine: Machine) -> None:
    """Have QEMU send the rest, after `pre-switchover`.

    Raises:
        MigrationFailed: it is giving up before it has answered, which it may not do any more (`_ENDED`).
    """

    def is_given_up() -> None:
        for status in _ENDED:
            with suppress(QmpTimeout):
                machine.qmp.wait_event("MIGRATION", 0, {"status": status})
                raise MigrationFailed(machine, status)

    machine.qmp.execute("migrate-continue", {"state": "pre-switchover"}, unless=is_given_up)


def hang_up(machine: Machine) -> None:
    """Close the connections of a migration, also of a QEMU that stands still until the other side takes what it sends.

    While it sends the last of its memory it serves nobody else, for as long as TCP has patience: a quarter of an hour.
    """
    with suppress(UserdevError):  # there may be none any more
        machine.qmp.execute("yank", {"instances": [{"type": "migration"}]}, _HANG_UP_SECONDS, out_of_band=True)


def write_again(machine: Machine, offsets: Sequence[int]) -> None:
    """Write a byte of pages of the guest's memory once more, so that QEMU sends them; by their offsets in its file.

    The machine is paused. In the hole below 1 MiB are the graphics card and ROM, which a write would reach instead; it
    is unmapped with everything else when the guest reboots, and no driver has buffers there.
    """
    places = [_guest_address(offset, machine.config.memory << 20) for offset in offsets if offset not in _LEGACY_HOLE]
    values = machine.qtest.ask_all([f"readb {place:#x}" for place in places])
    machine.qtest.ask_all([f"writeb {place:#x} {value}" for place, value in zip(places, values, strict=True)])


def _guest_address(offset: int, memory: int) -> int:
    """Where a q35 machine has its memory (QEMU's hw/i386/pc_q35.c): what is above the hole for PCI is above 4 GiB."""
    low = 0x8000_0000 if memory >= 0xB000_0000 else 0xB000_0000
    return offset if offset < low else (4 << 30) + offset - low


def status_event(machine: Machine, seconds: float) -> str | None:
    """The next status that QEMU tells, None when none comes in time.

    Raises:
        MigrationFailed: it is that of a migration that failed.
    """
    try:
        status: str = machine.qmp.wait_event("MIGRATION", seconds)["data"]["status"]
    except QmpTimeout:
        return None
    if status in _ENDED:
        raise MigrationFailed(machine, status)
    return status


def not_copied(machine: Machine, deadline: Deadline) -> UserError:
    """The error that the memory was not copied in time: whether guest or link is to blame, as far as QEMU knows."""
    ram = machine.qmp.command("query-migrate").get("ram", {})
    left = ram.get("remaining", 0)
    dirtied = ram.get("dirty-pages-rate", 0) * ram.get("page-size", 4096)
    sent = ram.get("mbps", 0.0) * 1e6 / 8
    why, hint = "the link is slow", "give more bandwidth or more time"
    if dirtied and ram.get("dirty-sync-count", 0) > 1:  # everything has been sent once
        why = "the guest goes on writing too much for the link"
        hint = "give more bandwidth or more downtime, or let the guest do less"
    return UserError(
        f"the memory was not copied in {deadline.seconds:g} s, {why}: {left >> 10} KiB are left, "
        f"{dirtied >> 10} KiB/s become dirty, {int(sent) >> 10} KiB/s are sent",
        hint=hint,
    )


def let_run(machine: Machine, running: bool) -> None:
    """End the migration of a machine that is its source, and have its guest run on where it was `running`.

    Raises:
        QmpLost: QEMU has ended.
    """
    qmp = machine.qmp
    status = qmp.command("query-migrate").get("status", "none")
    if status not in ("none", "completed", *_OVER):
        with suppress(QmpError):  # it may have ended this moment
            qmp.command("migrate_cancel")
        deadline = Deadline(_CANCEL_SECONDS)
        while status not in ("completed", *_OVER) and not deadline.passed:
            with suppress(QmpTimeout):
                qmp.wait_event("MIGRATION", _TURN_SECONDS)
            status = qmp.command("query-migrate")["status"]
    if running and not qmp.command("query-status")["running"]:
        qmp.command("cont")
    if not machine.child.running:
        raise QmpLost("QEMU has ended")
