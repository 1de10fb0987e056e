"""One conversation with one server: VERSION, requests, replies, and the server's own requests served in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self

from userdev.busy_wait import BusyWait
from userdev.counted import counted
from userdev.errors import ProtocolError, UserError
from userdev.transport import Address, Stream, close_all, connect
from vfio_user.client.channel import Channel, Pending, giving_up
from vfio_user.client.errors import RemoteError
from vfio_user.client.memory import AddressSpace
from vfio_user.client.reading import read_as
from vfio_user.client.service import Service
from vfio_user.wire import (
    CURRENT,
    HEADER,
    HEADER_SIZE,
    MAX_DATA,
    NO_REPLY,
    Capabilities,
    Command,
    Dialect,
    Message,
    Proposal,
    decode_version,
    encode_version,
)
from vfio_user.wire.layouts import VERSION

QEMU_FDS = 16
"""Descriptors that QEMU takes and sends with one message (hw/vfio-user/protocol.h, VFIO_USER_MAX_MAX_FDS)."""
AT_ONCE = 16
"""Questions that are asked before the first is answered."""


def at_once(indexes: Sequence[int]) -> Iterator[Sequence[int]]:
    """Indexes in pieces that may be asked of at once."""
    return (indexes[first : first + AT_ONCE] for first in range(0, len(indexes), AT_ONCE))


class ClientConnection:
    """A stream that speaks one dialect. A context manager; what the device can do is in the subclasses."""

    def __init__(
        self, stream: Stream, *, dialect: Dialect = CURRENT, timeout: float = 5.0, busy_wait: BusyWait | None = None
    ) -> None:
        """Take over a connected stream; `negotiate` is yet to be called.

        `busy_wait` is that of the thread that asks, where it looks for an answer of another process for a moment before
        it sleeps.

        Raises:
            TypeError: it is no stream.
        """
        given: object = stream
        if not isinstance(given, Stream):  # an address, say, as a front-end of vhost-user may be made of
            name = type(self).__name__
            raise TypeError(f"{name} takes a connected Stream, not {given!r}: {name}.connect(address) connects to one")
        self.dialect = dialect
        self.memory = AddressSpace()
        self.service = Service(dialect, self.memory)
        self.channel = Channel(stream, self.service.answer, timeout=timeout, busy_wait=busy_wait)
        self.server: Proposal | None = None
        """What the server answered to VERSION."""
        self._region_fds: dict[int, int] = {}
        """By region: the descriptor that the server gave to map it with."""

    @classmethod
    def connect(
        cls,
        address: Address | str,
        *,
        dialect: Dialect = CURRENT,
        capabilities: Capabilities | None = None,
        minor: int | None = None,
        twin_socket: bool = False,
        timeout: float = 5.0,
    ) -> Self:
        """Connect and agree on a version; `timeout` (seconds) then holds for every call.

        Raises:
            UserError: nobody listens there.
            RemoteError, ProtocolError, Disconnected: the two do not agree.
        """
        client = cls(connect(address, timeout=timeout), dialect=dialect, timeout=timeout)
        try:
            client.negotiate(capabilities, minor=minor, twin_socket=twin_socket)
        except BaseException:
            client.close()
            raise
        return client

    def negotiate(
        self, capabilities: Capabilities | None = None, *, minor: int | None = None, twin_socket: bool = False
    ) -> Proposal:
        """Exchange VERSION messages; the server's answer, which is `server` from then on.

        Raises:
            ProtocolError: the answer breaks a rule: another major, a minor above the one proposed, a twin socket
                nobody asked for.
        """
        minor = self.dialect.minor if minor is None else minor
        if capabilities is None:
            capabilities = self.default_capabilities(twin_socket=twin_socket)
        proposal = encode_version(self.dialect, minor, capabilities)
        reply = self.request(Command.VERSION, proposal)
        try:
            read_as(VERSION, reply.payload, Command.VERSION.value)
            server = decode_version(self.dialect, reply.payload)
            if server.minor > minor:
                raise ProtocolError(f"VERSION: the server answers minor {server.minor} to {minor}")
            self._take_twin(server, reply.fds, asked=bool(capabilities.twin_socket))
        finally:
            close_all(reply.fds)
        self.service.max_data = capabilities.data_per_message
        self.server = server
        return server

    def default_capabilities(self, *, twin_socket: bool = False) -> Capabilities:
        """The capabilities that QEMU proposes."""
        fds = QEMU_FDS if self.channel.carries_fds else 0
        if self.dialect.fds_capability == "max_fds":
            return Capabilities(max_msg_fds=fds, migration_pgsize=4096)
        return Capabilities(
            max_msg_fds=fds,
            max_data_xfer_size=1 << 20,
            pgsizes=4096,
            max_dma_maps=65535,
            write_multiple=True,
            twin_socket=twin_socket or None,
            migration_pgsize=4096,
            migration_max_bitmap_size=256 << 20,
        )

    @property
    def fds_per_message(self) -> int:
        """Most descriptors to attach to one message: what the server takes, and no more than QEMU sends."""
        agreed = self.server.capabilities.fds_per_message if self.server else 1
        return min(agreed, QEMU_FDS) if self.channel.carries_fds else 0

    @property
    def data_limit(self) -> int:
        """Most bytes of data in one message, as agreed."""
        return min(self.service.max_data, self.server.capabilities.data_per_message) if self.server else MAX_DATA

    @property
    def is_connected(self) -> bool:
        """Whether the server is still there, as far as is known."""
        return self.channel.is_connected

    # asking

    def submit(self, command: Command, payload: bytes = b"", fds: Sequence[int] = (), *, what: str = "") -> Pending:
        """Send a request and go on; `wait` or `gather` take the reply. Descriptors stay the caller's."""
        message = Message(self.channel.fresh_id(), self._number(command), payload=payload, fds=list(fds))
        pending = self.channel.submit(message, what or command.value)
        assert pending is not None
        return pending

    def submit_all(self, command: Command, payloads: Iterable[bytes]) -> list[Pending]:
        """Send several requests of one command at once, without descriptors, and go on; see `gather`."""
        number = self._number(command)
        return self.channel.submit_all(
            [Message(self.channel.fresh_id(), number, payload=payload) for payload in payloads], command.value
        )

    def post(self, command: Command, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that wants no reply."""
        number = self._number(command)
        self.channel.submit(Message(self.channel.fresh_id(), number, NO_REPLY, 0, payload, list(fds)), command.value)

    def wait(self, pending: Pending, *, timeout: float | None = None) -> Message:
        """The reply to `pending`, good or bad; its descriptors belong to the caller."""
        return self.channel.wait(pending, timeout=timeout)

    def gather(self, pending: Iterable[Pending], *, timeout: float | None = None) -> list[Message]:
        """The replies to several requests, in the order of the requests; see `wait`, whose errors close them all."""
        requests = list(pending)
        with giving_up(requests):
            return [self.wait(request, timeout=timeout) for request in requests]

    def request(
        self,
        command: Command,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        timeout: float | None = None,
        what: str = "",
    ) -> Message:
        """Send a request and wait for its good reply, which carries descriptors only where the dialect says so.

        `what` is what errors call it, where that is more than the command's name.

        Raises:
            RemoteError: the server answers with an error.
        """
        return self.checked(command, self.wait(self.submit(command, payload, fds, what=what), timeout=timeout), what)

    def checked(self, command: Command, reply: Message, what: str = "") -> Message:
        """The reply to `command`, if it is a good one.

        What is wrong is said of the command that was asked; a reply's own need not be that, as only ids are echoed.

        Raises:
            RemoteError: the server answers with an error.
            ProtocolError: it brings descriptors, where the dialect has none.
        """
        if reply.failed:
            close_all(reply.fds)
            raise RemoteError(reply.errno, what or command.value, reply)
        if reply.fds and self.dialect.shapes[command].fds != "reply":
            close_all(reply.fds)
            raise ProtocolError(f"{counted(len(reply.fds), 'descriptor')} with the reply to {command.value}")
        return reply

    def gather_good(self, command: Command, pending: Iterable[Pending], done: Callable[[int, Message], object]) -> None:
        """Take the replies to several requests of one command: `done` is given the place of each good one, and it.

        Raises:
            RemoteError, ProtocolError: of the first that is none, once all of them are taken.
        """
        refused: list[RemoteError | ProtocolError] = []
        for place, reply in enumerate(self.gather(pending)):
            try:
                done(place, self.checked(command, reply))
            except (RemoteError, ProtocolError) as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def raw(
        self,
        command: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        flags: int = 0,
        id: int | None = None,
        size: int | None = None,
        timeout: float | None = None,
    ) -> Message | None:
        """Send any message, with any lie in its header, and take whatever comes back under its id.

        None where `flags` has NO_REPLY. An error reply is returned, not raised; its descriptors are the caller's.
        """
        id = self.channel.fresh_id() if id is None else id
        pending = None if flags & NO_REPLY else self.channel.expect(id, f"command {command}")
        header = HEADER.pack(id, command, HEADER_SIZE + len(payload) if size is None else size, flags, 0)
        self.channel.send_bytes(header + payload, fds)
        return None if pending is None else self.wait(pending, timeout=timeout)

    def serve_until(self, done: Callable[[], bool], *, timeout: float = 5.0) -> bool:
        """Serve the server's requests until `done()`; whether it came to that within `timeout` seconds."""
        return self.channel.serve_until(done, timeout=timeout)

    def close(self) -> None:
        """End the connection and close every descriptor that the server gave; idempotent."""
        self.channel.close()
        close_all(list(self._region_fds.values()))
        self._region_fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _number(self, command: Command) -> int:
        if command not in self.dialect:
            raise UserError(f"dialect {self.dialect.name} has no {command.value}")
        return self.dialect.number(command)

    def _take_twin(self, server: Proposal, fds: list[int], *, asked: bool) -> None:
        if not server.capabilities.twin_socket:
            if fds:
                raise ProtocolError(f"{counted(len(fds), 'descriptor')} with the reply to VERSION")
            return
        index = server.capabilities.twin_socket_fd_index
        if not asked or index is None or index >= len(fds):
            raise ProtocolError("VERSION: a twin socket that was not asked for, or without its descriptor")
        self.channel.add_twin(fds.pop(index))
