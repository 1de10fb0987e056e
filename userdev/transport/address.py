"""Where to listen and whom to connect to: UNIX paths, TCP, AF_VSOCK and inherited descriptors.

=====================  ====================================================
address                meaning
=====================  ====================================================
``PATH``               a UNIX socket, 0600, removed at the end
``unix:PATH``          the same, for paths with a colon
``tcp:HOST:PORT``      TCP; port 0 takes a free one
``vsock:CID:PORT``     AF_VSOCK; CID -1 listens on any
``fd:N``               an inherited socket, listening or connected
=====================  ====================================================
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import UserError
from userdev.transport.stream import Stream

log = logging.getLogger(__name__)

MAX_PATH = 107
"""Bytes of a UNIX socket's path: sun_path is 108 with its NUL."""

_OVER = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
"""What `accept` says of a listener that was shut down or closed. All else is about one client, or passes."""
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_UNUSABLE = (OSError, OverflowError, TypeError, ValueError)
"""What `bind` and `connect` say of an address: ports that are none, names that are none."""
_RETRY_SECONDS = 0.1
"""Seconds between two tries while the system has no room for another client."""

_TIMEVAL = struct.Struct("@ll")
"""struct timeval: seconds and microseconds; both 0 are no bound."""

SocketAddress = str | tuple[str, int] | tuple[int, int] | int


@dataclass(frozen=True)
class Address:
    """An address taken apart: a socket family and what `bind` and `connect` want; for `fd:N` the number."""

    text: str
    family: int
    where: SocketAddress

    @classmethod
    def parse(cls, text: str) -> Address:
        """Take `text` apart.

        Raises:
            UserError: it is none of the forms above, or a path too long for a socket.
        """
        kind, _, rest = text.partition(":")
        try:
            match kind:
                case "fd":
                    return cls(text, socket.AF_UNSPEC, int(rest))
                case "tcp":
                    host, _, port = rest.rpartition(":")
                    host = host.removeprefix("[").removesuffix("]")
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    return cls(text, family, (host, int(port)))
                case "vsock":
                    cid, _, port = rest.partition(":")
                    return cls(text, socket.AF_VSOCK, (int(cid) & 0xFFFFFFFF, int(port)))
        except ValueError:
            raise UserError(
                f"{text!r} is no address", hint="PATH, unix:PATH, tcp:HOST:PORT, vsock:CID:PORT or fd:N"
            ) from None
        path = rest if kind == "unix" else text
        return cls(text, socket.AF_UNIX, _checked_path(path))

    def __str__(self) -> str:
        return self.text


def connect(address: Address | str, *, timeout: float | None = None) -> Stream:
    """Connect, waiting at most `timeout` seconds.

    Raises:
        UserError: nobody listens there, or the address cannot be used.
    """
    address = Address.parse(address) if isinstance(address, str) else address
    if isinstance(address.where, int):
        return Stream(_inherited(address.where))
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        connect_within(sock, address.where, timeout)
    except _UNUSABLE as error:
        sock.close()
        what, hint = _said(error), "is the server running there?"
        if isinstance(error, BlockingIOError):
            what, hint = "as many clients as may do so wait there already", "does the server still take any?"
        if isinstance(address.where, str) and Path(address.where).exists() and not Path(address.where).is_socket():
            what, hint = "that is no socket", "give the one that the server listens on"
        raise UserError(f"cannot connect to {address}: {what}", hint=hint) from None
    return Stream(sock)


def connect_within(sock: socket.socket, where: str | tuple[str, int] | tuple[int, int], timeout: float | None) -> None:
    """Connect a blocking socket, waiting at most `timeout` seconds; it is a blocking one afterwards.

    Of a UNIX socket the kernel waits for a place in the listener's queue if the socket is a blocking one, and no longer
    than it may take to send; of one that is not it says at once that there is none (unix(7), `connect` in net/unix).

    Raises:
        BlockingIOError: a UNIX listener's queue was full all the while.
        OSError, ValueError, TypeError: as `socket.connect`.
    """
    if sock.family == socket.AF_UNIX and timeout is not None:
        _connect_unix(sock, where, time.monotonic() + timeout)
    else:
        sock.settimeout(timeout)
        sock.connect(where)
        sock.settimeout(None)


def _connect_unix(sock: socket.socket, where: str | tuple[str, int] | tuple[int, int], until: float) -> None:
    while True:
        left = max(1, round((until - time.monotonic()) * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*divmod(left, 1_000_000)))
        sock.connect(where)
        try:
            sock.getpeername()
        except OSError:  # a signal came while it waited: Python takes that for a connection under way
            continue
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(0, 0))
        return


class Listener:
    """A listening socket that exists as soon as the object does, and whose path is gone once it is closed."""

    def __init__(self, address: Address | str, *, backlog: int = 8) -> None:
        """Listen on `address`.

        Raises:
            UserError: the address is in use by a living server, or cannot be used. A socket file that nobody
                listens on any more is replaced.
        """
        self.address = Address.parse(address) if isinstance(address, str) else address
        self.path: Path | None = None
        self._spare = -1
        """A descriptor in reserve: see `accept`."""
        where = self.address.where
        if isinstance(where, int):
            self.socket = _inherited(where)
            self._has_spare()
            return
        self._has_spare()
        self.socket = socket.socket(self.address.family, socket.SOCK_STREAM)
        try:
            if isinstance(where, str):
                self._bind_path(where)
            else:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self.socket.bind(where)
            self.socket.listen(backlog)
        except UserError:
            self.close()
            raise
        except _UNUSABLE as error:
            self.close()
            raise UserError(f"cannot listen on {self.address}: {_said(error)}", hint=_advice(where, error)) from None
        if isinstance(where, str):
            self.path = Path(where).absolute()
            self._identity = _identity(self.path)

    @property
    def is_connected(self) -> bool:
        """Whether an inherited descriptor is a connection already rather than a listening socket."""
        return not self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

    def accept(self) -> Stream:
        """Wait for the next client; raises OSError once the listener is shut down or closed."""
        while True:
            self._wait(select.POLLIN)
            if (stream := self.take()) is not None:
                return stream

    def take(self) -> Stream | None:
        """The client that waits now; None where it has gone again, or had to be turned away.

        A process at its limit of descriptors goes on listening: it accepts on a descriptor that it keeps in reserve,
        and turns that client away.

        Raises:
            OSError: the listener was shut down or closed.
        """
        try:
            accepted = self.socket.accept()[0]
        except OSError as error:
            if error.errno in _OVER:
                raise
            if error.errno in _NO_ROOM and not self._give_spare():
                self._wait(0, _RETRY_SECONDS)
            return None
        if self._has_spare():
            return Stream(accepted)
        accepted.close()
        log.warning("%s: a client was turned away: this process has as many descriptors as it may have", self.address)
        return None

    def shutdown(self) -> None:
        """Wake whoever waits in `accept`, which then raises OSError."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Stop listening and remove the path, unless another server has taken it over meanwhile."""
        self.socket.close()
        self._give_spare()
        if self.path is not None and _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)
        self.path = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_spare(self) -> bool:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)
        return spare >= 0

    def _has_spare(self) -> bool:
        """Whether there is a reserve, or one could be had again."""
        if self._spare < 0:
            try:
                self._spare = os.open(os.devnull, os.O_RDONLY)
            except OSError:
                return False
        return True

    def _wait(self, events: int, seconds: float | None = None) -> None:
        """Wait for one of these events, the end of listening, or so many seconds."""
        if (fd := self.socket.fileno()) < 0:
            raise OSError(errno.EBADF, "the listener is closed")
        poll = select.poll()
        poll.register(fd, events)
        poll.poll(seconds if seconds is None else 1000 * seconds)

    def _bind_path(self, path: str) -> None:
        # The mode is set by umask around bind: a chmod afterwards would leave a moment for anyone to connect.
        # Until listen, at once behind it, who connects is refused. A name that is moved into place when it listens
        # would leave no such moment, but the kernel shows a socket by the name that it was bound to: ss, lsof,
        # getpeername and all who look in /proc/net/unix whether a server listens at its path
        # (`userdev.process.is_listening`) would not find it there.
        before = os.umask(0o177)
        try:
            try:
                self.socket.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                if hint := _in_the_way(path):
                    raise UserError(f"cannot listen on {self.address}: {_said(error)}", hint=hint) from None
                Path(path).unlink()
                self.socket.bind(path)
        finally:
            os.umask(before)


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _advice(where: SocketAddress, error: BaseException) -> str:
    """What to do about an address that cannot be listened on; "" where the error itself says it."""
    number = getattr(error, "errno", None)
    if isinstance(where, str):
        if number in (errno.ENOENT, errno.ENOTDIR):
            return f"a socket is made in a folder that is there: {Path(where).parent} is none"
        return f"choose another folder than {Path(where).parent}" if number in _NOT_ALLOWED else ""
    if number == errno.EADDRINUSE:
        return "`ss --listening --processes --tcp --vsock` names who has that port: end it, or take another port"
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address: `ip address` lists those that it has"
    return "ports below 1024 are for root: take a higher one, or 0 for any that is free" * (number in _NOT_ALLOWED)


def _inherited(number: int) -> socket.socket:
    try:
        found = socket.socket(fileno=number)
    except _UNUSABLE as error:
        raise UserError(f"descriptor {number} is no socket: {_said(error)}", hint=_INHERITED) from None
    if found.type != socket.SOCK_STREAM:
        found.detach()  # it is not ours to close
        raise UserError(f"descriptor {number} is no stream socket", hint=_INHERITED)
    return found


_INHERITED = "whoever starts this program has to hand on one that is open, listening or connected"


def _checked_path(path: str) -> str:
    if not path:
        raise UserError("an empty socket path", hint="give a path such as /tmp/device.sock")
    if "\0" in path:  # the kernel would take what is before it for the whole
        raise UserError(f"a socket path cannot have a NUL in it: {path}", hint="give a path such as /tmp/device.sock")
    size = len(os.fsencode(path))
    if size > MAX_PATH:
        raise UserError(
            f"the socket path has {size} bytes and at most {MAX_PATH} fit: {path}",
            hint="use a shorter directory, or change into it and give a relative path",
        )
    return path


def _in_the_way(path: str) -> str:
    """What to do about that which is at a path already; "": it is a socket that nobody listens on."""
    if not Path(path).is_socket():
        return "that is no socket, and is left alone: listen at another path, or remove it"
    who = "somebody listens there, whom `ss -xlp` names"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            pid = int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
            who = f"process {pid} listens there" if pid else who  # 0: one that this namespace does not see
        except ConnectionRefusedError:
            return ""
        except OSError:
            pass  # it has no time for us, or we may not: it is somebody's in any case
    return f"{who}: end it, or listen at another path"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
