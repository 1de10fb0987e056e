"""What a relay (relay.py) says and how it ends, for whoever started it."""

from __future__ import annotations

from userdev.process import Child, tail

STARTED_LINE = b"started on "
LISTENING_LINE = b"its own socket listens on "
CONNECTION_ENDED = 255
"""The exit status of a relay whose connection has ended before its program, or never was."""
NEVER_WAS = "no SSH connection to "
ENDED = "the SSH connection to "
PROGRAM = "vfio_user.harness.hosts.relay"


def lost_connection(child: Child) -> str:
    """Why a program on another host is heard of no more, where it is its connection that has ended; else nothing."""
    if child.exit_code != CONNECTION_ENDED or PROGRAM not in child.argv:
        return ""
    lines = tail(child.log).splitlines()
    return next((line for line in reversed(lines) if line.startswith((NEVER_WAS, ENDED))), "")
