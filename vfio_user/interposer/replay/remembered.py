"""The memory that a recorded device saw, for what one asks that was not recorded."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from vfio_user.interposer.replay.memory import SparseMemory
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import is_servers_request
from vfio_user.interposer.trace import MessageRecord
from vfio_user.wire import MAX_DATA, Command, Message


class RememberedMemory:
    """The client's memory, as far as a trace tells it and a server writes it."""

    def __init__(self, script: Script, replies: Mapping[int, MessageRecord]) -> None:
        """What the recorded device read is what stood there; later reads of a place do not undo earlier ones.

        replies: by the number of the request's record.
        """
        self._dialect = script.dialect
        self._memory = SparseMemory()
        shape = self._dialect.shapes[Command.DMA_READ]
        assert shape.reply is not None
        for step in reversed(script.steps):
            if not is_servers_request(step) or step.message.command != shape.number:
                continue
            answer = replies.get(step.number)
            if answer is not None and not answer.message.failed:
                access = shape.reply.unpack(answer.message.payload)
                self._memory.write(access.address, answer.message.payload[shape.reply.size :])

    def answer(self, request: Message) -> Message:
        """What to answer to a request of the server's: of memory that nobody knows zeros, of all else ENOSYS."""
        command = self._dialect.command(request.command)
        if command not in (Command.DMA_READ, Command.DMA_WRITE):
            return request.error(errno.ENOSYS)
        shape = self._dialect.shapes[command]
        assert shape.request is not None
        access = shape.request.unpack(request.payload)
        data = b""
        if command is Command.DMA_READ:
            data = self._memory.read(access.address, min(access.length, MAX_DATA))
        else:
            self._memory.write(access.address, request.payload[shape.request.size :])
        return request.reply(
            shape.reply.pack(access.address, access.length, tail=data) if shape.reply is not None else b""
        )
