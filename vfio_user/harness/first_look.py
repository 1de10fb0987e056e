"""A look at somebody else's server before QEMU has it: what QEMU would not survive is refused."""

from __future__ import annotations

from collections.abc import Callable

from packaging.version import Version

from vfio_user.harness.artifacts import Timeline
from vfio_user.harness.device import Device
from vfio_user.harness.server import DeviceServer
from vfio_user.harness.site import Site


class FirstLook:
    """One for a lab: servers are known by their commands and the properties of their devices."""

    def __init__(self, qemu: Callable[[], Version], timeline: Timeline) -> None:
        """`qemu` finds the version, which may have to be fetched first."""
        self._qemu, self._timeline = qemu, timeline
        self._seen: set[tuple[str, str]] = set()

    def take(self, device: Device, name: str, site: Site) -> None:
        """Start one of its own and look at it, the first time.

        Not where the program is ours, which cannot be so, nor on a host that is reached by SSH, whose sockets are not
        here.

        Raises:
            UserError: QEMU would not survive it.
        """
        known_by = device.command, str(sorted(device.properties.items()))
        if not device.command or known_by in self._seen or not site.host.shares_memory or device.is_ours:
            return
        self._seen.add(known_by)
        with self._timeline.step(f"look at the server {name}"):
            server = DeviceServer(device, site, f"{name}.look")
            try:
                device.family.check_server(self._qemu(), name, server.path, device.properties)
            finally:
                server.stop()
