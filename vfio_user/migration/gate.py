"""Which commands a device takes while it is stopped for migration.

libvfio-user refuses nearly everything then, DEVICE_RESET and DMA_UNMAP included (docs/protocol.md 4, and A19 of 14),
and so does `STRICT`, the default. `OPEN` lets a client tear down and reset whenever it wants to, which makes
the end of a source quieter; its users must not rely on such a reset leaving the saved stream alone.

In ERROR everything passes: DEVICE_RESET is the way out, and a client that does not migrate notices nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from userdev.errors import ProtocolError
from vfio_user.wire import Command
from vfio_user.wire.constants import MigrationState

_STOPPED = frozenset(
    {
        Command.REGION_READ,
        Command.REGION_WRITE,
        Command.DEVICE_FEATURE,
        Command.MIG_DATA_READ,
        Command.DIRTY_PAGES,  # v1: where QEMU's forks get the last bitmap
    }
)


@dataclass(frozen=True)
class Gate:
    """`commands` names what passes in a state; in a state without entry everything does."""

    name: str
    commands: Mapping[MigrationState, frozenset[Command]] = field(default_factory=lambda: MappingProxyType({}))
    closed_registers: frozenset[MigrationState] = frozenset()
    """States in which the device's regions cannot be accessed; the v1 migration region always can."""

    def check(self, state: MigrationState, command: Command) -> None:
        """Raises ProtocolError (EINVAL) for a command that `state` forbids."""
        allowed = self.commands.get(state)
        if allowed is not None and command not in allowed:
            raise ProtocolError(f"{command.value} in migration state {state.name}", errno.EINVAL)


STRICT = Gate(
    "strict",
    MappingProxyType({MigrationState.STOP: _STOPPED, MigrationState.STOP_COPY: _STOPPED}),
    frozenset({MigrationState.STOP_COPY}),
)
OPEN = Gate("open")
