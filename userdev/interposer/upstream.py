"""Where servers come from: an address that somebody else listens on, or a command of our own."""

from __future__ import annotations

import os

from userdev.errors import UserError
from userdev.interposer.server_process import ServerProcess, peer_pid, process_ended
from userdev.relay.loop import Loop
from userdev.transport import Address, Stream, connect

LINGER_SECONDS = 0.5
"""Seconds that a server of ours has to end with its client, as it may, before it is taken to stay."""

RETRY_SECONDS = 0.02
"""Seconds between attempts to reach a server that somebody else has to start again."""


class Upstream:
    """The server's side of the world."""

    def __init__(self, loop: Loop, address: str | None, command: str | None, pid: int | None = None) -> None:
        """Nothing is connected or started yet. With a command, `address` is the path it is to listen on.

        `pid` is the process of the server that listens at `address`, where the caller knows it.

        Raises:
            UserError: neither is given, or one is malformed.
        """
        if address is None and command is None:
            raise UserError("no server", hint="give --connect ADDRESS, --server-command CMD, or both")
        self._loop = loop
        self.process = ServerProcess(loop, command, _path(address)) if command is not None else None
        self._address = Address.parse(address if address is not None else self.process.path if self.process else "")
        self._fresh: Stream | None = None
        self._peer: int | None = None
        self._told = pid
        self._may_end = False  # with its client; not before it has had one

    @property
    def pid(self) -> int | None:
        """The server's process, as far as it is known: ours, as told, or whoever listened at the UNIX socket."""
        return self.process.pid if self.process is not None else self._told or self._peer

    @property
    def fate(self) -> str:
        """The end of the server, for a sentence."""
        if self.process is None or self.process.pid is not None:
            return "has closed its connection"
        return self.process.fate

    async def start(self, timeout: float) -> None:
        """Start the server where that is up to us, so that the first client need not wait."""
        if self.process is not None and self.process.pid is None:
            self._fresh = await self.process.start(timeout)

    async def connect(self, timeout: float) -> Stream:
        """A new connection; a server of ours that is not running is started.

        One that ends with its client is waited for: until it has ended, connections to it are taken, and then lost.

        Raises:
            UserError: no server can be reached.
        """
        if self.process is not None:
            if self._may_end or self.process.pid is None:
                self._may_end = await self.process.ended(LINGER_SECONDS)
            elif self._peer is None:
                self._may_end = True  # the first client's; the second finds out
        if self._told is not None and await process_ended(self._loop, self._told, 0.0):
            self._told = None  # whoever listens now is another
        if self._fresh is not None and self._fresh.is_hung_up:
            self._fresh.close()  # it has waited for a client's first word as long as a server does
            self._fresh = None
        await self.start(timeout)
        stream, self._fresh = self._fresh, None
        if stream is None:
            stream = connect(self._address, timeout=timeout)
        self._peer = peer_pid(stream)
        return stream

    async def died(self, timeout: float) -> bool:
        """Whether the server's process has ended, or does so within `timeout` seconds; of one unknown that is said.

        Whoever listened at the socket may be somebody else, who has started the server with it, and lives on.
        """
        pid = self.process.pid if self.process is not None else self._told
        return pid is None or await process_ended(self._loop, pid, timeout)

    async def reconnect(self, deadline: float) -> Stream:
        """A connection to the next server: ours started anew, or somebody else's as soon as it listens.

        Raises:
            UserError: none came up before `deadline`.
        """
        self._told = None  # that one is gone
        if self.process is not None:
            self._peer = None
            return await self.process.start(deadline - self._loop.now())
        while True:
            try:
                stream = connect(self._address, timeout=1.0)
            except UserError:
                if self._loop.now() >= deadline:
                    raise
                await self._loop.sleep(RETRY_SECONDS)
            else:
                self._peer = peer_pid(stream)
                return stream

    async def stop(self) -> None:
        """End the server, gently: ours, or the process that listened."""
        if self.process is not None:
            await self.process.stop()

    def signal(self, number: int) -> int:
        """Send the server a signal; returns its process id.

        Raises:
            UserError: it is not known which process it is, or that has ended.
        """
        pid = self.pid
        if pid is None:
            raise UserError(
                "the server's process is not known", hint="add --server-pid, or start it with --server-command"
            )
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError) as error:
            raise UserError(f"cannot signal the server, process {pid}: {error.strerror}") from None
        return pid

    def close(self) -> None:
        """Close the connection that waits for a session, and end the server where it is ours."""
        if self._fresh is not None:
            self._fresh.close()
        if self.process is not None:
            self.process.close()


def _path(address: str | None) -> str | None:
    if address is None:
        return None
    where = Address.parse(address).where
    if not isinstance(where, str):
        raise UserError(f"a server that is started here listens on a UNIX socket, not on {address}")
    return where
