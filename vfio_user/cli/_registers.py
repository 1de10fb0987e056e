"""Names of registers, as options of commands say whose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from userdev.errors import UserError

if TYPE_CHECKING:
    from vfio_user.interposer.trace.registers import RegisterMap

REGISTERS_HELP = "Names of registers: a YAML or JSON map, a device's name, or MODULE:CLASS (vfio-user)."


def registers(text: str) -> RegisterMap:
    """A map from a file, or from the registers that a device declares: one by its name, or MODULE:CLASS.

    Raises:
        UserError: there is none, or it is no map.
    """
    if Path(text).is_file():
        from vfio_user.interposer.trace.register_file import load_registers

        return load_registers(text)
    if Path(text).suffix in (".yaml", ".yml", ".json"):
        raise UserError(f"there is no register map {text}")
    from userdev.declare.declared import declarations
    from vfio_user.device.register import BaseRegister
    from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
    from vfio_user.server.catalogue import DEVICES

    declared = [(register.name, register.place) for register in declarations(DEVICES.find(text), BaseRegister)]
    return RegisterMap(
        NamedRegister(place.bar, place.offset, name, max(place.widths), place.count or 1, place.stride)
        for name, place in declared
    )
