"""A soak's file: JSON lines, appended as things happen, so that an interrupted soak goes on where it was.

Kinds of line: `begin` with what is soaked, `hop` with all that is known of a hop, `end` with the verdict.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from userdev.errors import UserError

Line = dict[str, Any]


class Journal:
    """The lines of one soak, those of earlier runs included. `hops` has of each hop the fields `kept`, or all."""

    def __init__(self, path: Path, soaked: Mapping[str, Any], kept: Collection[str] | None = None) -> None:
        """Go on with the last soak of the file if it was of the same and has no end, else begin one."""
        self.path = path
        self._kept = kept
        self.hops = [self._part(hop) for hop in _unfinished(_lines(path), dict(soaked))]
        self.last: Line = {}
        """The whole line of the hop that was done last."""
        self.resumed = bool(self.hops)
        if not self.resumed:
            self.write({"kind": "begin", "soaked": dict(soaked)})

    def hop(self, facts: Line) -> None:
        """Append what is known of a hop, and have it on the disk.

        Raises:
            UserError: that cannot be written.
        """
        self.last = facts
        self.hops.append(self._part(facts))
        self.write({"kind": "hop", **facts})

    def _part(self, facts: Line) -> Line:
        # The names are those of `kept`, and not others of the same letters for every hop.
        return facts if self._kept is None else {name: facts[name] for name in self._kept if name in facts}

    def write(self, line: Line) -> None:
        """Append a line, and have it on the disk."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                cut = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                file.write((b"\n" if cut else b"") + json.dumps(line, default=str).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error


def _lines(path: Path) -> list[Line]:
    """The lines that can be read: the last may have been cut."""
    try:
        texts = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found


def _unfinished(lines: list[Line], soaked: Line) -> list[Line]:
    """The hops of the last soak if it can be gone on with."""
    hops: list[Line] = []
    going_on = False
    for line in lines:
        match line.get("kind"):
            case "begin":
                going_on, hops = line.get("soaked") == json.loads(json.dumps(soaked)), []
            case "end":
                going_on, hops = False, []
            case "hop" if going_on:
                hops.append({key: value for key, value in line.items() if key != "kind"})
    return hops
