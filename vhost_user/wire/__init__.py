"""The protocol without I/O: header, features, payloads, messages. Bytes in, messages out; fds travel beside.

Both roles share it. A peer's mistake raises `ProtocolError`, and nothing else may escape.
"""

from vhost_user.wire.codec import (
    Negotiated,
    acknowledge,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    is_postcopy_acknowledgement,
)
from vhost_user.wire.features import DeviceStatus, ProtocolFeature, VirtioFeature, check_protocol_features
from vhost_user.wire.header import (
    HEADER,
    HEADER_SIZE,
    MAX_FDS,
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    VERSION,
    Message,
)
from vhost_user.wire.messages import BACK_END, FRONT_END, NO_FD, VRING_MASK, BackEndRequest, FrontEndRequest

__all__ = [
    "BACK_END",
    "FRONT_END",
    "HEADER",
    "HEADER_SIZE",
    "MAX_FDS",
    "MAX_PAYLOAD",
    "NEED_REPLY",
    "NO_FD",
    "REPLY",
    "VERSION",
    "VRING_MASK",
    "BackEndRequest",
    "DeviceStatus",
    "FrontEndRequest",
    "Message",
    "Negotiated",
    "ProtocolFeature",
    "VirtioFeature",
    "acknowledge",
    "check_protocol_features",
    "decode_reply",
    "decode_request",
    "encode_reply",
    "encode_request",
    "is_postcopy_acknowledgement",
]
