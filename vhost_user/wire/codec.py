"""Messages that keep to the tables: which request a message is, what it says, what answers it. For either role."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from userdev.errors import ProtocolError
from vhost_user.wire import payloads as of
from vhost_user.wire.features import ProtocolFeature, VirtioFeature
from vhost_user.wire.header import NEED_REPLY, REPLY, VERSION, Message
from vhost_user.wire.messages import NO_FD, BackEndRequest, Fds, FrontEndRequest, Reply, Request, shape_of
from vhost_user.wire.payloads import Payload

_NO_FEATURES = VirtioFeature(0)
_NO_PROTOCOL_FEATURES = ProtocolFeature(0)


@dataclass(frozen=True)
class Negotiated:
    """The features both sides agreed on: they decide which messages there are, and which of them are answered."""

    features: VirtioFeature = _NO_FEATURES
    protocol_features: ProtocolFeature = _NO_PROTOCOL_FEATURES
    postcopy: bool = False
    """Whether POSTCOPY_LISTEN has come."""

    def allows(self, request: Request) -> bool:
        """Whether the request may be sent at all.

        PROTOCOL_FEATURES as the bit that a message needs is not asked for: it counts what the back-end *offers*, and
        libblkio and virtio_user send such messages before they acknowledge it, or without.
        """
        needed = shape_of(request).needs
        if isinstance(needed, ProtocolFeature):
            return needed in self.protocol_features
        return needed in (None, VirtioFeature.PROTOCOL_FEATURES) or needed in self.features

    def is_own_reply(self, request: Request) -> bool:
        """Whether a reply to the request has the payload of its row, rather than that of an acknowledgement."""
        match shape_of(request).reply:
            case Reply.ALWAYS:
                return True
            case Reply.POSTCOPY:
                return self.postcopy
            case Reply.SHMFD:
                return ProtocolFeature.LOG_SHMFD in self.protocol_features
        return False

    def is_answered(self, request: Request, message: Message) -> bool:
        """Whether the message, which is this request, is to be answered."""
        acknowledged = message.needs_reply and ProtocolFeature.REPLY_ACK in self.protocol_features
        return self.is_own_reply(request) or acknowledged


def decode_request(kind: type[FrontEndRequest] | type[BackEndRequest], message: Message) -> tuple[Request, Any]:
    """Decode a request of a channel: which it is, and its payload. The message keeps its descriptors.

    Raises:
        ProtocolError: fatal where it is no request of this version at all; ENOSYS where the request is unknown;
            EINVAL where its payload or descriptors are wrong.
    """
    if message.version != VERSION:
        raise ProtocolError(f"{message} has version {message.version}", fatal=True)
    if message.is_reply:
        raise ProtocolError(f"a {message}, where a request is to come", fatal=True)
    try:
        request = kind(message.request)
    except ValueError:
        raise ProtocolError(f"request {message.request} is unknown", errno.ENOSYS) from None
    shape = shape_of(request)
    return request, _checked(request, shape.payload, shape.fds, message)


def is_postcopy_acknowledgement(message: Message) -> bool:
    """Whether a front-end acknowledges the addresses that SET_MEM_TABLE or ADD_MEM_REG were answered with.

    QEMU repeats the request, with a number (0) for a payload and no descriptors; it is not answered (SET_MEM_TABLE).
    """
    kinds = (FrontEndRequest.SET_MEM_TABLE, FrontEndRequest.ADD_MEM_REG)
    return message.request in kinds and len(message.payload) == 8 and not message.fds


def decode_reply(request: Request, message: Message, negotiated: Negotiated) -> Any:
    """Decode the reply to a request: the number of an acknowledgement, or the payload of the request's row.

    NEED_REPLY may be left in a reply's flags, as QEMU's storage daemon and passt do.

    Raises:
        ProtocolError: fatal where it is no reply to this request; EINVAL where its payload or descriptors are wrong.
    """
    if message.version != VERSION or not message.is_reply or message.request != request:
        raise ProtocolError(f"{message} with flags {message.flags:#x}, where {request.name} is answered", fatal=True)
    shape = shape_of(request)
    if not negotiated.is_own_reply(request):
        return _checked(request, of.NUMBER, Fds.NONE, message)
    return _checked(request, shape.reply_payload, shape.reply_fds, message)


def encode_request(
    request: Request, value: Any = None, fds: list[int] | None = None, *, need_reply: bool = False
) -> Message:
    """The request with this payload; `fds` become the message's.

    Raises:
        ValueError: the descriptors are not those that the request has.
    """
    shape = shape_of(request)
    flags = VERSION | (NEED_REPLY if need_reply else 0)
    return _whole(request, Message(request, flags, shape.payload.encode(value), fds or []), shape.fds, value)


def encode_reply(request: Request, value: Any = None, fds: list[int] | None = None) -> Message:
    """The reply of its own that a request has; flags without NEED_REPLY, as QEMU insists.

    Raises:
        ValueError: the descriptors are not those that the reply has.
    """
    shape = shape_of(request)
    message = Message(request, VERSION | REPLY, shape.reply_payload.encode(value), fds or [])
    return _whole(request, message, shape.reply_fds, value)


def acknowledge(request: int, error: int = 0) -> Message:
    """The answer to a request that was asked for one by NEED_REPLY: 0, or an errno."""
    return Message(request, VERSION | REPLY, of.NUMBER.encode(error))


def _checked(request: Request, payload: Payload[Any], fds: Fds, message: Message) -> Any:
    try:
        value = payload.decode(message.payload)
    except ProtocolError as error:
        raise ProtocolError(f"{request.name}: {error}", error.errno) from None
    if (wrong := _wrong_fds(fds, value, len(message.fds))) is not None:
        raise ProtocolError(f"{request.name}: {wrong}")
    return value


def _whole(request: Request, message: Message, fds: Fds, value: Any) -> Message:
    if (wrong := _wrong_fds(fds, value, len(message.fds))) is not None:
        raise ValueError(f"{request.name}: {wrong}")
    return message


def _wrong_fds(fds: Fds, value: Any, count: int) -> str | None:
    """What is wrong with so many descriptors beside a payload."""
    match fds:
        case Fds.OPTIONAL:
            least, most = 0, 1
        case Fds.PER_REGION:
            least = most = len(value)
        case Fds.UNLESS_NO_FD:
            least = most = 0 if value & NO_FD else 1
        case _:
            least = most = int(fds is Fds.ONE)
    if least <= count <= most:
        return None
    return f"{count} file descriptors, where {most if least == most else 'at most one'} belong"
