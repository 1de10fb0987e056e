"""What a client may do while its device is stopped for migration.

libvfio-user refuses nearly everything then, DEVICE_RESET and DMA_UNMAP included (docs/protocol.md 4, and A19 of 14). In
ERROR everything passes: DEVICE_RESET is the way out, and a client that does not migrate notices nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from types import MappingProxyType

from userdev.errors import ProtocolError
from vfio_user.wire import Command
from vfio_user.wire.constants import MigrationState

_WHILE_STOPPED = frozenset(
    {
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.DEVICE_FEATURE,
        Command.MIG_DATA_READ,
        Command.DIRTY_PAGES,  # v1: where QEMU's forks get the last bitmap
    }
)
ALLOWED: Mapping[MigrationState, frozenset[Command]] = MappingProxyType(
    {MigrationState.STOP: _WHILE_STOPPED, MigrationState.STOP_COPY: _WHILE_STOPPED}
)
"""The commands that pass in a state; in one without entry all do."""


def check_command(state: MigrationState, command: Command) -> None:
    """Look whether a device in `state` takes a command.

    Raises:
        ProtocolError: EINVAL, it does not.
    """
    allowed = ALLOWED.get(state)
    if allowed is not None and command not in allowed:
        raise ProtocolError(f"{command.value} in migration state {state.name}", errno.EINVAL)


def has_registers(state: MigrationState) -> bool:
    """Whether the device's own regions may be accessed in `state`; v1's migration region always may."""
    return state is not MigrationState.STOP_COPY
