"""What a client answers when the server asks: DMA in its own memory, interrupts, and errors as QEMU gives them.

Source of the errors: QEMU's hw/vfio-user/device.c and container.c (reference: dialects, "DMA_READ / DMA_WRITE").
"""

from __future__ import annotations

import errno
from collections import Counter, deque

from userdev.errors import ProtocolError
from userdev.layout import Layout
from userdev.transport import close_all
from vfio_user.client.memory import AddressSpace
from vfio_user.wire import MAX_DATA, Command, Dialect, Message
from vfio_user.wire.layouts import DMA_ACCESS_32, VM_INTERRUPT, VfioUserDmaAccess

_C_PADDING = 4
"""A 32-bit count leaves 4 bytes at the end of the C structure; clients of that time send them behind the data."""
MOST = 4096
"""Interrupts kept for whoever takes them. A server may send any number, and a client need not take one."""


class Service:
    """Answers the server's requests out of `memory`."""

    def __init__(self, dialect: Dialect, memory: AddressSpace) -> None:
        self.dialect = dialect
        self.memory = memory
        self.max_data = MAX_DATA
        self.interrupts: deque[int] = deque(maxlen=MOST)
        """Sub-index of each VM_INTERRUPT received, oldest first, of the last `MOST`; `served` counts all."""
        self.asked: Counter[Command] = Counter()
        """How many requests of each command came."""
        self.served: Counter[Command] = Counter()
        """How many of them were answered well."""

    def answer(self, message: Message) -> Message | None:
        """The reply to one request. As with QEMU, an error is told even to a sender that wants no reply."""
        command = self.dialect.command(message.command)
        if command is not None:
            self.asked[command] += 1
        try:
            payload = self._answer(command, message)
        except ProtocolError as error:
            return message.error(error.errno)
        finally:
            close_all(message.fds)
        assert command is not None
        self.served[command] += 1
        return message.reply(payload) if message.wants_reply else None

    def _answer(self, command: Command | None, message: Message) -> bytes:
        if message.fds:
            raise ProtocolError("descriptors with a request of the server", errno.EINVAL)
        match command:
            case Command.DMA_READ:
                return self._dma_read(message.payload)
            case Command.DMA_WRITE:
                return self._dma_write(message.payload)
            case Command.VM_INTERRUPT:
                self.interrupts.append(VM_INTERRUPT.unpack(message.payload).subindex)
                return b""
        raise ProtocolError(f"command {message.command} is not the server's to send", errno.ENOSYS)

    def _dma_read(self, payload: bytes) -> bytes:
        layout = self._layout(Command.DMA_READ)
        address, length = layout.unpack(payload)
        if length > self.max_data:
            raise ProtocolError(f"DMA_READ of {length} bytes", errno.E2BIG)
        return layout.pack(address, length, tail=self.memory.read(address, length)) + self._padding()

    def _dma_write(self, payload: bytes) -> bytes:
        layout = self._layout(Command.DMA_WRITE)
        address, length = layout.unpack(payload)
        data = payload[layout.size : layout.size + length]
        if length != len(data):
            raise ProtocolError(f"DMA_WRITE of {length} bytes carries {len(data)}", errno.E2BIG)
        self.memory.write(address, data)
        if self.dialect.shapes[Command.DMA_WRITE].reply is None:
            return b""
        return layout.pack(address, length if self.dialect.write_reply_counts else 0)

    def _layout(self, command: Command) -> Layout[VfioUserDmaAccess]:
        layout = self.dialect.shapes[command].request
        assert layout is not None
        return layout

    def _padding(self) -> bytes:
        shape = self.dialect.shapes[Command.DMA_WRITE]
        return bytes(_C_PADDING) if shape.request is DMA_ACCESS_32 and shape.reply is None else b""
