"""Log pages (section 5.14.1)."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack
from typing import TYPE_CHECKING

from userdev_servers.nvme.features import TEMPERATURE, critical_warning
from userdev_servers.nvme.identify import FIRMWARE
from userdev_servers.nvme.pointers import send
from userdev_servers.nvme.spec import ALL_NAMESPACES, Admin, Failure, Io, LogPage, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.queues import Command

ERROR_ENTRIES = 64
ENTRY_SIZE = 64
_LAST_COUNT = (1 << 64) - 1
_RETAIN_EVENT = 1 << 15
_SUPPORTED, _CHANGES_DATA, _CHANGES_NAMESPACE, _ALONE = 1, 1 << 1, 1 << 2, 1 << 16
"""Bits of the command effects log."""
_MANY_CHANGED = 1024
"""Changed namespaces that the log can name."""


class ErrorLog:
    """The last commands that failed, newest first; declared state of the device."""

    def __init__(self, device: Nvme) -> None:
        self._device = device

    def add(self, command: Command, field: int) -> None:
        device = self._device
        device.error_count = device.error_count % _LAST_COUNT + 1
        first = command.cdw10 | command.cdw11 << 32 if command.queue.id else 0
        entry = pack(
            "<QHHHHQI",
            device.error_count,
            command.queue.id,
            command.cid,
            field << 1,
            0xFFFF,  # no particular parameter
            first,
            command.nsid,
        )
        device.errors = [entry.ljust(ENTRY_SIZE, b"\0"), *device.errors[: ERROR_ENTRIES - 1]]


def get_log_page(device: Nvme, command: Command) -> int:
    number = command.cdw10 & 0xFF
    size = ((command.cdw10 >> 16 | (command.cdw11 & 0xFFFF) << 16) + 1) * 4
    offset = command.cdw12 | command.cdw13 << 32
    page = _PAGES.get(number)
    if page is None:
        raise Failure(Status.INVALID_LOG_PAGE)
    if offset & 3:
        raise Failure(Status.INVALID_FIELD)
    if number == LogPage.SMART and command.nsid not in (0, ALL_NAMESPACES):
        raise Failure(Status.INVALID_FIELD)
    content = page(device)
    if offset >= len(content):
        raise Failure(Status.INVALID_FIELD)
    send(device, command, content[offset : offset + size])
    if not command.cdw10 & _RETAIN_EVENT:
        device.event_queue.seen(number)
    return 0


def _errors(device: Nvme) -> bytes:
    return b"".join(device.errors).ljust(ENTRY_SIZE * ERROR_ENTRIES, b"\0")


def _smart(device: Nvme) -> bytes:
    """Counters of 16 bytes from offset 32 on: data units are thousands of 512 bytes, rounded up."""
    counters = [
        -(-device.sectors_read // 1000),
        -(-device.sectors_written // 1000),
        device.reads,
        device.writes,
        0,  # minutes busy
        1,  # power cycles
        0,  # power on hours
        0,  # unsafe shutdowns
        device.media_errors,
        device.error_count,
    ]
    head = pack("<BHBBB", critical_warning(device), TEMPERATURE, 100, 10, 0)  # spare: 100 %, threshold 10 %; 0 % used
    return (head.ljust(32, b"\0") + b"".join(value.to_bytes(16, "little") for value in counters)).ljust(512, b"\0")


def _firmware(device: Nvme) -> bytes:
    """Slot 1 is active, and the only one."""
    return (bytes([1]).ljust(8, b"\0") + FIRMWARE).ljust(512, b"\0")


def _changed_namespaces(device: Nvme) -> bytes:
    changed = sorted(device.changed_namespaces)
    if len(changed) > _MANY_CHANGED:
        changed = [ALL_NAMESPACES]
    return pack(f"<{len(changed)}I", *changed).ljust(4096, b"\0")


def _effects(device: Nvme) -> bytes:
    admin = dict.fromkeys(map(int, Admin), _SUPPORTED)
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


_PAGES: dict[int, Callable[[Nvme], bytes]] = {
    LogPage.ERRORS: _errors,
    LogPage.SMART: _smart,
    LogPage.FIRMWARE: _firmware,
    LogPage.CHANGED_NAMESPACES: _changed_namespaces,
    LogPage.COMMAND_EFFECTS: _effects,
}
