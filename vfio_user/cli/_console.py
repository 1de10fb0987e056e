"""A terminal to draw on: rich moves its cursor, which `Printable` lets nobody do whose words are shown as they come."""

from __future__ import annotations

import sys

from rich.console import Console

from userdev.printable import Printable


def drawing_console(*, err: bool = False) -> Console:
    """A console on stdout or stderr. What guests and devices say goes through `printable` before it is drawn."""
    stream = sys.stderr if err else sys.stdout
    return Console(file=stream.bare if isinstance(stream, Printable) else stream)
