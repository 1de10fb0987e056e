"""A device's state as bytes: what DEVICE_STATE carries from one back-end to another ("Migrating back-end state").

::

    magic "VHUSTATE" (8 bytes), version (u32), checksum (u32, CRC-32 of what follows), encoded
    {"device": name of its class, "virtio_id": its type, "values": declared state by name}

Integers are little-endian. The whole is looked at before anything of it is believed.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from userdev.declare.values import MAX_SIZE, decode, encode
from userdev.errors import ProtocolError

MAGIC = b"VHUSTATE"
VERSION = 1
_HEAD = struct.Struct("<8sII")

MAX_STATE = _HEAD.size + MAX_SIZE
"""Bytes; what has more is refused before it has come."""

_Identity = Mapping[str, Any]


def to_bytes(identity: _Identity, values: Mapping[str, Any]) -> bytes:
    """The bytes of a state.

    Raises:
        ProtocolError: EIO, the values are more than a state may have.
    """
    try:
        payload = encode({**identity, "values": values})
    except TypeError as error:
        raise ProtocolError(f"{identity['device']} cannot be saved: {error}", errno.EIO) from None
    return _HEAD.pack(MAGIC, VERSION, crc32(payload)) + payload


def from_bytes(identity: _Identity, data: bytes) -> Mapping[str, Any]:
    """The values of a state, of a device with this identity; what they are is still to be looked at.

    Raises:
        ProtocolError: EINVAL, it is no state, damaged, cut off, of another version or of another device.
    """
    if len(data) < _HEAD.size:
        raise _refused(f"{len(data)} bytes are no state")
    magic, version, checksum = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise _refused(f"it starts with {magic!r}, which is no state of a vhost-user device")
    if version != VERSION:
        raise _refused(f"its format has version {version}, and this back-end knows version {VERSION}")
    payload = memoryview(data)[_HEAD.size :]
    if crc32(payload) != checksum:
        raise _refused("it is damaged or cut off: its checksum is wrong")
    saved = decode(payload)
    if not isinstance(saved, dict) or not isinstance(values := saved.pop("values", None), dict):
        raise _refused("it has no values")
    if saved != dict(identity):
        raise _refused(f"it is of {saved}, and this device is {dict(identity)}")
    if unnamed := [name for name in values if not isinstance(name, str)]:
        raise _refused(f"it has values without a name: {unnamed[0]!r}")
    return values


def _refused(why: str) -> ProtocolError:
    return ProtocolError(f"a saved state is refused: {why}", errno.EINVAL)
