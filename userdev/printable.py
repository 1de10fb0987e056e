"""Text of guests, devices and peers, for people: without what a terminal would do, rather than show.

An escape sequence in a guest's output could clear the screen, write to the clipboard, or make a failure look like a
success. Whatever a command of ours prints goes through here (`Printable`), and so does what our errors say.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO, cast

_COLOURS = r"\x1b\[(?:0|1|3[0-7]|9[0-7])m"
"""What our own words are coloured with (`click.style`): they change nothing but how letters look."""
_CONTROLS = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""All of C0 but tab and newline, DEL, C1, what turns the direction of writing, and halves of characters: a byte of a
file's name that is no UTF-8 is one, and can be written nowhere."""
_UNPRINTABLE = re.compile(_CONTROLS)
_UNPRINTABLE_BUT_COLOURS = re.compile(f"({_COLOURS})|{_CONTROLS}")


def printable(text: str) -> str:
    r"""`text` with its control characters written out, as `\x1b`. A line that ends in CR LF ends in LF."""
    return _UNPRINTABLE.sub(_written_out, text.replace("\r\n", "\n"))


class Printable:
    """A text stream that shows control characters rather than do what they say; colours pass."""

    def __init__(self, stream: TextIO) -> None:
        self.bare = stream
        """What it writes to: for who draws on a terminal, and shows what others say by `printable`."""

    def write(self, text: str) -> int:
        """Write a text as people may see it."""
        return self.bare.write(_UNPRINTABLE_BUT_COLOURS.sub(_or_colour, text.replace("\r\n", "\n")))

    def writelines(self, lines: Any) -> None:
        """Write texts as people may see them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def _or_colour(found: re.Match[str]) -> str:
    return found[1] or _written_out(found)


def _written_out(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def show_controls() -> None:
    """Have this program's own output and errors go through `Printable`, once."""
    if not isinstance(sys.stdout, Printable):
        sys.stdout, sys.stderr = cast(TextIO, Printable(sys.stdout)), cast(TextIO, Printable(sys.stderr))
