"""What a controller sends, taken apart: lines, the bytes behind them, and the descriptors beside them. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from userdev.control.envelope import announced
from userdev.counted import counted
from userdev.transport import close_all

MAX_FDS = 16
"""Descriptors that come with one command."""


class ControlLine(NamedTuple):
    """A command, the bytes that followed it and the descriptors that came beside it; or `refusal`, why it is none."""

    text: bytes
    behind: bytes
    fds: list[int]
    refusal: str = ""

    @property
    def size(self) -> int:
        """Bytes of the line, and of what came behind it."""
        return len(self.text) + len(self.behind)


class LineReader:
    """Takes what is received, in any pieces; hands out what is complete. Owns the descriptors until then."""

    def __init__(self, max_line: int) -> None:
        """`max_line`: bytes of one command, or of what follows it."""
        self._max_line = max_line
        self.refused = False
        """The last line is a refusal: nothing that comes behind it can be told apart."""
        self._input = bytearray()
        self._searched = 0  # so far there is no end of a line in the input
        self._followed: tuple[bytes, int] | None = None  # a line of which the bytes behind it have not all come
        self._fds: list[int] = []  # of the line that has not come to its end

    def feed(self, data: bytes | memoryview, fds: Sequence[int] = ()) -> list[ControlLine]:
        """Add what was received; returns the lines that are complete now. Descriptors belong to the line with the
        last byte.
        """
        self._input += data
        came = list(self._whole_lines())
        rest = self._fds
        if came:
            came[0].fds.extend(self._fds)
            rest = []
        (rest if self._input or self._followed or not came else came[-1].fds).extend(fds)
        self._fds = rest
        return [self._checked(line) for line in came if line.text.strip() or line.fds] + self._surplus()

    def close(self) -> None:
        """Let go of what is not complete."""
        close_all(self._fds)
        self._fds.clear()
        self._input.clear()
        self._followed = None

    def _checked(self, line: ControlLine) -> ControlLine:
        if len(line.fds) <= MAX_FDS:
            return line
        close_all(line.fds)
        return ControlLine(line.text, b"", [], f"{counted(len(line.fds), 'descriptor')} came with one command")

    def _surplus(self) -> list[ControlLine]:
        """The refusal of a line that grows beyond what may be kept."""
        to_follow, most = self._followed[1] if self._followed else 0, self._max_line
        if to_follow > most:
            why = f"{to_follow:,} bytes are to follow a command, and at most {most:,} may"
        elif len(self._input) > most:
            why = f"a command has more than {most:,} bytes"
        elif len(self._fds) > MAX_FDS:
            why = f"more than {MAX_FDS} descriptors came with one command"
        else:
            return []
        self.close()
        self.refused = True
        return [ControlLine(b"", b"", [], why)]

    def _whole_lines(self) -> Iterator[ControlLine]:
        """Take what is complete out of the input: lines, each with the bytes that it says will follow."""
        while True:
            if self._followed is None:
                end = self._input.find(b"\n", self._searched)
                if end < 0:
                    self._searched = len(self._input)
                    return
                text = self._taken(end)
                del self._input[:1]
                self._searched = 0
                self._followed = text, announced(text)
            text, size = self._followed
            if len(self._input) < size:
                return
            self._followed = None
            yield ControlLine(text, self._taken(size), [])

    def _taken(self, size: int) -> bytes:
        """Take so many bytes out of the input."""
        with memoryview(self._input) as view, view[:size] as piece:
            taken = bytes(piece)
        del self._input[:size]
        return taken
