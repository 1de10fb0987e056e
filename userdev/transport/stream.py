"""A connected stream: bytes both ways, and file descriptors beside them where the socket's family can carry them.

UNIX sockets carry descriptors (SCM_RIGHTS); AF_VSOCK and TCP carry bytes only, which the specification allows: DMA and
interrupts then travel as messages.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import Sequence
from time import monotonic

MAX_FDS_PER_SEND = 253
"""SCM_MAX_FD in the kernel: more in one `sendmsg` is refused with EINVAL."""

_REST = 64 << 10
_DONTWAIT = int(socket.MSG_DONTWAIT)
_AT_ONCE = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)
_FDS_ROOM = socket.CMSG_SPACE(MAX_FDS_PER_SEND * 4)
_CTRUNC = int(socket.MSG_CTRUNC)


class DescriptorsLost(OSError):
    """Bytes came, `count` of them, and the kernel has dropped descriptors that came with them (EMFILE).

    It does so where this process has as many as it may have, and says so by MSG_CTRUNC alone (net/core/scm.c).
    Whoever goes on must not take the message for one that was sent without.
    """

    def __init__(self, count: int) -> None:
        super().__init__(errno.EMFILE, "descriptors that came with a message were dropped: this process has too many")
        self.count = count


class Stream:
    """One end of a connection. The thread that receives and those that send may differ; `send` is not atomic.

    Closing is idempotent. `shutdown` wakes a thread that is blocked in `receive`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.carries_fds = sock.family == socket.AF_UNIX
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """The socket's descriptor, for `select`; -1 once it is closed."""
        return self.socket.fileno()

    def receive(self, room: memoryview, flags: int = 0) -> tuple[int, list[int]]:
        """Receive into `room`; return the count of bytes and the descriptors that came with them.

        A count of 0 is the end of the stream. Descriptors are close-on-exec and belong to the caller.

        Raises:
            OSError: ConnectionResetError and its like, or TimeoutError where the socket has a timeout.
            DescriptorsLost: the bytes are there, and not all of their descriptors.
        """
        if not self.carries_fds:
            return self.socket.recv_into(room, 0, flags), []
        count, ancillary, seen, _ = self.socket.recvmsg_into([room], _FDS_ROOM, flags | _CLOEXEC)
        if seen & _CTRUNC:
            close_all(_descriptors(ancillary))
            raise DescriptorsLost(count)
        return count, _descriptors(ancillary) if ancillary else []

    def send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> None:
        """Send all of `data`, the descriptors with its first byte.

        Raises:
            ValueError: descriptors on a transport that carries none.
            OSError: BrokenPipeError and its like.
        """
        if not fds:
            self.socket.sendall(data)
            return
        if not self.carries_fds:
            raise ValueError("this transport carries no file descriptors")
        sent = self.socket.sendmsg([data], _rights(fds))
        if sent < len(data):
            self.socket.sendall(memoryview(data)[sent:])

    def try_send(self, data: bytes | bytearray | memoryview, fds: Sequence[int] = ()) -> int:
        """Send what the socket takes now, the descriptors with the first byte; returns how many bytes that was.

        Raises:
            BlockingIOError: it takes nothing now.
            OSError: BrokenPipeError and its like; EINVAL and its like for descriptors on a transport that carries none.
        """
        if not fds:
            return self.socket.send(data, _AT_ONCE)
        return self.socket.sendmsg([data], _rights(fds), _AT_ONCE)

    def limit_sends(self, seconds: float) -> None:
        """Have a send to a peer that takes nothing raise BlockingIOError after so many seconds.

        It is the kernel that counts them (SO_SNDTIMEO): no system call more, and receiving waits as before.
        """
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(seconds))

    def limit_receives(self, seconds: float) -> None:
        """Have a receive raise BlockingIOError after so many seconds without anything; 0 takes the limit away."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(seconds))

    def await_taken(self, seconds: float) -> bool:
        """Whether the peer has received all that was sent, within so many seconds.

        Of a UNIX socket the kernel knows (SIOCOUTQ: unix_outq_len), of TCP only whether its machine has it. There is
        nothing to sleep for: the processor is offered to the peer meanwhile.

        Raises:
            OSError: a transport that does not tell.
        """
        end = monotonic() + seconds
        while any(fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))):
            if monotonic() >= end:
                return False
            os.sched_yield()
        return True

    @property
    def is_hung_up(self) -> bool:
        """Whether the peer has closed its end, or this one is closed: nothing that is sent can arrive."""
        if (fd := self.socket.fileno()) < 0:
            return True
        poll = select.poll()
        poll.register(fd, 0)  # another thread may close it just now, and then it is none of a poll's
        return bool(poll.poll(0))

    def shutdown(self, how: int = socket.SHUT_RDWR) -> None:
        """End one direction or both, now; does nothing where the peer was quicker."""
        try:
            self.socket.shutdown(how)
        except OSError:
            return

    def close(self) -> None:
        """End the connection, so that the peer sees an end whatever it has sent.

        A socket that is closed with bytes unread resets the connection, and the peer may lose what was sent to it
        (known issue connection-abort). After `shutdown` nothing more can come, so that reading what is there ends.
        """
        self.shutdown()
        with contextlib.suppress(OSError):
            while self.socket.recv(_REST, _DONTWAIT):
                pass
        self.socket.close()


def _rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """The ancillary data that passes descriptors on."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        os.close(fd)
