"""What may happen to a guest, as a table: how it is done, what it needs, whose work ends by it, what is verified.

What is lost by right ends before an event and begins anew after it: programs at a reset, what a program has told a
device that forgets. Everything else goes on, and has to be right afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vfio_user.soak import acts, lacks
from vfio_user.soak.acts import Act
from vfio_user.soak.guest import SoakedDevice
from vfio_user.soak.lacks import Lacks
from vfio_user.soak.order import HOP

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


# -- whose work ends --------------------------------------------------------------------------------------------------


def _forgets_at_flr(device: SoakedDevice) -> bool:
    return not acts.survives_flr(device)


def _forgets_at_kill(device: SoakedDevice) -> bool:
    return device.is_driven_by_program or device.may_lose


def _loses_on_the_way(device: SoakedDevice) -> bool:
    return device.may_lose


_WORK_GOES_ON = "all work went on and was right"
_WORK_ANEW = "its work was right, and begins anew"

EVENTS: Mapping[str, Event] = {
    HOP: Event(
        "the guest goes to the other host with its devices",
        4,
        acts.hop,
        lacks.no_migration,
        "devices that can be migrated",
        f"verdict migrated; {_WORK_GOES_ON}",
        of_guest=True,
    ),
    "cut": Event(
        "the link between the hosts is cut while the guest goes to the other, and mended",
        1,
        acts.cut,
        lacks.no_cable,
        "hosts with a cable (namespaces), devices that can be migrated",
        f"verdict stayed; {_WORK_GOES_ON}",
        of_guest=True,
    ),
    "system-reset": Event(
        "QMP system_reset",
        1,
        acts.reset,
        lacks.nothing,
        "any guest",
        "the guest boots; disks have what was written; work begins anew",
        of_guest=True,
        ends_work=_always,
        boots=True,
    ),
    "reboot": Event(
        "the guest reboots itself",
        1,
        acts.reboot,
        lacks.nothing,
        "any guest",
        "the guest boots; disks have what was written; work begins anew",
        of_guest=True,
        ends_work=_always,
        boots=True,
    ),
    "flr": Event(
        "the guest resets a function; drivers that are not told of that leave it for the time",
        3,
        acts.flr,
        lacks.no_flr,
        "a device with FLR",
        f"{_WORK_ANEW}; with nvme it goes on",
        ends_work=_forgets_at_flr,
    ),
    "replug": Event(
        "a device is unplugged, its server ended; another server is started, the device plugged in",
        2,
        acts.replug,
        lacks.no_unplug,
        "a device that QEMU survives the unplugging of",
        f"{_WORK_ANEW}; a disk has what was written",
        ends_work=_always,
    ),
    "kill": Event(
        "a server is killed, and another takes its place",
        4,
        acts.kill,
        lacks.no_other_server,
        "vfio-user: what it keeps outlives it, or its work begins anew; vhost-user: QEMU connects again",
        f"disks: {_WORK_GOES_ON}; others: {_WORK_ANEW}",
        ends_work=_forgets_at_kill,
    ),
    "upgrade": Event(
        "a server hands over to another, or ends in order and another takes its place",
        4,
        acts.upgrade,
        lacks.no_upgrade,
        "vfio-user: a server that migrates; vhost-user: QEMU connects again",
        _WORK_GOES_ON,
        ends_work=_loses_on_the_way,
    ),
    "interposer": Event(
        "an interposer is killed, and another takes its place",
        3,
        acts.interposer,
        lacks.no_other_interposer,
        "vhost-user: QEMU connects again",
        _WORK_GOES_ON,
        ends_work=_loses_on_the_way,
    ),
    "pause-server": Event(
        "a server stands still for a moment (SIGSTOP, SIGCONT)",
        6,
        acts.pause_server,
        lacks.nothing,
        "any server",
        _WORK_GOES_ON,
        keeps=False,
    ),
    "pause-qemu": Event(
        "QEMU stands still for a moment (stop, cont)",
        6,
        acts.pause_qemu,
        lacks.nothing,
        "any guest",
        _WORK_GOES_ON,
        of_guest=True,
        keeps=False,
    ),
}

USUAL_WEIGHTS: Mapping[str, float] = {name: event.weight for name, event in EVENTS.items()}
