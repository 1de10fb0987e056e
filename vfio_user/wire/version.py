"""The VERSION message: proposal, negotiation and reply (specification, "VFIO_USER_VERSION").

Rules that no specification states, but that peers hold one to (reference: the dialects' VERSION sections):

* QEMU reads the reply into a buffer as large as its own proposal, so the reply must not be longer than that;
* QEMU refuses a minor above its own, so the reply carries the smaller of both;
* the JSON ends with a NUL, and must be there: a reply without makes QEMU parse its own proposal;
* a client that speaks another dialect is recognised here or never: a draft-v6 DMA_MAP is a valid, wrong, current one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from vfio_user.errors import ProtocolError
from vfio_user.wire.dialects import Dialect
from vfio_user.wire.framing import MAX_DATA
from vfio_user.wire.layouts import VERSION

_DRAFT_DATA_OFFSET = 22 - 16
_JSON_OFFSET = VERSION.size
_KEYS = {"max_msg_fds": "current", "max_fds": "draft-v6"}


@dataclass(frozen=True)
class Capabilities:
    """What one side says it can take. `None` means that it was not said; the value in force is a property's."""

    max_msg_fds: int | None = None
    max_data_xfer_size: int | None = None
    pgsizes: int | None = None
    max_dma_maps: int | None = None
    write_multiple: bool | None = None
    twin_socket: bool | None = None
    twin_socket_fd_index: int | None = None
    migration_pgsize: int | None = None
    migration_max_bitmap_size: int | None = None

    @property
    def fds_per_message(self) -> int:
        return 1 if self.max_msg_fds is None else self.max_msg_fds

    @property
    def data_per_message(self) -> int:
        return MAX_DATA if self.max_data_xfer_size is None else self.max_data_xfer_size


@dataclass(frozen=True)
class Proposal:
    """A VERSION message taken apart."""

    major: int
    minor: int
    capabilities: Capabilities


def encode_version(dialect: Dialect, minor: int, capabilities: Capabilities, *, limit: int | None = None) -> bytes:
    """The payload of a VERSION message of `dialect`; capabilities that the dialect does not have are left out.

    `limit` is the longest payload the peer can take; capabilities that have a default are then left out from the
    least important on.

    Raises:
        ProtocolError: not even the necessary capabilities fit.
    """
    keys = _to_json(dialect, capabilities)
    for dropped in ("", "pgsizes", "max_dma_maps", "max_data_xfer_size", "migration"):
        keys.pop(dropped, None)
        text = json.dumps({"capabilities": keys}, separators=(",", ":"))
        payload = VERSION.pack(0, minor, tail=text.encode() + b"\0")
        if limit is None or len(payload) <= limit:
            return payload
    raise ProtocolError(f"the peer takes {limit} bytes of VERSION and {len(payload)} are needed")


def decode_version(dialect: Dialect, payload: bytes) -> Proposal:
    """Take a VERSION payload apart.

    Raises:
        ProtocolError: (EINVAL, fatal) it is malformed, of another major version, or of another dialect.
    """
    try:
        version = VERSION.unpack(payload)
        document = _json_of(payload)
    except ProtocolError as error:
        raise ProtocolError(f"VERSION: {error}", error.errno, fatal=True) from None
    if version.major != 0:
        raise ProtocolError(f"VERSION: major version {version.major} where 0 is spoken", fatal=True)
    capabilities = document.get("capabilities", {}) if isinstance(document, dict) else {}
    if not isinstance(capabilities, dict):
        raise ProtocolError(f"VERSION: capabilities is {type(capabilities).__name__}, not an object", fatal=True)
    _refuse_other_dialect(dialect, capabilities)
    return Proposal(version.major, version.minor, _from_json(dialect, capabilities))


def _json_of(payload: bytes) -> Any:
    """The JSON behind the version numbers; `{}` where there is none."""
    data = payload[_JSON_OFFSET:]
    if not data:
        return {}
    if data[-1] != 0:
        raise ProtocolError("the JSON does not end with a NUL")
    if data[:1] != b"{" and payload[_DRAFT_DATA_OFFSET : _DRAFT_DATA_OFFSET + 1] == b"{":
        data = payload[_DRAFT_DATA_OFFSET:]
    try:
        return json.loads(data[:-1].decode())  # UTF-8 only: given bytes, it would guess others
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"malformed JSON: {error}") from None


def _refuse_other_dialect(dialect: Dialect, capabilities: dict[str, Any]) -> None:
    for key, meant in _KEYS.items():
        if key in capabilities and key != dialect.fds_capability and dialect.fds_capability not in capabilities:
            raise ProtocolError(
                f"VERSION: the peer speaks dialect {meant} (it sends {key!r}) where {dialect.name} is spoken",
                fatal=True,
            )


def _number(value: Any, name: str, limit: int = (1 << 64) - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ProtocolError(f"VERSION: {name} is {value!r}, not a number from 0 to {limit}", fatal=True)
    return value


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ProtocolError(f"VERSION: {name} is {value!r}, not an object", fatal=True)
    return value


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"VERSION: {name} is {value!r}, not a boolean", fatal=True)
    return value


def _from_json(dialect: Dialect, keys: dict[str, Any]) -> Capabilities:
    found: dict[str, Any] = {}
    if dialect.fds_capability in keys:
        found["max_msg_fds"] = _number(keys[dialect.fds_capability], dialect.fds_capability, 1024)
    for name in ("max_data_xfer_size", "pgsizes", "max_dma_maps"):
        if name in keys:
            found[name] = _number(keys[name], name)
    if "write_multiple" in keys:
        found["write_multiple"] = _flag(keys["write_multiple"], "write_multiple")
    if "twin_socket" in keys:
        twin = _object(keys["twin_socket"], "twin_socket")
        found["twin_socket"] = _flag(twin.get("supported", False), "twin_socket.supported")
        if "fd_index" in twin:
            found["twin_socket_fd_index"] = _number(twin["fd_index"], "twin_socket.fd_index", 1023)
    if "migration" in keys:
        migration = _object(keys["migration"], "migration")
        for key in ("pgsize", "max_bitmap_size"):
            if key in migration:
                found[f"migration_{key}"] = _number(migration[key], f"migration.{key}")
    return Capabilities(**found)


def _to_json(dialect: Dialect, capabilities: Capabilities) -> dict[str, Any]:
    known = {f.name: getattr(capabilities, f.name) for f in fields(capabilities) if f.name in dialect.capabilities}
    said = {name: value for name, value in known.items() if value is not None}
    keys: dict[str, Any] = {}
    if "max_msg_fds" in said:
        keys[dialect.fds_capability] = said["max_msg_fds"]
    for name in ("max_data_xfer_size", "pgsizes", "max_dma_maps", "write_multiple"):
        if name in said:
            keys[name] = said[name]
    if "twin_socket" in said:
        keys["twin_socket"] = {"supported": said["twin_socket"]}
        if "twin_socket_fd_index" in said:
            keys["twin_socket"]["fd_index"] = said["twin_socket_fd_index"]
    migration = {
        name.removeprefix("migration_"): value for name, value in said.items() if name.startswith("migration_")
    }
    if migration:
        keys["migration"] = migration
    return keys
