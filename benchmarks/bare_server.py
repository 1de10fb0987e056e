"""The smallest vfio-user server there is: one register, one receive per burst, no device, no checks.

    python -m benchmarks.bare_server SOCKET [--look]

A baseline for `benchmarks.region_access`; it sleeps in every receive, as a plain server does. With `--look` it never
sleeps while it has a client: the floor of any server in Python.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys

from userdev.transport import Framer, Listener
from vfio_user.wire import CURRENT, HEADER_SIZE, NO_REPLY, Capabilities, Command, Message, encode_version

ACCESS = struct.Struct("<HHII4x16s")
READ_REPLY = struct.Struct("<HHIII16sI")
WRITE_REPLY = struct.Struct("<HHIII16s")
READ = CURRENT.number(Command.REGION_READ)


def serve(client: socket.socket, look: bool) -> None:
    buffer = bytearray(1 << 16)
    value = 0
    poll = select.poll()
    poll.register(client, select.POLLIN)
    while True:
        while look and not poll.poll(0):
            os.sched_yield()
        if not (count := client.recvmsg_into([buffer], 64)[0]):
            return
        start, replies = 0, b""
        while count - start >= 2 * HEADER_SIZE:
            id, command, size, flags, access = ACCESS.unpack_from(buffer, start)
            if command == READ:
                replies += READ_REPLY.pack(id, command, READ_REPLY.size, 1, 0, access, value)
            else:
                value = int.from_bytes(buffer[start + 32 : start + size], "little")
                if not flags & NO_REPLY:
                    replies += WRITE_REPLY.pack(id, command, WRITE_REPLY.size, 1, 0, access)
            start += size
        if replies:
            client.sendall(replies)


def main() -> None:
    with Listener(sys.argv[1]) as listener:
        while True:
            stream, framer = listener.accept(), Framer(Message)
            while (proposal := framer.next()) is None:
                framer.received(*stream.receive(framer.room()))
            version = encode_version(CURRENT, 0, Capabilities(max_msg_fds=8, max_data_xfer_size=1 << 20))
            stream.send(proposal.reply(version).encode())
            serve(stream.socket, "--look" in sys.argv)
            stream.close()


if __name__ == "__main__":
    main()
