"""The smallest relay between a client and a server: what one side sends goes to the other, and is not looked at.

    python -m benchmarks.bare_relay SOCKET SERVER_SOCKET [--look]

The floor of any interposer in Python, for `benchmarks.interposer`. With `--look` it never sleeps while it has a client.
"""

from __future__ import annotations

import os
import select
import socket
import sys

SIZE = 1 << 16


def relay(client: socket.socket, server: socket.socket, look: bool) -> None:
    buffer = memoryview(bytearray(SIZE))
    other = {client.fileno(): (client, server), server.fileno(): (server, client)}
    poll = select.epoll()
    for fd in other:
        poll.register(fd, select.EPOLLIN)
    while True:
        while not (ready := poll.poll(0 if look else None)):
            os.sched_yield()
        for fd, _ in ready:
            source, sink = other[fd]
            if not (count := source.recv_into(buffer)):
                return
            sink.sendall(buffer[:count])


def main() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    while True:
        client, _ = listener.accept()
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(sys.argv[2])
            relay(client, server, "--look" in sys.argv)


if __name__ == "__main__":
    main()
