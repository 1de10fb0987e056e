"""vfio-user devices in Python, and what it takes to test any vfio-user server from inside a real guest.

A device author needs no more than this: `from vfio_user import MsiX, PciDevice, PciIds, register, state`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "CURRENT",
    "DIALECTS",
    "Bar",
    "Capability",
    "Client",
    "Dialect",
    "Disconnected",
    "Dma",
    "DmaRegion",
    "EventFd",
    "ExtendedVendor",
    "ExtraRegion",
    "GuestMemory",
    "IntX",
    "Interrupts",
    "Link",
    "Listener",
    "MigrationState",
    "Msi",
    "MsiX",
    "NoAnswer",
    "NoClient",
    "Offer",
    "Option",
    "PciDevice",
    "PciExpress",
    "PciIds",
    "Placed",
    "Planned",
    "PowerManagement",
    "ProtocolError",
    "Quiesce",
    "RemoteError",
    "ResetKind",
    "SerialNumber",
    "Server",
    "Storage",
    "Stream",
    "UserError",
    "UserdevError",
    "VendorSpecific",
    "VerdictError",
    "Views",
    "memory",
    "register",
    "serve",
    "state",
    "stored_register",
]

if TYPE_CHECKING:
    from userdev.errors import (
        ProtocolError,
        UserdevError,
        UserError,
        VerdictError,
    )
    from userdev.transport import Listener, Stream
    from vfio_user.client import (
        Client,
        Disconnected,
        EventFd,
        GuestMemory,
        NoAnswer,
        RemoteError,
    )
    from vfio_user.device import (
        Bar,
        Capability,
        Dma,
        DmaRegion,
        ExtendedVendor,
        ExtraRegion,
        Interrupts,
        IntX,
        Link,
        MigrationState,
        Msi,
        MsiX,
        NoClient,
        Option,
        PciDevice,
        PciExpress,
        PciIds,
        Placed,
        Planned,
        PowerManagement,
        Quiesce,
        ResetKind,
        SerialNumber,
        Storage,
        VendorSpecific,
        Views,
        memory,
        register,
        state,
        stored_register,
    )
    from vfio_user.server import Offer, Server, serve
    from vfio_user.wire import CURRENT, DIALECTS, Dialect
else:
    # Hidden from type checkers, for which every name would be right: `vfio-user --help` needs none of them (PEP 562).
    import importlib

    _HOMES = {
        **dict.fromkeys(__all__, "vfio_user.device"),
        **dict.fromkeys(
            ("Client", "Disconnected", "EventFd", "GuestMemory", "NoAnswer", "RemoteError"), "vfio_user.client"
        ),
        **dict.fromkeys(("ProtocolError", "UserError", "VerdictError", "UserdevError"), "userdev.errors"),
        **dict.fromkeys(("Offer", "Server", "serve"), "vfio_user.server"),
        **dict.fromkeys(("Listener", "Stream"), "userdev.transport"),
        **dict.fromkeys(("CURRENT", "DIALECTS", "Dialect"), "vfio_user.wire"),
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return value

    def __dir__():
        return __all__
