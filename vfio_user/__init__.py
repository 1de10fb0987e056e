"""vfio-user devices in Python, and what it takes to test any vfio-user server from inside a real guest.

A device author needs no more than this: `from vfio_user import MsiX, PciDevice, PciIds, register, state`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfio_user.client import Client as Client
    from vfio_user.client import EventFd as EventFd
    from vfio_user.client import GuestMemory as GuestMemory
    from vfio_user.client import RemoteError as RemoteError
    from vfio_user.device import Bar as Bar
    from vfio_user.device import ExtendedVendor as ExtendedVendor
    from vfio_user.device import ExtraRegion as ExtraRegion
    from vfio_user.device import IntX as IntX
    from vfio_user.device import Msi as Msi
    from vfio_user.device import MsiX as MsiX
    from vfio_user.device import PciDevice as PciDevice
    from vfio_user.device import PciExpress as PciExpress
    from vfio_user.device import PciIds as PciIds
    from vfio_user.device import PowerManagement as PowerManagement
    from vfio_user.device import Quiesce as Quiesce
    from vfio_user.device import ResetKind as ResetKind
    from vfio_user.device import SerialNumber as SerialNumber
    from vfio_user.device import VendorSpecific as VendorSpecific
    from vfio_user.device import memory as memory
    from vfio_user.device import register as register
    from vfio_user.device import state as state
    from vfio_user.device import stored_register as stored_register
    from vfio_user.errors import ProtocolError as ProtocolError
    from vfio_user.errors import UserError as UserError
    from vfio_user.errors import VerdictError as VerdictError

_MODULES = {
    **dict.fromkeys(("Client", "EventFd", "GuestMemory", "RemoteError"), "vfio_user.client"),
    **dict.fromkeys(("ProtocolError", "UserError", "VerdictError"), "vfio_user.errors"),
}


def __getattr__(name: str) -> object:
    """The names above, imported when first used: `vfio-user --help` needs none of them (PEP 562)."""
    if name.startswith("_"):
        raise AttributeError(name)
    module = importlib.import_module(_MODULES.get(name, "vfio_user.device"))
    try:
        return getattr(module, name)
    except AttributeError:
        raise AttributeError(f"module 'vfio_user' has no attribute {name!r}") from None
