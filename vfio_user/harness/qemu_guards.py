"""What a QEMU would not survive: refused in words before it has it, where it is among the versions that are affected.

The entries of known_issues.yaml whose status is `avoided` say what ended; here is what keeps it from happening.
"""

from __future__ import annotations

from pathlib import Path

from packaging.version import Version

from userdev.errors import UserdevError, UserError
from vfio_user.harness.known_issues import known_issues

PATIENCE_SECONDS = 5.0
"""Seconds that a server has for each answer, when it is looked at."""

AT_UNPLUG = "unplug-abort"
AT_PLUG = ("realize-crash", "region-info-crash")
UNTOLD = "untold-translation"
_TRANSLATES = "ACCESS_PLATFORM"


def check_unplug(qemu: Version, device: str, *, msix: bool) -> None:
    """Raise `UserError` where this QEMU would not survive that a device is taken out of it."""
    if msix and known_issues()[AT_UNPLUG].affects(qemu):
        raise UserError(
            f"QEMU {qemu} does not survive that {device!r} is unplugged: it has MSI-X"
            f" (`vfio-user known-issues {AT_UNPLUG}`)",
            hint="plug it in without MSI-X, where it can do without (`edu --msix 0`, `nvme --msix=no`)",
        )


def check_back_end(qemu: Version, name: str, address: Path) -> None:
    """Look at a back-end that is not ours, for whose addresses QEMU was not told what to do, as its front-end. One that
    cannot be talked to is QEMU's to refuse.

    Raises:
        UserError: this QEMU would not survive it.
    """
    if not known_issues()[UNTOLD].affects(qemu):
        return
    from vhost_user.frontend import FrontEnd  # most guests have no such device
    from vhost_user.frontend.description import describe as describe_back_end

    try:
        with FrontEnd(str(address), timeout=PATIENCE_SECONDS) as front_end:
            offered = describe_back_end(front_end).features
    except UserdevError:
        return
    if _TRANSLATES in offered:
        raise UserError(
            f"QEMU {qemu} may not survive {name!r} as it is (`vfio-user known-issues {UNTOLD}`)",
            hint="have QEMU translate addresses for it: the property iommu_platform=on",
        )


def check_server(qemu: Version, name: str, address: Path) -> None:
    """Look at a server that is not ours, as its client. One that cannot be talked to is QEMU's to refuse.

    Raises:
        UserError: this QEMU would not survive its device.
    """
    if not any(known_issues()[issue].affects(qemu) for issue in AT_PLUG):
        return
    from vfio_user.client import Client  # most devices are of servers of ours
    from vfio_user.client.description import describe

    try:
        with Client.connect(f"unix:{address}", timeout=PATIENCE_SECONDS) as client:
            not_survived = describe(client).not_survived
    except UserdevError:
        return
    if not_survived:
        raise UserError(
            f"QEMU {qemu} does not survive the device of {name!r}: {'; '.join(not_survived)}",
            hint=f"mend the server; `vfio-user known-issues {' '.join(AT_PLUG)}`",
        )
