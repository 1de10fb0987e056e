"""Devices by name: entry points of the group `vhost_user.devices`, MODULE:CLASS, or FILE.py:CLASS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev.serving.catalogue import Catalogue

if TYPE_CHECKING:
    from vhost_user.device import VhostDevice


def _base() -> type[VhostDevice]:
    from vhost_user.device import VhostDevice

    return VhostDevice


DEVICES = Catalogue("vhost_user.devices", "vhost-user", _base)
