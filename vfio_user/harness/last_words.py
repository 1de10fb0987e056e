"""What a program's last words come to: the line that says what went wrong, and the known noise around it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from userdev.process import Child, tail
from vfio_user.harness.hosts.relayed import lost_connection
from vfio_user.page.noise import NOISE

_GREETING = re.compile(r"^\S+ (?:is listening on|connects to) \S+$")
"""What a server of ours says when it is ready (`userdev.serving`): no reason for anything."""
_UNHEARD = re.compile(r"is heard of no more \((.*)\)$")


def reason(text: str) -> str:
    """The line with what went wrong: the last that is neither noise nor indented, as hints are, and notes."""
    lines = [
        line for line in text.splitlines() if line.strip() and not NOISE.search(line) and not _GREETING.match(line)
    ]
    told = [line for line in lines if not line[0].isspace()] or lines
    return told[-1].strip() if told else ""


def end_of(name: str, fate: str, said: str) -> str:
    """Who, how, and the last that it said, as one sentence."""
    why = reason(said)
    return f"{name} {fate}" + (f": {why}" if why and why not in fate else "")


def fate_of(child: Child) -> str:
    """As `Child.fate`; of a program on a host whose connection has ended that: how it ended itself nobody knows."""
    lost = lost_connection(child)
    return f"is heard of no more ({lost})" if lost else child.fate()


def tells(said: str, cause: str) -> bool:
    """Whether what an error says has a cause in it: as it is, or why a program is heard of no more."""
    unheard = _UNHEARD.search(cause)
    return (unheard[1] if unheard else cause) in said


def first_to_end_badly(children: Iterable[Child], by: float) -> Child | None:
    """The first of them that had ended by itself and badly by this moment, in seconds since 1970."""
    ended = [child for child in children if child.ended_badly and (child.ended or 0.0) <= by]
    return min(ended, key=lambda child: child.ended or 0.0, default=None)


def told_end(child: Child) -> str:
    """The end of a child as a sentence."""
    return end_of(child.name, fate_of(child), tail(child.log))
