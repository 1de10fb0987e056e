"""What the host may ask of a running controller through its control socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from servers.nvme.backing import parse_size
from vfio_user.errors import UserError

if TYPE_CHECKING:
    from servers.nvme.nvme import Nvme


def namespaces(device: Nvme, request: Mapping[str, Any]) -> dict[str, Any]:
    """{"command": "namespaces"}: what there is."""
    return {
        "namespaces": [
            {
                "nsid": namespace.nsid,
                "image": str(namespace.backing.path),
                "size": namespace.size,
                "block_size": 1 << namespace.shift,
                "exists": namespace.exists,
                "attached": namespace.attached,
                "read_only": namespace.read_only,
            }
            for namespace in device.namespaces
        ]
    }


def resize(device: Nvme, request: Mapping[str, Any]) -> dict[str, Any]:
    """{"command": "resize", "nsid": 1, "size": "128M"}: the guest gets an event, and its driver looks again."""
    nsid, size = request.get("nsid"), parse_size(str(request.get("size")))
    chosen = next((each for each in device.namespaces if each.nsid == nsid and each.exists), None)
    if chosen is None:
        raise UserError(f"there is no namespace {nsid}")
    if size % 4096:
        raise UserError(f"{size} bytes are no whole number of blocks")
    device.engine.drain()
    try:
        chosen.backing.resize(size)
    except OSError as error:
        raise UserError(f"{chosen.backing.path}: {error.strerror}") from error
    chosen.blocks = size >> chosen.shift
    device.namespace_changed(chosen)
    return {"size": chosen.size}


COMMANDS: dict[str, Callable[[Nvme, Mapping[str, Any]], dict[str, Any]]] = {
    "namespaces": namespaces,
    "resize": resize,
}
