"""The error log: the last commands that failed (section 5.14.1.1)."""

from __future__ import annotations

from struct import pack

from userdev_servers.nvme.model import ERROR_ENTRIES, ERROR_ENTRY
from userdev_servers.nvme.queues import Command
from userdev_servers.nvme.state import ControllerState

_LAST_COUNT = (1 << 64) - 1


class ErrorLog:
    """Newest first; declared state of the controller."""

    def __init__(self, state: ControllerState) -> None:
        self._state = state

    def add(self, command: Command, field: int) -> None:
        """A command has ended with this status field."""
        state = self._state
        state.statistics.errors = state.statistics.errors % _LAST_COUNT + 1
        first = command.cdw10 | command.cdw11 << 32 if command.queue.id else 0
        entry = pack(
            "<QHHHHQI",
            state.statistics.errors,
            command.queue.id,
            command.cid,
            field << 1,
            0xFFFF,  # no particular parameter
            first,
            command.nsid,
        )
        state.errors = [entry.ljust(ERROR_ENTRY, b"\0"), *state.errors[: ERROR_ENTRIES - 1]]
