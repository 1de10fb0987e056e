"""Devices by name: entry points of the group `vhost_user.devices`, MODULE:CLASS, or FILE.py:CLASS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev.serving.catalogue import Catalogue

if TYPE_CHECKING:
    from vhost_user.device import VhostDevice


def _base() -> type[VhostDevice]:
    from vhost_user.device import VhostDevice

    return VhostDevice


def capabilities(device: type[VhostDevice]) -> dict[str, int]:
    """The device's type, queues and bytes of configuration space: what a front-end that drives any type has to be told.

    QEMU's is vhost-user-test-device. A device may have other queues by its options.
    """
    from vhost_user.device.config import config_size

    queues = device.queues
    return {
        "virtio-id": device.virtio_id,
        "queues": queues.count,
        "queue-size": queues.size,
        "config-size": config_size(device),
    }


OWN = {"blk": "userdev_servers.blk:Blk", "net": "userdev_servers.net:Net", "rng": "userdev_servers.rng:Rng"}
OTHERS = {"vfio_user.PciDevice": "it is a PCI device: `vfio-user serve {name}`; guests and tests say {name} alone"}
DEVICES = Catalogue("vhost_user.devices", "vhost-user", _base, OWN, capabilities, OTHERS)
