"""What the host may ask of a running controller through its control socket; of its doorbells: `nvme.py`."""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from userdev.errors import UserError
from userdev_servers.block.images import parse_size
from userdev_servers.nvme.faults import OPERATIONS, break_disk, mend_disk

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller
    from userdev_servers.nvme.namespace import Namespace

Command = Callable[["Controller", Mapping[str, Any]], Mapping[str, object]]


class NamespaceShown(TypedDict):
    """A namespace, and the file that it is in; sizes in bytes."""

    nsid: int
    image: str
    size: int
    block_size: int
    exists: bool
    attached: bool
    read_only: bool
    failure: str | None
    """Why it no longer takes writes."""


class Namespaces(TypedDict):
    """The result of `namespaces`."""

    namespaces: list[NamespaceShown]


class Resized(TypedDict):
    """The result of `resize`."""

    size: int


class Attached(TypedDict):
    """The result of `attach` and `detach`."""

    attached: bool


class DoorbellUse(TypedDict):
    """The result of `doorbells`."""

    messages: int
    looks: int


class Broken(TypedDict):
    """The result of `break`."""

    broken: str


class Mended(TypedDict):
    """The result of `mend`."""


def namespaces(controller: Controller, request: Mapping[str, Any]) -> Namespaces:
    """{"command": "namespaces"}: what there is."""
    return {
        "namespaces": [
            {
                "nsid": namespace.nsid,
                "image": str(namespace.backing.path),
                "size": namespace.size,
                "block_size": 1 << namespace.shift,
                "exists": namespace.exists,
                "attached": namespace.attached,
                "read_only": namespace.read_only,
                "failure": str(namespace.backing.failure.strerror) if namespace.backing.failure else None,
            }
            for namespace in controller.namespaces
        ]
    }


def resize(controller: Controller, request: Mapping[str, Any]) -> Resized:
    """{"command": "resize", "nsid": 1, "size": "128M"}: the guest gets an event, and its driver looks again."""
    chosen, size = _namespace(controller, request), parse_size(str(request.get("size")))
    if size % 4096:
        raise UserError(f"{size} bytes are no whole number of blocks")
    controller.drain()
    if not chosen.backing.lock.allows_use:
        raise UserError(f"{chosen.backing.path} is not this server's now: another has it, or may take it over")
    try:
        chosen.backing.resize(size)
    except OSError as error:
        raise UserError(f"{chosen.backing.path}: {error.strerror}") from error
    chosen.blocks = size >> chosen.shift
    controller.namespace_changed(chosen)
    return {"size": chosen.size}


def attach(controller: Controller, request: Mapping[str, Any]) -> Attached:
    """{"command": "attach", "nsid": 2}: the guest is told by an event, and has the namespace again as it left it."""
    return _set_attached(controller, request, True)


def detach(controller: Controller, request: Mapping[str, Any]) -> Attached:
    """{"command": "detach", "nsid": 2}: hot removal. Commands that were begun end, all others of it fail, and the guest
    is told by an event.
    """
    return _set_attached(controller, request, False)


def _set_attached(controller: Controller, request: Mapping[str, Any], attached: bool) -> Attached:
    chosen = _namespace(controller, request)
    if chosen.attached == attached:
        raise UserError(f"namespace {chosen.nsid} is {'attached' if attached else 'detached'} already")
    controller.set_attached(chosen, attached)
    return {"attached": attached}


def break_(controller: Controller, request: Mapping[str, Any]) -> Broken:
    """{"command": "break", "nsid": 1, "operation": "write", "error": "EIO", "first": 8, "blocks": 1}: the disk fails
    there, or everywhere, until it is mended.
    """
    chosen, operation = _namespace(controller, request), str(request.get("operation"))
    number = getattr(errno, str(request.get("error", "EIO")), None)
    if operation not in OPERATIONS:
        raise UserError(f"there is no operation {reprlib.repr(operation)}", hint=f"there are: {', '.join(OPERATIONS)}")
    if not isinstance(number, int):
        raise UserError(
            f"there is no error {reprlib.repr(request.get('error'))}", hint="EIO and ENOSPC are what disks have"
        )
    first = request.get("first", 0)
    blocks = request.get("blocks", chosen.blocks - first if type(first) is int else 0)
    if type(first) is not int or type(blocks) is not int:
        raise UserError("first and blocks are numbers")
    if not 0 <= first < first + blocks <= chosen.blocks:
        raise UserError(f"{blocks} blocks from {first} on: namespace {chosen.nsid} has {chosen.blocks}")
    break_disk(chosen.backing, operation, number, (first << chosen.shift, blocks << chosen.shift))
    return {"broken": operation}


def mend(controller: Controller, request: Mapping[str, Any]) -> Mended:
    """{"command": "mend", "nsid": 1}: the disk fails no more."""
    mend_disk(_namespace(controller, request).backing)
    return {}


def _namespace(controller: Controller, request: Mapping[str, Any]) -> Namespace:
    nsid = request.get("nsid")
    for namespace in controller.namespaces:
        if namespace.nsid == nsid and namespace.exists:
            return namespace
    raise UserError(f"there is no namespace {nsid}")


CHANGING = ("resize", "attach", "detach")
"""Those that change what the guest sees."""

COMMANDS: dict[str, Command] = {
    "namespaces": namespaces,
    "resize": resize,
    "attach": attach,
    "detach": detach,
    "break": break_,
    "mend": mend,
}
