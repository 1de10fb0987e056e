"""What a back-end serves, which the protocol does not say: --device of `vhost-user conformance` and `fuzz`."""

from __future__ import annotations

from dataclasses import replace

from userdev.declare.declared import declarations
from userdev.errors import UserError, meant
from vfio_user.cli._served import is_authors
from vhost_user.backend.catalogue import DEVICES as INSTALLED
from vhost_user.device import VhostDevice
from vhost_user.device.config import ConfigField, config_size
from vhost_user.frontend.conformance import DEVICES
from vhost_user.frontend.conformance.devices import DeviceKind

KINDS = (
    f"What is served, which the protocol does not say: {', '.join(DEVICES)}, or MODULE:CLASS of one with a"
    " sample_request. Without a server: "
)
"""Its help, before that of a device that a server is started for."""


def served_kind(device: str | None, *, alone: bool) -> DeviceKind | None:
    """What is served, by --device; None where that is none of those whose requests are known.

    Raises:
        UserError: it is not `alone`, a server is named too, and it is no device; or its class cannot be had.
    """
    if device is None:
        return None
    name = device.split(" ")[0].removeprefix("vhost-user-")
    if name in DEVICES:
        return DEVICES[name]
    if is_authors(name) or name.startswith("vhost-user:") or name in INSTALLED.names():
        return kind_of(INSTALLED.find(name))
    if not alone:
        hint = f"{meant(name, DEVICES)}there are: {', '.join(DEVICES)}; or MODULE:CLASS of one with a sample_request"
        raise UserError(f"nothing is known of a device {name!r}", hint=hint)
    return None


def kind_of(device: type[VhostDevice]) -> DeviceKind | None:
    """What checks are told of a class of devices: its sample request, or that of its type; None: neither is known."""
    size, name = config_size(device), device.__name__
    first = min(declarations(device, ConfigField), key=lambda field: field.offset, default=None)
    begins_read_only = first is None or first.offset > 0 or not first.writable
    sample = device.sample_request
    if sample is not None:
        is_right = sample.is_right
        return DeviceKind(
            name,
            device.virtio_id,
            sample.queue,
            sample.buffers,
            lambda done: is_right(done.data),
            size,
            repeats=False,
            begins_read_only=begins_read_only,
        )
    for kind in DEVICES.values():
        if kind.virtio_id == device.virtio_id and max(kind.queue, *kind.beside, 0) < device.queues.count:
            return replace(kind, name=name, config_size=size, begins_read_only=begins_read_only)
    return None


def untried(device: str | None) -> str:
    """Why no request is made, in a line: nobody has said what is served, or that says of no request."""
    if device is None or "{socket}" in device:
        return "no request is tried: --device says what the back-end is, and --server-command starts one of yours"
    return f"no request is tried: nobody has said one that does no harm; give the class of {device!r} a sample_request"
