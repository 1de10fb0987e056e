"""What a back-end serves, which the protocol does not say: --device of `vhost-user conformance` and `fuzz`."""

from __future__ import annotations

from userdev.errors import UserError, meant
from vhost_user.frontend.conformance import DEVICES
from vhost_user.frontend.conformance.devices import DeviceKind

KINDS = f"What is served, which the protocol does not say: {', '.join(DEVICES)}. Without a server: "
"""Its help, before that of a device that a server is started for."""


def served_kind(device: str | None, *, alone: bool) -> DeviceKind | None:
    """What is served, by --device; None where that is none of those whose requests are known.

    Raises:
        UserError: it is not `alone`, a server is named too, and it is no device of those.
    """
    if device is None:
        return None
    name = device.split(" ")[0].removeprefix("vhost-user-")
    if name not in DEVICES and not alone:
        hint = f"{meant(name, DEVICES)}there are: {', '.join(DEVICES)}"
        raise UserError(f"nothing is known of a device {name!r}", hint=hint)
    return DEVICES.get(name)
