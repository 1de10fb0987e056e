"""Devices by name: entry points of the group `vfio_user.devices`, or MODULE:CLASS."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from vfio_user.errors import UserError

if TYPE_CHECKING:
    from vfio_user.device import PciDevice

GROUP = "vfio_user.devices"


def device_names() -> list[str]:
    """The names that installed packages give to their devices."""
    return sorted(entry.name for entry in entry_points(group=GROUP))


def find_device(name: str) -> type[PciDevice]:
    """The class that `name` means.

    Raises:
        UserError: there is none, or it is no device.
    """
    from vfio_user.device import PciDevice

    found = entry_points(group=GROUP, name=name)
    if not found and ":" not in name:
        raise UserError(
            f"unknown device {name!r}", hint=f"there are: {', '.join(device_names())}; or give MODULE:CLASS"
        )
    try:
        device = next(iter(found)).load() if found else EntryPoint(name, name, GROUP).load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"device {name!r} cannot be loaded: {error}") from error
    if not (isinstance(device, type) and issubclass(device, PciDevice)):
        raise UserError(f"{name!r} is no device", hint="a device is a subclass of vfio_user.PciDevice")
    return device


def description(device: type[PciDevice]) -> dict[str, Any]:
    """The JSON description that the specification wants of a back-end program: DEVICE.json beside the device's module.

    A device without one is described by its docstring.
    """
    module = importlib.import_module(device.__module__)
    name = device.__module__.rpartition(".")[2]
    try:
        from importlib.resources import files

        text = files(module.__package__ or "").joinpath(f"{name}.json").read_text()
    except (OSError, ModuleNotFoundError, ValueError):
        return {"description": (device.__doc__ or device.__name__).strip().partition("\n")[0], "type": "vfio-user"}
    document: dict[str, Any] = json.loads(text)
    return document
