"""What a program's last words come to: the line that says what went wrong, and the known noise around it."""

from __future__ import annotations

from vfio_user.page.noise import NOISE


def reason(text: str) -> str:
    """The line with what went wrong: the last that is neither noise nor indented, as hints are, and notes."""
    lines = [line for line in text.splitlines() if line.strip() and not NOISE.search(line)]
    told = [line for line in lines if not line[0].isspace()] or lines
    return told[-1].strip() if told else ""
