"""Identify: what the controller and its namespaces are (section 5.15). Offsets are those of the data structures."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from struct import pack, pack_into
from typing import TYPE_CHECKING

from userdev_servers.nvme.events import NAMESPACE_NOTICES
from userdev_servers.nvme.model import REQUEST_LIMIT, VERSION
from userdev_servers.nvme.namespace import FORMATS
from userdev_servers.nvme.pointers import send
from userdev_servers.nvme.spec import ALL_NAMESPACES, MAX_TRANSFER_SHIFT, Failure, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller
    from userdev_servers.nvme.namespace import Namespace
    from userdev_servers.nvme.queues import Command

SIZE = 4096
MODEL = b"vfio-user NVMe"
FIRMWARE = b"1.0".ljust(8)
CONTROLLER_ID = 0
OPTIONAL_ADMIN = {"format": 1 << 1, "namespaces": 1 << 3, "doorbell buffer": 1 << 8}
OPTIONAL_IO = {"compare": 1, "dataset management": 1 << 2, "write zeroes": 1 << 3, "timestamp": 1 << 6}
_READS_ZEROS, _DEALLOCATES_ZEROES = 1, 1 << 3
"""DLFEAT: what deallocated blocks read as; Write Zeroes can deallocate."""
_NGUID, _EUI64 = 2, 1
_WRITE_PROTECTED = 1


def identify(controller: Controller, command: Command) -> int:
    """Identify (section 5.15): send one data structure of 4096 bytes.

    Raises:
        Failure: there is no such structure, or not of this namespace.
    """
    build = _STRUCTURES.get(command.cdw10 & 0xFF)
    if build is None:
        raise Failure(Status.INVALID_FIELD)
    send(controller, command, build(controller, command))
    return 0


def _controller(controller: Controller, command: Command) -> bytes:
    total = sum(namespace.backing.size for namespace in controller.namespaces)
    unallocated = sum(namespace.backing.size for namespace in controller.namespaces if not namespace.exists)
    model, serial = controller.model, controller.state.serial.encode()
    data = bytearray(SIZE)
    admin = dict(OPTIONAL_ADMIN)
    if not controller.model.shadow_doorbells:
        del admin["doorbell buffer"]
    fields: list[tuple[int, str, tuple[int | bytes, ...]]] = [
        (0, "<HH20s40s8s", (model.vendor, model.subsystem_vendor, serial.ljust(20), MODEL.ljust(40), FIRMWARE)),
        (77, "<B", (MAX_TRANSFER_SHIFT,)),
        (78, "<HI", (CONTROLLER_ID, VERSION)),
        (92, "<I", (NAMESPACE_NOTICES,)),
        (111, "<B", (1,)),  # an I/O controller
        (256, "<HBB", (sum(admin.values()), 3, REQUEST_LIMIT - 1)),
        (260, "<BBB", (0b11, 0b110, 63)),  # one read-only firmware slot; effects log, long log pages; errors
        (266, "<HH", (0x157, 0x175)),
        (280, "<Q", (total,)),
        (296, "<Q", (unallocated,)),
        (512, "<BB", (0x66, 0x44)),
        (516, "<IH", (len(controller.namespaces), sum(OPTIONAL_IO.values()))),
        (525, "<B", (0b111,)),  # a volatile write cache; Flush of all namespaces
        (536, "<I", (1 | 1 << 16,)),  # scatter gather lists of any alignment, bit buckets
        (768, "<256s", (b"nqn.2014-08.org.nvmexpress:vfio-user:" + serial,)),
        (2048, "<H", (2500,)),  # power state 0: 25 W
    ]
    for offset, layout, values in fields:
        pack_into(layout, data, offset, *values)
    return bytes(data)


def _namespace(controller: Controller, command: Command, *, allocated: bool = False) -> bytes:
    """Zeros for one that is not there, as the specification has it."""
    if command.nsid == ALL_NAMESPACES and not allocated:
        return _common_namespace()
    namespace = controller.namespace(command.nsid)
    there = namespace.exists if allocated else namespace.active
    return _describe(controller, namespace) if there else bytes(SIZE)


def _common_namespace() -> bytes:
    """What all namespaces have in common: the formats."""
    data = bytearray(SIZE)
    pack_into("<B", data, 25, len(FORMATS) - 1)
    _put_formats(data)
    return bytes(data)


def _put_formats(data: bytearray) -> None:
    for place, shift in enumerate(FORMATS):
        pack_into("<HBB", data, 128 + 4 * place, 0, shift, 0)


def _describe(controller: Controller, namespace: Namespace) -> bytes:
    data = bytearray(SIZE)
    fields: list[tuple[int, str, tuple[int | bytes, ...]]] = [
        (0, "<QQQ", (namespace.blocks,) * 3),
        (24, "<BBB", (0, len(FORMATS) - 1, FORMATS.index(namespace.shift))),
        (33, "<B", (_READS_ZEROS | _DEALLOCATES_ZEROES,)),
        (48, "<Q", (namespace.size,)),
        (99, "<B", (_WRITE_PROTECTED if namespace.read_only else 0,)),
        (104, "<16s8s", (_unique(controller, namespace, 16), _unique(controller, namespace, 8))),
    ]
    for offset, layout, values in fields:
        pack_into(layout, data, offset, *values)
    _put_formats(data)
    return bytes(data)


def _unique(controller: Controller, namespace: Namespace, size: int) -> bytes:
    return sha256(f"{controller.state.serial} {namespace.nsid}".encode()).digest()[:size]


def _descriptors(controller: Controller, command: Command) -> bytes:
    namespace = controller.active_namespace(command.nsid)
    found = b""
    for kind, size in ((_NGUID, 16), (_EUI64, 8)):
        found += pack("<BBxx", kind, size) + _unique(controller, namespace, size)
    return found.ljust(SIZE, b"\0")


def _list(controller: Controller, command: Command, *, allocated: bool = False) -> bytes:
    """Identifiers above the one given, in order."""
    if command.nsid >= ALL_NAMESPACES - 1:
        raise Failure(Status.INVALID_NAMESPACE)
    found = [
        namespace.nsid
        for namespace in controller.namespaces
        if namespace.nsid > command.nsid and (namespace.exists if allocated else namespace.active)
    ]
    return pack(f"<{len(found)}I", *found).ljust(SIZE, b"\0")


def _controllers(controller: Controller, command: Command, *, attached: bool = False) -> bytes:
    """The one controller, unless those from a higher number on are asked for, or those of a namespace it has not."""
    found = command.cdw10 >> 16 <= CONTROLLER_ID
    if attached:
        found = found and controller.namespace(command.nsid).active
    return (pack("<HH", 1, CONTROLLER_ID) if found else b"").ljust(SIZE, b"\0")


_STRUCTURES: dict[int, Callable[[Controller, Command], bytes]] = {
    0x00: _namespace,
    0x01: _controller,
    0x02: _list,
    0x03: _descriptors,
    0x10: lambda controller, command: _list(controller, command, allocated=True),
    0x11: lambda controller, command: _namespace(controller, command, allocated=True),
    0x12: lambda controller, command: _controllers(controller, command, attached=True),
    0x13: _controllers,
}


def serial_of(path: Path) -> str:
    """The same for the same file, so that two controllers in one guest differ."""
    return "vfu-" + sha256(str(path.absolute()).encode()).hexdigest()[:12]
