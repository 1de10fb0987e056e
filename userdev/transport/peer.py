"""Which socket is at the other end of one: the kernel tells by netlink (sock_diag(7), linux/unix_diag.h)."""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _F_REQUEST, _SHOW_PEER, _PEER = 20, 1, 4, 2
_ANY = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ANSWER_SIZE = 16
_ATTRIBUTE = struct.Struct("=HHI")
_SECONDS = 1.0


def peer_inode(sock: socket.socket) -> int | None:
    """The inode of the UNIX socket that is connected to this one; None where the kernel cannot be asked."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, os.fstat(sock.fileno()).st_ino, _SHOW_PEER, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _F_REQUEST, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(_SECONDS)
            netlink.send(header + request)
            answer = netlink.recv(4096)
    except OSError:
        return None
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _ANSWER_SIZE
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind, value = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _PEER:
            return int(value)
        at += max(4, length + 3 & ~3)
    return None


def is_other_end(sock: socket.socket, fd: int) -> bool:
    """Whether `fd` is the socket at the other end of `sock`: who keeps that never sees its end."""
    return os.fstat(fd).st_ino == peer_inode(sock)
