"""VERSION, seen from the server: what it offers, what both sides then keep to, and whom it refuses."""

from __future__ import annotations

import errno
import logging
import socket
import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from userdev.errors import ProtocolError
from userdev.transport import DescriptorsLost, Framer, Stream, close_all
from vfio_user.device import CURRENT_POLICY
from vfio_user.wire import MAX_DATA, Capabilities, Command, Dialect, Message, decode_version, encode_version

log = logging.getLogger("vfio_user.server")

SERVER_FDS = 16
"""Descriptors per message that a server says it takes: QEMU sends at most 16."""

ANSWER_SECONDS = 60.0
"""How long a client may take to answer a request of the device: its own main loop may be busy, or be debugged."""


@dataclass(frozen=True)
class Offer:
    """The server's side of VERSION, beyond what its device needs.

    `write_multiple` is off by default: agreeing to it makes QEMU queue every message (hw/vfio-user/proxy.h, the
    USE_MULTI flag overlaps FORCE_QUEUED); the command itself is served either way. `twin_socket` is offered to
    clients that ask for one.
    """

    max_msg_fds: int = SERVER_FDS
    max_data_xfer_size: int = MAX_DATA
    pgsizes: int = 4096
    max_dma_maps: int = CURRENT_POLICY.max_regions
    write_multiple: bool = False
    twin_socket: bool = True


class Twin:
    """The second socket, for the server's own requests: one at a time, each followed by its reply."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._framer = Framer(Message)
        self._lock = threading.Lock()
        self._unasked = 0  # replies that nobody waited for

    def exchange(self, message: Message) -> Message:
        """Send a request and wait for its reply; replies to anything else are dropped.

        A client that does not answer is not asked again: whoever serves it waits once.

        Raises:
            ProtocolError: the client sent something that is no reply, went away, or takes longer than
                `ANSWER_SECONDS`.
        """
        with self._lock:
            end = monotonic() + ANSWER_SECONDS
            try:
                self._until(end).send(message.encode())
                while (answer := self._next(end)).id != message.id:
                    level = logging.DEBUG if self._unasked else logging.WARNING
                    log.log(level, "dropped: a reply to id %d on the twin socket, which nobody asked", answer.id)
                    self._unasked += 1
            except TimeoutError:
                self.shutdown()
                raise ProtocolError(
                    f"no answer on the twin socket within {ANSWER_SECONDS:g} s: nothing more is asked there",
                    errno.ETIMEDOUT,
                ) from None
            except OSError as error:
                raise ProtocolError(f"the twin socket: {error.strerror}", errno.ECONNRESET) from None
        return answer

    def _next(self, end: float) -> Message:
        while (reply := self._framer.next()) is None:
            try:
                count, fds = self._until(end).receive(self._framer.room())
            except DescriptorsLost as lost:
                self._framer.lost(lost.count)
                continue
            self._framer.received(count, fds)
            if not count:
                raise ProtocolError("the client closed the twin socket", errno.ECONNRESET)
        close_all(reply.fds)
        if not reply.is_reply:
            raise ProtocolError(f"command {reply.command} on the twin socket, where replies belong", errno.EPROTO)
        return reply

    def _until(self, end: float) -> Stream:
        """The socket, which waits no longer than that."""
        self._stream.socket.settimeout(max(end - monotonic(), 0.001))
        return self._stream

    def shutdown(self) -> None:
        """Wake whoever waits for an answer; no further one comes. From any thread."""
        self._stream.shutdown()

    def close(self) -> None:
        """Close the second socket, and descriptors that came by it."""
        self._framer.close()
        self._stream.shutdown()
        self._stream.close()


@dataclass
class Agreement:
    """The agreement that holds for the session once VERSION is through."""

    minor: int = 0
    client: Capabilities = field(default_factory=Capabilities)
    twin: Twin | None = None
    taken: int = MAX_DATA
    """Bytes of data that the server has said it takes in one message."""

    @property
    def data_per_message(self) -> int:
        """Bytes of data the client takes in one message; a client that says 0 gets 1 MiB as if it had said nothing."""
        return min(self.client.data_per_message or MAX_DATA, MAX_DATA)

    @property
    def data_per_answer(self) -> int:
        """Bytes of data to ask the client for in one message: what it can send, and the server takes."""
        return min(self.data_per_message, self.taken)


class VersionAnswer(NamedTuple):
    """The message to send back, and why the client is refused if it is."""

    message: Message | None
    reason: str = ""


def negotiate(
    message: Message, dialect: Dialect, offer: Offer, *, migration_pgsize: int | None
) -> tuple[Agreement | None, VersionAnswer]:
    """Answer a session's first message; no agreement means that the connection ends after the answer.

    A client's No_reply is ignored here, as libvfio-user does: nothing can go on without the reply.
    """
    if message.type != 0:
        return None, VersionAnswer(None, "the first message is a reply")
    if message.command != dialect.number(Command.VERSION):
        return None, VersionAnswer(
            message.error(errno.EINVAL), f"the first message is command {message.command}, not VERSION"
        )
    try:
        proposal = decode_version(dialect, message.payload)
        client = proposal.capabilities
        _check_migration(dialect, client, migration_pgsize)
        agreement = Agreement(min(proposal.minor, dialect.minor), client, taken=offer.max_data_xfer_size)
        twin = _wants_twin(dialect, offer, client)
        offered = _capabilities(offer, client, migration_pgsize, twin=twin)
        payload = encode_version(dialect, agreement.minor, offered, limit=_room(message))
    except ProtocolError as error:
        return None, VersionAnswer(message.error(error.errno), str(error))
    if not twin:
        return agreement, VersionAnswer(message.reply(payload))
    ours, theirs = socket.socketpair()
    agreement.twin = Twin(Stream(ours))
    return agreement, VersionAnswer(message.reply(payload, [theirs.detach()]))


def _check_migration(dialect: Dialect, client: Capabilities, pgsize: int | None) -> None:
    """Zero is what a client without an opinion sends. v1's dialects use the smaller of both sides', which a log in ours
    can tell of whatever it is; where nothing goes by it, others are refused as by libvfio-user.
    """
    if not pgsize or not (said := client.migration_pgsize) or said == pgsize:
        return
    smaller = min(said, pgsize) if dialect.migration_region else 0
    if not smaller or smaller & (smaller - 1):
        raise ProtocolError(f"VERSION: migration pages of {said} bytes, {pgsize} are kept")


def _wants_twin(dialect: Dialect, offer: Offer, client: Capabilities) -> bool:
    possible = dialect.shapes[Command.VERSION].fds == "reply"
    return possible and offer.twin_socket and bool(client.twin_socket) and client.fds_per_message >= 1


def _room(message: Message) -> int | None:
    """The longest payload the reply may have: QEMU's buffer is as large as its proposal, which is over 100 bytes."""
    return len(message.payload) if len(message.payload) >= 64 else None


def _capabilities(offer: Offer, client: Capabilities, migration_pgsize: int | None, *, twin: bool) -> Capabilities:
    return Capabilities(
        max_msg_fds=offer.max_msg_fds,
        max_data_xfer_size=offer.max_data_xfer_size,
        pgsizes=offer.pgsizes,
        max_dma_maps=offer.max_dma_maps,
        write_multiple=True if offer.write_multiple and client.write_multiple else None,
        twin_socket=True if twin else None,
        twin_socket_fd_index=0 if twin else None,
        migration_pgsize=migration_pgsize,
    )
