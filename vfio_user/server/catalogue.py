"""Devices by name: entry points of the group `vfio_user.devices`, MODULE:CLASS, or FILE.py:CLASS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev.serving.catalogue import Catalogue

if TYPE_CHECKING:
    from vfio_user.device import PciDevice


def _base() -> type[PciDevice]:
    from vfio_user.device import PciDevice

    return PciDevice


OWN = {"edu": "userdev_servers.edu:Edu", "gpio": "userdev_servers.gpio:Gpio", "nvme": "userdev_servers.nvme:Nvme"}
OTHERS = {
    "vhost_user.VhostDevice": "it is a virtio device: `vhost-user serve {name}`; guests and tests say vhost-user:{name}"
}
DEVICES = Catalogue("vfio_user.devices", "vfio-user", _base, OWN, others=OTHERS)
