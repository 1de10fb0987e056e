"""Log pages (section 5.14.1)."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import TYPE_CHECKING

from userdev_servers.nvme.features import TEMPERATURE, critical_warning
from userdev_servers.nvme.identify import FIRMWARE
from userdev_servers.nvme.model import ERROR_ENTRIES, ERROR_ENTRY
from userdev_servers.nvme.pointers import send
from userdev_servers.nvme.spec import ALL_NAMESPACES, MAX_TRANSFER, Admin, Failure, Io, LogPage, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller
    from userdev_servers.nvme.queues import Command

_RETAIN_EVENT = 1 << 15
_SUPPORTED, _CHANGES_DATA, _CHANGES_NAMESPACE, _ALONE = 1, 1 << 1, 1 << 2, 1 << 16
"""Bits of the command effects log."""
_MANY_CHANGED = 1024
"""Changed namespaces that the log can name."""


def get_log_page(controller: Controller, command: Command) -> int:
    """Get Log Page (section 5.14): send `size` bytes of the page from an offset that is divisible by 4.

    Zeros are behind its end: the data pointer, and whether that leads to a list, is for all that is asked for.

    Raises:
        Failure: there is no such page, the offset is not in it, it is more than one command moves, or it is asked for
            of a single namespace, of which there is none.
    """
    number = command.cdw10 & 0xFF
    size = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    offset = command.cdw12 | command.cdw13 << 32
    page = _PAGES.get(number)
    if page is None:
        raise Failure(Status.INVALID_LOG_PAGE)
    if offset & 3 or size > MAX_TRANSFER or command.nsid not in (0, ALL_NAMESPACES):
        raise Failure(Status.INVALID_FIELD)
    content = page(controller)
    if offset >= len(content):
        raise Failure(Status.INVALID_FIELD)
    send(controller, command, content[offset : offset + size].ljust(size, b"\0"))
    if not command.cdw10 & _RETAIN_EVENT:
        controller.events.seen(number)
    return 0


def _errors(controller: Controller) -> bytes:
    return b"".join(controller.state.errors).ljust(ERROR_ENTRY * ERROR_ENTRIES, b"\0")


def _smart(controller: Controller) -> bytes:
    """Counters of 16 bytes from offset 32 on: data units are thousands of 512 bytes, rounded up."""
    done = controller.state.statistics
    counters = [
        -(-done.sectors_read // 1000),
        -(-done.sectors_written // 1000),
        done.reads,
        done.writes,
        0,  # minutes busy
        1,  # power cycles
        0,  # power on hours
        0,  # unsafe shutdowns
        done.media_errors,
        done.errors,
    ]
    warning = critical_warning(controller)
    head = pack("<BHBBB", warning, TEMPERATURE, 100, 10, 0)  # spare: 100 %, threshold 10 %; 0 % used
    return (head.ljust(32, b"\0") + b"".join(value.to_bytes(16, "little") for value in counters)).ljust(512, b"\0")


def _firmware(controller: Controller) -> bytes:
    """Slot 1 is active, and the only one."""
    return (bytes([1]).ljust(8, b"\0") + FIRMWARE).ljust(512, b"\0")


def _changed_namespaces(controller: Controller) -> bytes:
    changed = sorted(controller.state.changed_namespaces)
    if len(changed) > _MANY_CHANGED:
        changed = [ALL_NAMESPACES]
    return pack(f"<{len(changed)}I", *changed).ljust(4096, b"\0")


def _effects(controller: Controller) -> bytes:
    admin = dict.fromkeys(map(int, Admin), _SUPPORTED)
    if not controller.model.shadow_doorbells:
        del admin[Admin.DOORBELL_BUFFER_CONFIG]
    admin[Admin.FORMAT_NVM] |= _CHANGES_DATA | _CHANGES_NAMESPACE | _ALONE
    admin[Admin.NAMESPACE_MANAGEMENT] |= _CHANGES_NAMESPACE | 1 << 3
    admin[Admin.NAMESPACE_ATTACHMENT] |= _CHANGES_NAMESPACE | 1 << 3
    io = dict.fromkeys(map(int, Io), _SUPPORTED)
    for opcode in (Io.WRITE, Io.WRITE_ZEROES, Io.DATASET_MANAGEMENT):
        io[opcode] |= _CHANGES_DATA
    return pack(
        "<512I",
        *(admin.get(code, 0) for code in range(256)),
        *(io.get(code, 0) for code in range(256)),
    ).ljust(4096, b"\0")


_PAGES: dict[int, Callable[[Controller], bytes]] = {
    LogPage.ERRORS: _errors,
    LogPage.SMART: _smart,
    LogPage.FIRMWARE: _firmware,
    LogPage.CHANGED_NAMESPACES: _changed_namespaces,
    LogPage.COMMAND_EFFECTS: _effects,
}
