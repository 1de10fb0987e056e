"""Requests of the interposer's own, beside those of the client: coroutines of `userdev.relay.loop`.

A refusal by the peer raises `RequestRefused` with its errno; a peer that is gone or silent raises `PeerLost` or
`TimeoutError`.
"""

from __future__ import annotations

import errno as errnos
from collections.abc import Sequence

from userdev.interposer.errors import PeerLost
from userdev.relay.direction import Direction
from vfio_user.interposer.errors import RequestRefused
from vfio_user.interposer.pairing import PendingRequest
from vfio_user.interposer.session import ForwardedSession
from vfio_user.wire import MAX_DATA, NO_REPLY, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import FeatureFlags
from vfio_user.wire.state_pieces import write_of

TIMEOUT_SECONDS = 5.0
"""Seconds a peer has for an answer."""
PAGE = 4096


async def exchange(
    session: ForwardedSession, towards: Direction, message: Message, *, timeout: float, force: bool = False
) -> Message:
    """Send a request of ours and wait for its reply, which may be an error. Its descriptors are there until the caller
    waits for something else. With `force` it may be larger than the peer takes.

    Raises:
        PeerLost: the peer is gone.
        RequestRefused: EMSGSIZE, it is larger than the peer takes, which would end the connection, the client's too.
        TimeoutError: no reply within `timeout` seconds; one that comes later is dropped.
    """
    if not force:
        _check_size(session, towards, message)
    if not session.is_connected(towards):
        raise PeerLost(f"no {'server' if towards is Direction.TO_SERVER else 'client'} is connected")
    own = session.own[towards]
    message, reply = own.prepare(message)
    session.counters.own_requests += 1
    session.choose_path()
    number = session.send(towards, message)
    session.pending[towards].sent(message.id, PendingRequest(number, message.command, None))
    try:
        return await session.loop.within(timeout, reply, "the reply")
    except TimeoutError:
        own.give_up(message.id)
        raise
    finally:
        session.choose_path()


async def exchange_all(
    session: ForwardedSession, towards: Direction, command: int, payloads: Sequence[bytes], *, timeout: float
) -> Message:
    """Exchange requests that go out together, of which only the last wants a reply: that one, or the first
    refusal. Peers do requests in their order, and tell a refusal also to a sender that wants no reply.
    """
    own = session.own[towards]
    id, refused = own.post()
    try:
        session.choose_path()
        session.send_together(towards, [Message(id, command, NO_REPLY, payload=data) for data in payloads[:-1]])
        session.counters.own_requests += len(payloads) - 1
        reply = await exchange(session, towards, Message(0, command, payload=payloads[-1]), timeout=timeout)
    finally:
        own.forget(id)
        session.choose_path()
    return refused.result() if refused.done else reply


async def request(
    session: ForwardedSession,
    command: Command,
    payload: bytes = b"",
    *,
    fds: Sequence[int] = (),
    towards: Direction = Direction.TO_SERVER,
    timeout: float = TIMEOUT_SECONDS,
    what: str = "",
) -> Message:
    """Send a request and return its good reply. `what` is what a refusal calls it, where that is more than its name.

    Raises:
        RequestRefused: the reply reports an error.
    """
    if command not in session.dialect:
        raise RequestRefused(f"{command.value} is no command of dialect {session.dialect.name}", errnos.ENOTSUP)
    message = Message(0, session.dialect.number(command), payload=payload, fds=list(fds))
    return await ask(session, what or command.value, message, towards=towards, timeout=timeout)


async def ask(
    session: ForwardedSession,
    what: str,
    message: Message,
    *,
    towards: Direction = Direction.TO_SERVER,
    timeout: float = TIMEOUT_SECONDS,
) -> Message:
    """Send a message that is made already and return its good reply, as `request`."""
    reply = await exchange(session, towards, message, timeout=timeout)
    if reply.failed:
        raise RequestRefused(what, reply.errno)
    return reply


async def device_info(session: ForwardedSession, *, timeout: float = TIMEOUT_SECONDS) -> bytes:
    """GET_INFO; returns the reply's payload."""
    return (await request(session, Command.GET_INFO, _info_asked(session), timeout=timeout)).payload


async def barrier(session: ForwardedSession, *, timeout: float = TIMEOUT_SECONDS) -> None:
    """Ask the server something harmless: with its answer, a refusal as well, all that it was sent before is done."""
    asked = Message(0, session.dialect.number(Command.GET_INFO), payload=_info_asked(session))
    await exchange(session, Direction.TO_SERVER, asked, timeout=timeout)


def _info_asked(session: ForwardedSession) -> bytes:
    wants_struct = session.dialect.shapes[Command.GET_INFO].request is not None
    return at.DEVICE_INFO.pack(at.DEVICE_INFO.size, 0, 0, 0) if wants_struct else b""


async def region_read(session: ForwardedSession, region: int, offset: int, size: int) -> bytes:
    """`size` bytes of a region, in one access."""
    reply = await request(session, Command.REGION_READ, at.REGION_ACCESS.pack(offset, region, size))
    at.REGION_ACCESS.unpack(reply.payload)
    return reply.payload[at.REGION_ACCESS.size :]


async def region_write(session: ForwardedSession, region: int, offset: int, data: bytes) -> None:
    """Write to a region, in one access."""
    payload = at.REGION_ACCESS.pack(offset, region, len(data), tail=data)
    await request(session, Command.REGION_WRITE, payload, what=write_of(Command.REGION_WRITE.value, len(data)))


async def feature(
    session: ForwardedSession,
    number: int,
    operation: FeatureFlags,
    data: bytes = b"",
    *,
    room: int = 0,
    timeout: float = TIMEOUT_SECONDS,
) -> bytes:
    """DEVICE_FEATURE; returns the feature's structure from the reply. `room`: bytes expected beyond `data`."""
    payload = at.FEATURE.pack(at.FEATURE.size + len(data) + room, number | operation, tail=data)
    reply = await request(session, Command.DEVICE_FEATURE, payload, timeout=timeout)
    at.FEATURE.unpack(reply.payload)
    return reply.payload[at.FEATURE.size :]


def _check_size(session: ForwardedSession, towards: Direction, message: Message) -> None:
    side = session.model.server if towards is Direction.TO_SERVER else session.model.client
    data = (side.capabilities.data_per_message if side else 0) or MAX_DATA
    largest = data + at.REGION_ACCESS.size
    if len(message.payload) > largest:
        peer = "server" if towards is Direction.TO_SERVER else "client"
        command = session.dialect.command(message.command)
        name = command.name if command else message.command
        what = f"{len(message.payload):,} bytes of {name} in one message, and the {peer} takes {largest:,}"
        raise RequestRefused(what, errnos.EMSGSIZE)


def data_limit(session: ForwardedSession) -> int:
    """Bytes of migration data that both sides agreed to take in one message."""
    sides = [side.capabilities.data_per_message for side in (session.model.client, session.model.server) if side]
    return max(PAGE, min([1 << 20, *sides]))
