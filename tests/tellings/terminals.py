"""What the same commands tell on a terminal and elsewhere: without colours, and where there is little room."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.tellings import PROGRAMS, Told, facts, traces
from tests.tellings.lists import made_up
from vfio_user import cli

WIDE, NARROW = 200, 40
# Of each surroundings the width of the terminal, 0 where there is none, and what is in the environment.
SURROUNDINGS: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "on a terminal": (WIDE, {}),
    "without colours": (WIDE, {"NO_COLOR": "any"}),
    "on one that can do nothing": (WIDE, {"TERM": "dumb"}),
    "on a narrow one": (NARROW, {}),
    "elsewhere": (0, {}),
}
LINES = (
    "vfio-user known-issues",
    "vfio-user known-issues it-may",
    "vfio-user doctor",
    "vfio-user doctor --json",
    "vfio-user image list",
    "vfio-user image build minimal",
    "vfio-user image build minimal --quiet",
    "vfio-user image build minimal --json",
    "vfio-user qemu install old",
    "vfio-user qemu list",
    "vfio-user trace stats one",
    "vfio-user trace show one --register up",
    "vfio-user trace show cut --register up --json",
    "vfio-user conformance --list --only version/no-json",
    "vfio-user show one --output page.html",
    "vfio-user show one --output page.html --json",
    "vfio-user trace diff one cut",
)
_OF_TERMINALS = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
_STYLE = re.compile(r"\x1b\[([\d;]*)m")
_MOVES = re.compile(r"\x1b\[[\d?;]*[A-Za-ln-z]")


def told(folder: Path) -> Told:
    """What is left on a terminal, in which styles, and whether it was drawn over; elsewhere what is otherwise then."""
    traces.made(folder)
    found: Told = {}
    opened: list[str] = []
    with made_up(), contextlib.chdir(folder), patch("webbrowser.open", opened.append):
        for line in LINES:
            found[line] = {}
            for name, (width, variables) in SURROUNDINGS.items():
                opened.clear()
                shown = _on_terminal(line, width, variables) if width else _elsewhere(line, folder / "out", variables)
                seen = {**_seen(shown, folder), "opened": len(opened)}
                usual: Told = next(iter(found[line].values()), {})
                found[line][name] = {key: value for key, value in seen.items() if usual.get(key) != value}
    return found


def _seen(shown: str, folder: Path) -> Told:
    text = shown.replace("\r\n", "\n").replace(str(folder), "FOLDER")
    left = re.split(r"\x1b\[\d?K", text)[-1]  # of what is drawn over and over it depends on the moment
    plain = _STYLE.sub("", left).splitlines()
    return {
        "styles": sorted({*_STYLE.findall(left)} - {"", "0"}),
        "is drawn": bool(_MOVES.search(text)),
        "is narrow": all(len(each) <= NARROW for each in plain),
        "left": facts("\n".join(plain)),
    }


def _run(line: str, stream: Any, variables: Mapping[str, str]) -> None:
    name, *words = line.split()
    usual = {**dict.fromkeys(_OF_TERMINALS, ""), "TERM": "xterm-256color", **variables}
    with (
        patch.dict(os.environ, {key: value for key, value in usual.items() if value}),
        patch.object(sys, "argv", [name, *words]),
        patch.multiple(sys, stdout=stream, stderr=stream),
        patch.object(cli, "show_controls"),
        contextlib.suppress(SystemExit),
    ):
        for key in (key for key, value in usual.items() if not value):
            os.environ.pop(key, None)
        cli.run_command(PROGRAMS[name])
    stream.flush()


def _on_terminal(line: str, width: int, variables: Mapping[str, str]) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    pieces: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, pieces))
    reader.start()
    with open(theirs, "w", encoding="utf-8") as stream:
        _run(line, stream, variables)
    reader.join()
    os.close(ours)
    return b"".join(pieces).decode()


def _read(descriptor: int, pieces: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # nobody has the other end any more
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)


def _elsewhere(line: str, file: Path, variables: Mapping[str, str]) -> str:
    with file.open("w", encoding="utf-8") as stream:
        _run(line, stream, variables)
    return file.read_text()
