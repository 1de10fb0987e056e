"""Requests of the interposer's own, beside those of the client: coroutines of `vfio_user.interposer.loop`.

A refusal by the peer raises `Refused` with its errno; a peer that is gone or silent raises `Lost` or `TimeoutError`.
"""

from __future__ import annotations

import errno as errnos
import os
from collections.abc import Sequence

from userdev.errors import UserdevError
from vfio_user.interposer.direction import Direction
from vfio_user.interposer.session import Session
from vfio_user.wire import Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import FeatureFlags
from vfio_user.wire.state_pieces import write_of

TIMEOUT = 5.0
"""Seconds a peer has for an answer."""
PAGE = 4096


class Refused(UserdevError):
    """The peer answered with an error."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what}: {errnos.errorcode.get(errno, errno)} ({os.strerror(errno)})")
        self.errno = errno


async def request(
    session: Session,
    command: Command,
    payload: bytes = b"",
    *,
    fds: Sequence[int] = (),
    towards: Direction = Direction.TO_SERVER,
    timeout: float = TIMEOUT,
    what: str = "",
) -> Message:
    """Send a request and return its good reply. `what` is what a refusal calls it, where that is more than its name.

    Raises:
        Refused: the reply reports an error.
    """
    if command not in session.dialect:
        raise Refused(f"{command.value} is no command of dialect {session.dialect.name}", errnos.ENOTSUP)
    message = Message(0, session.dialect.number(command), payload=payload, fds=list(fds))
    return await ask(session, what or command.value, message, towards=towards, timeout=timeout)


async def ask(
    session: Session,
    what: str,
    message: Message,
    *,
    towards: Direction = Direction.TO_SERVER,
    timeout: float = TIMEOUT,
) -> Message:
    """As `request`, for a message that is made already."""
    reply = await session.ask(towards, message, timeout=timeout)
    if reply.failed:
        raise Refused(what, reply.errno)
    return reply


async def device_info(session: Session, *, timeout: float = TIMEOUT) -> bytes:
    """GET_INFO; returns the reply's payload."""
    wants_struct = session.dialect.shapes[Command.GET_INFO].request is not None
    payload = at.DEVICE_INFO.pack(at.DEVICE_INFO.size, 0, 0, 0) if wants_struct else b""
    return (await request(session, Command.GET_INFO, payload, timeout=timeout)).payload


async def region_read(session: Session, region: int, offset: int, size: int) -> bytes:
    """`size` bytes of a region, in one access."""
    reply = await request(session, Command.REGION_READ, at.REGION_ACCESS.pack(offset, region, size))
    at.REGION_ACCESS.unpack(reply.payload)
    return reply.payload[at.REGION_ACCESS.size :]


async def region_write(session: Session, region: int, offset: int, data: bytes) -> None:
    """Write to a region, in one access."""
    payload = at.REGION_ACCESS.pack(offset, region, len(data), tail=data)
    await request(session, Command.REGION_WRITE, payload, what=write_of(Command.REGION_WRITE.value, len(data)))


async def feature(
    session: Session,
    number: int,
    operation: FeatureFlags,
    data: bytes = b"",
    *,
    room: int = 0,
    timeout: float = TIMEOUT,
) -> bytes:
    """DEVICE_FEATURE; returns the feature's structure from the reply. `room`: bytes expected beyond `data`."""
    payload = at.FEATURE.pack(at.FEATURE.size + len(data) + room, number | operation, tail=data)
    reply = await request(session, Command.DEVICE_FEATURE, payload, timeout=timeout)
    at.FEATURE.unpack(reply.payload)
    return reply.payload[at.FEATURE.size :]


def data_limit(session: Session) -> int:
    """Bytes of migration data that both sides agreed to take in one message."""
    sides = [side.capabilities.data_per_message for side in (session.picture.client, session.picture.server) if side]
    return max(PAGE, min([1 << 20, *sides]))
