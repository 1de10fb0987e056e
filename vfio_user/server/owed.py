"""The reply that the client is owed for the command under way, and when it may leave."""

from __future__ import annotations


class Owed:
    """The reply owed for the command begun last: one served while another waits for message DMA ends before that.

    The hot path (`vfio_user.server.registers`) sets the two attributes by itself.
    """

    __slots__ = ("blocking", "reply")

    def __init__(self) -> None:
        self.reply: bytes | None = None
        """What is owed, empty while it is not known; None: nothing, as none is wanted, or as it has left."""
        self.blocking = False
        """The client waits for what only the end of the command brings: nothing may wait for the client meanwhile."""

    def begin(self, *, wanted: bool) -> None:
        """A command begins, to which a reply is wanted or not."""
        self.reply = b"" if wanted else None
        self.blocking = wanted

    def promise(self, reply: bytes) -> None:
        """Note the reply, so that it may leave before the command is done."""
        self.reply, self.blocking = reply, False

    def take(self) -> bytes:
        """The reply, to be sent at once as its command is going to wait; nothing if none is owed."""
        reply, self.reply = self.reply, None
        return reply or b""

    def end(self) -> bool:
        """The command has ended; whether it is still owed its reply."""
        owed, self.reply, self.blocking = self.reply is not None, None, False
        return owed
