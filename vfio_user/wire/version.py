"""The VERSION message: proposal, negotiation and reply (specification, "VFIO_USER_VERSION").

Rules that no specification states, but that peers hold one to (reference: the dialects' VERSION sections):

* QEMU reads the reply into a buffer as large as its own proposal, so the reply must not be longer than that;
* QEMU refuses a minor above its own, so the reply carries the smaller of both;
* the JSON ends with a NUL, and must be there: a reply without makes QEMU parse its own proposal;
* a client that speaks another dialect is recognised here or never: a draft-v6 DMA_MAP is a valid, wrong, current one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from userdev.errors import ProtocolError
from vfio_user.wire.capabilities import DROPS, Capabilities, decode, encode
from vfio_user.wire.dialects import Dialect
from vfio_user.wire.layouts import VERSION

_DRAFT_DATA_OFFSET = 22 - 16
_JSON_OFFSET = VERSION.size
_KEYS = {"max_msg_fds": "current", "max_fds": "draft-v6"}


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
    for drop in DROPS:
        said = encode(capabilities, dialect.capabilities, dialect.fds_capability, drop=drop)
        text = json.dumps({"capabilities": said}, separators=(",", ":"))
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
    return Proposal(version.major, version.minor, decode(capabilities, dialect.fds_capability))


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
