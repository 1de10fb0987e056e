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
from functools import lru_cache
from typing import Any

from userdev.errors import ProtocolError
from vfio_user.wire.capabilities import DROPS, Capabilities, decode, encode
from vfio_user.wire.dialects import Dialect
from vfio_user.wire.layouts import VERSION

_DRAFT_DATA_OFFSET = 22 - 16
_JSON_OFFSET = VERSION.size
_KEYS = {"max_msg_fds": "current", "max_fds": "draft-v6"}
_USUAL_SIZE = 1024
"""Bytes of a payload that is remembered with what it says: the next client mostly says the same, in 250 of them."""


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
        text = _text(capabilities, dialect.capabilities, dialect.fds_capability, drop)
        payload = VERSION.pack(0, minor, tail=text)
        if limit is None or len(payload) <= limit:
            return payload
    raise ProtocolError(f"the peer takes {limit} bytes of VERSION and {len(payload)} are needed")


@lru_cache(maxsize=16)
def _text(capabilities: Capabilities, fields: frozenset[str], fds_name: str, drop: int) -> bytes:
    said = encode(capabilities, fields, fds_name, drop=drop)
    return json.dumps({"capabilities": said}, separators=(",", ":")).encode() + b"\0"


def decode_version(dialect: Dialect, payload: bytes) -> Proposal:
    """Take a VERSION payload apart.

    Raises:
        ProtocolError: (EINVAL, fatal) it is malformed, of another major version, or of another dialect.
    """
    take_apart = _remembered if len(payload) <= _USUAL_SIZE else _taken_apart
    return take_apart(payload, dialect.name, dialect.fds_capability)


def _taken_apart(payload: bytes, dialect: str, fds_name: str) -> Proposal:
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
    _refuse_other_dialect(dialect, fds_name, capabilities)
    return Proposal(version.major, version.minor, decode(capabilities, fds_name))


_remembered = lru_cache(maxsize=16)(_taken_apart)


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


def _refuse_other_dialect(dialect: str, fds_name: str, capabilities: dict[str, Any]) -> None:
    for key, meant in _KEYS.items():
        if key in capabilities and key != fds_name and fds_name not in capabilities:
            raise ProtocolError(
                f"VERSION: the peer speaks dialect {meant} (it sends {key!r}) where {dialect} is spoken",
                fatal=True,
            )
