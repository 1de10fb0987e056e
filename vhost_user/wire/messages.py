"""Every message of both channels, as one table each; `vhost_user.wire.codec` keeps to them for either role.

The rows are those of the specification's "Front-end message types" and "Back-end message types", under the names of
today's edition (of 2019: SLAVE for BACKEND). A row's columns: what the request's payload is; what the payload of a
reply of its own is; when there is a reply; which descriptors the request has, and which the reply; and the feature
without which the message must not be sent. `payloads` says which section lays a payload out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any

from vhost_user.wire import payloads as of
from vhost_user.wire.features import ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import Payload

VRING_MASK = 0xFF
NO_FD = 0x100
"""Bits of the payload of SET_VRING_KICK, _CALL and _ERR: the ring, and that no descriptor is with it. In the reply to
SET_DEVICE_STATE_FD bit 8 says that the front-end's descriptor is used, and bits 0 to 7 are an error."""


class FrontEndRequest(IntEnum):
    """Requests of the front-end, on the connection; the back-end answers."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    GET_VRING_BASE_SKIP_DRAIN = 45


class BackEndRequest(IntEnum):
    """Requests of the back-end, on the socket that SET_BACKEND_REQ_FD gave it; the front-end answers."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


Request = FrontEndRequest | BackEndRequest


class Reply(Enum):
    """The conditions under which a request is answered."""

    ALWAYS = "always"
    """With the reply payload of its row, whether NEED_REPLY is set or not: one reply."""
    ASKED = "asked"
    """Where NEED_REPLY is set and REPLY_ACK negotiated: with a number, 0 for success; otherwise never."""
    POSTCOPY = "postcopy"
    """As ASKED; but after POSTCOPY_LISTEN always, with the reply payload of its row."""
    SHMFD = "shmfd"
    """As ASKED; but always where LOG_SHMFD is negotiated."""


class Fds(Enum):
    """The descriptors that are beside a payload."""

    NONE = "none"
    ONE = "one"
    UNLESS_NO_FD = "unless NO_FD"
    """One, or none where bit 8 of the payload says so."""
    PER_REGION = "per region"
    OPTIONAL = "optional"
    """None or one."""


@dataclass(frozen=True)
class Shape:
    """One message: a row of the table."""

    payload: Payload[Any] = of.EMPTY
    reply_payload: Payload[Any] = of.NUMBER
    """Of a reply of its own. Where there is none, that which an acknowledgement has."""
    reply: Reply = Reply.ASKED
    fds: Fds = Fds.NONE
    reply_fds: Fds = Fds.NONE
    needs: ProtocolFeature | VirtioFeature | None = None


_R, _B, _P, _V = FrontEndRequest, BackEndRequest, ProtocolFeature, VirtioFeature
_ALWAYS, _ASKED = Reply.ALWAYS, Reply.ASKED

_LOG_BASE_REPLIES = of.Either(of.NUMBER, of.LOG, of.EMPTY)
"""The specification has no payload for the reply that it asks for: back-ends send a number, the request's, or none."""

FRONT_END: Mapping[FrontEndRequest, Shape] = MappingProxyType(
    {
        _R.GET_FEATURES: Shape(of.EMPTY, of.NUMBER, _ALWAYS),
        _R.SET_FEATURES: Shape(of.NUMBER),
        _R.GET_PROTOCOL_FEATURES: Shape(of.EMPTY, of.NUMBER, _ALWAYS, needs=_V.PROTOCOL_FEATURES),
        _R.SET_PROTOCOL_FEATURES: Shape(of.NUMBER, needs=_V.PROTOCOL_FEATURES),
        _R.SET_OWNER: Shape(),
        _R.RESET_OWNER: Shape(),
        _R.SET_MEM_TABLE: Shape(of.REGIONS, of.REGIONS, Reply.POSTCOPY, Fds.PER_REGION),
        _R.SET_LOG_BASE: Shape(of.Either(of.LOG, of.NUMBER), _LOG_BASE_REPLIES, Reply.SHMFD, Fds.OPTIONAL),
        _R.SET_LOG_FD: Shape(of.EMPTY, fds=Fds.OPTIONAL),
        _R.SET_VRING_NUM: Shape(of.VRING_STATE),
        _R.SET_VRING_ADDR: Shape(of.VRING_ADDRESS),
        _R.SET_VRING_BASE: Shape(of.VRING_STATE),
        _R.GET_VRING_BASE: Shape(of.VRING_STATE, of.VRING_STATE, _ALWAYS),
        _R.SET_VRING_KICK: Shape(of.NUMBER, fds=Fds.UNLESS_NO_FD),
        _R.SET_VRING_CALL: Shape(of.NUMBER, fds=Fds.UNLESS_NO_FD),
        _R.SET_VRING_ERR: Shape(of.NUMBER, fds=Fds.UNLESS_NO_FD),
        _R.GET_QUEUE_NUM: Shape(of.EMPTY, of.NUMBER, _ALWAYS, needs=_P.MQ),
        _R.SET_VRING_ENABLE: Shape(of.VRING_STATE, needs=_V.PROTOCOL_FEATURES),
        _R.SEND_RARP: Shape(of.NUMBER, needs=_P.RARP),
        _R.NET_SET_MTU: Shape(of.NUMBER, needs=_P.MTU),
        _R.SET_BACKEND_REQ_FD: Shape(of.EMPTY, fds=Fds.ONE, needs=_P.BACKEND_REQ),
        _R.IOTLB_MSG: Shape(of.IOTLB, of.NUMBER, _ALWAYS, needs=_V.ACCESS_PLATFORM),
        _R.SET_VRING_ENDIAN: Shape(of.VRING_STATE, needs=_P.CROSS_ENDIAN),
        _R.GET_CONFIG: Shape(of.CONFIG, of.Either(of.CONFIG, of.EMPTY), _ALWAYS, needs=_P.CONFIG),
        _R.SET_CONFIG: Shape(of.CONFIG, needs=_P.CONFIG),
        _R.CREATE_CRYPTO_SESSION: Shape(of.CRYPTO_SESSION, of.CRYPTO_SESSION, _ALWAYS, needs=_P.CRYPTO_SESSION),
        _R.CLOSE_CRYPTO_SESSION: Shape(of.NUMBER, needs=_P.CRYPTO_SESSION),
        _R.POSTCOPY_ADVISE: Shape(of.EMPTY, of.EMPTY, _ALWAYS, reply_fds=Fds.ONE, needs=_P.PAGEFAULT),
        _R.POSTCOPY_LISTEN: Shape(of.EMPTY, needs=_P.PAGEFAULT),
        _R.POSTCOPY_END: Shape(of.EMPTY, of.NUMBER, _ALWAYS, needs=_P.PAGEFAULT),
        _R.GET_INFLIGHT_FD: Shape(of.INFLIGHT, of.INFLIGHT, _ALWAYS, reply_fds=Fds.OPTIONAL, needs=_P.INFLIGHT_SHMFD),
        _R.SET_INFLIGHT_FD: Shape(of.INFLIGHT, fds=Fds.ONE, needs=_P.INFLIGHT_SHMFD),
        _R.GPU_SET_SOCKET: Shape(of.EMPTY, fds=Fds.ONE),
        _R.RESET_DEVICE: Shape(needs=_P.RESET_DEVICE),
        _R.VRING_KICK: Shape(of.VRING_STATE, needs=_P.INBAND_NOTIFICATIONS),
        _R.GET_MAX_MEM_SLOTS: Shape(of.EMPTY, of.NUMBER, _ALWAYS, needs=_P.CONFIGURE_MEM_SLOTS),
        _R.ADD_MEM_REG: Shape(of.REGION, of.REGION, Reply.POSTCOPY, Fds.ONE, needs=_P.CONFIGURE_MEM_SLOTS),
        # A descriptor is not to be there; libblkio sends one, which is closed.
        _R.REM_MEM_REG: Shape(of.REGION, fds=Fds.OPTIONAL, needs=_P.CONFIGURE_MEM_SLOTS),
        _R.SET_STATUS: Shape(of.NUMBER, needs=_P.STATUS),
        _R.GET_STATUS: Shape(of.EMPTY, of.NUMBER, _ALWAYS, needs=_P.STATUS),
        # The reply is a descriptor or none; libvhost-user leaves the request's payload in it.
        _R.GET_SHARED_OBJECT: Shape(
            of.SHARED_OBJECT,
            of.Either(of.EMPTY, of.SHARED_OBJECT),
            _ALWAYS,
            reply_fds=Fds.OPTIONAL,
            needs=_P.SHARED_OBJECT,
        ),
        _R.SET_DEVICE_STATE_FD: Shape(
            of.DEVICE_STATE, of.NUMBER, _ALWAYS, Fds.ONE, Fds.UNLESS_NO_FD, needs=_P.DEVICE_STATE
        ),
        _R.CHECK_DEVICE_STATE: Shape(of.EMPTY, of.NUMBER, _ALWAYS, needs=_P.DEVICE_STATE),
        _R.GET_SHMEM_CONFIG: Shape(of.EMPTY, of.SHMEM_CONFIG, _ALWAYS, needs=_P.SHMEM),
        _R.GET_VRING_BASE_SKIP_DRAIN: Shape(
            of.VRING_STATE, of.VRING_STATE, _ALWAYS, needs=_P.GET_VRING_BASE_SKIP_DRAIN
        ),
    }
)

BACK_END: Mapping[BackEndRequest, Shape] = MappingProxyType(
    {
        _B.IOTLB_MSG: Shape(of.IOTLB, needs=_V.ACCESS_PLATFORM),
        _B.CONFIG_CHANGE_MSG: Shape(of.EMPTY, needs=_P.CONFIG),
        _B.VRING_HOST_NOTIFIER_MSG: Shape(of.VRING_AREA, fds=Fds.OPTIONAL, needs=_P.HOST_NOTIFIER),
        _B.VRING_CALL: Shape(of.VRING_STATE, needs=_P.INBAND_NOTIFICATIONS),
        _B.VRING_ERR: Shape(of.VRING_STATE, needs=_P.INBAND_NOTIFICATIONS),
        _B.SHARED_OBJECT_ADD: Shape(of.SHARED_OBJECT, needs=_P.SHARED_OBJECT),
        _B.SHARED_OBJECT_REMOVE: Shape(of.SHARED_OBJECT, needs=_P.SHARED_OBJECT),
        _B.SHARED_OBJECT_LOOKUP: Shape(
            of.SHARED_OBJECT, of.NUMBER, _ALWAYS, reply_fds=Fds.OPTIONAL, needs=_P.SHARED_OBJECT
        ),
        _B.SHMEM_MAP: Shape(of.MMAP, fds=Fds.ONE, needs=_P.SHMEM),
        _B.SHMEM_UNMAP: Shape(of.MMAP, needs=_P.SHMEM),
    }
)


def shape_of(request: Request) -> Shape:
    """The row of a request."""
    return FRONT_END[request] if isinstance(request, FrontEndRequest) else BACK_END[request]
