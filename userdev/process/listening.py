"""When a program that was started listens on its socket, told without connecting: many servers take only one client."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from userdev.process.child import Child
from userdev.process.deadline import Deadline
from userdev.process.ending import ProcessEnd
from userdev.process.inotify import Change, Watch

_BOUND_SECONDS = 0.001
"""Seconds between looks at a socket that is bound: listen(2) follows at once, and the kernel has no event for it."""


def is_listening(path: Path | str, pid: int | None = None) -> bool:
    """Whether somebody listens on a UNIX socket at `path`, in the network namespace of process `pid`."""
    accepting = "00010000", f"{socket.SOCK_STREAM:04X}"  # Flags: __SO_ACCEPTCON (linux/net.h), and Type
    table = Path(f"/proc/{pid or os.getpid()}/net/unix")
    try:
        lines = table.read_text(errors="replace").splitlines()[1:]
    except OSError:  # the process has ended
        return False
    rows = (line.split(maxsplit=7) for line in lines)  # Num RefCount Protocol Flags Type St Inode Path (proc(5))
    return any((*row[3:5], *row[7:]) == (*accepting, str(path)) for row in rows)


def await_listening(path: Path, end: ProcessEnd, limit: float | Deadline) -> bool:
    """Wait until a program listens at `path`; False when its end comes first, or the deadline passes."""
    deadline = Deadline.of(limit)
    with Watch(path.parent) as arrivals:
        while not is_listening(path, end.pid):
            if end.has_come or deadline.passed:
                return False
            await_change(path, end, deadline, arrivals)
    return True


def await_change(path: Path, end: ProcessEnd, deadline: Deadline, arrivals: Watch) -> None:
    """Wait until it is worth another look whether somebody listens at `path`: for a program's end at the longest.

    `arrivals` watches the folder of `path`.
    """
    if path.exists():
        end.wait(min(_BOUND_SECONDS, deadline.remaining))
    else:
        end.wait(deadline, or_readable=arrivals.fd)
        arrivals.drain()


def await_text(child: Child, text: bytes, limit: float | Deadline) -> bool:
    """Wait until a child has printed something; False when its end comes first, or the deadline passes."""
    deadline = Deadline.of(limit)
    with Watch(child.log, Change.WRITTEN) as news:
        while text not in child.log.read_bytes():
            if not child.running:
                return text in child.log.read_bytes()  # its last words
            if deadline.passed:
                return False
            child.wait(deadline, or_readable=news.fd)
            news.drain()
    return True
