"""Exceptions in the logs of programs that went on: the first cause of what others said of it afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from userdev.printable import printable
from userdev.process import Child
from userdev.serving.authored import is_authors
from vfio_user.page.logs import SERVER_LINE, moment_near
from vfio_user.page.texts import lines_of, text_of

_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'  File "(.+)", line (\d+), in (\S+)')
_STAYS = re.compile(r" does not end yet: the device's own code may keep it \((.+:\d+, in .+)\)$", re.MULTILINE)
"""What a server of ours says of a session that goes on (`userdev.serving.server`)."""
_PLACE = re.compile(r"\(\S+:\d+")
"""Where something is written, as messages of ours have it that are about what an author wrote."""
MOST_LINES = 60
"""Of a traceback that is kept."""


@dataclass(frozen=True)
class LoggedException:
    """The first exception that a program of Python's has logged: when, in seconds since 1970, and all of it."""

    name: str
    when: float
    what: str
    """TYPE: MESSAGE."""
    place: str
    """FILE:LINE, in FUNCTION, of its author's where one is among its lines; "" where only `what` has one."""
    traceback: str

    @property
    def sentence(self) -> str:
        """Who, what and where."""
        return f"{self.name}: {self.what}" + (f" ({self.place})" if self.place else "")

    @property
    def source(self) -> tuple[str, int] | None:
        """The file and line of its place, where it has one."""
        found = re.match(r"(.+):(\d+), in ", self.place)
        return (found[1], int(found[2])) if found else None


def logged_exceptions(children: Iterable[Child]) -> list[LoggedException]:
    """The first one of each program whose log says when it was, the earliest first."""
    found = filter(None, map(_first_of, children))
    return sorted(found, key=lambda exception: exception.when)


def complaints_in(said: str) -> tuple[str, str]:
    """Of what a server of ours has said the last exception, and the last that it warned of; "" where there is none.

    Nothing of a program that says no times, as ours do.
    """
    lines = printable(said).splitlines()
    raised = warned = ""
    for index, line in enumerate(lines):
        level, _, what = told[2].partition(" ") if (told := SERVER_LINE.match(line)) is not None else ("", "", "")
        if level and lines[index + 1 : index + 2] == [_TRACEBACK]:
            raised = _exception(what, 0.0, list(_rest_of(lines[index + 1 :]))).sentence
        elif level in ("WARNING", "ERROR"):
            warned = what
    return raised, warned


def still_at_work(children: Iterable[Child]) -> str:
    """Whose device did not return from its own code when its server was to end, and where it was; "" for none.

    To a client it had stopped answering before that, without a word.
    """
    for child in children:
        if found := _STAYS.search(text_of(child.log)):
            return f"{child.name} had still not returned from {printable(found[1])} when it was to end"
    return ""


def _first_of(child: Child) -> LoggedException | None:
    lines = lines_of(child.log)
    now = datetime.fromtimestamp(child.began)
    for index, line in enumerate(lines):
        if (told := SERVER_LINE.match(line)) is not None:
            now = moment_near(told[1], now)
            if lines[index + 1 : index + 2] == [_TRACEBACK]:
                return _exception(child.name, now.timestamp(), list(_rest_of(lines[index + 1 :])))
    return None


def _rest_of(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a traceback: to the next that the log gives a time, or to what went on after it."""
    for _, line in zip(range(MOST_LINES), lines, strict=False):
        if SERVER_LINE.match(line):
            return
        yield printable(line)


def _exception(name: str, when: float, lines: list[str]) -> LoggedException:
    frames = [found for found in map(_FRAME.match, lines) if found]
    last = max((index for index, line in enumerate(lines) if _FRAME.match(line)), default=0)
    said = [line for line in lines[last:] if line and not line[0].isspace() and line != _TRACEBACK]
    what = said[0] if said else "an exception"  # what follows are notes
    ours = frames[-1] if frames and not _PLACE.search(what) else None
    frame = next((frame for frame in reversed(frames) if is_authors(frame[1])), ours)
    place = f"{frame[1]}:{frame[2]}, in {frame[3]}" if frame else ""
    return LoggedException(name, when, what, place, "\n".join(lines))
