"""A soak's file: JSON lines, appended as things happen, so that an interrupted soak goes on where it was.

Kinds of line: `begin` with what is soaked and the seed, `event` with all that is known of one, `failure`, `reduced`
with what is left of the failure before it, `note`, `end` with the verdict. docs/soak.md has their fields.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from userdev.errors import UserError
from vfio_user.soak.until import Done

Line = dict[str, Any]


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A block in which no other soak has the journal at `path`: it would go on with this one, under the same numbers.

    The kernel lets go of the file of a process that dies. One that cannot be had at all `Journal` tells of.

    Raises:
        UserError: another has it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError:
        yield
        return
    with closing(file):
        if not _taken(file):
            raise UserError(f"another soak is writing {path}", hint="--journal FILE gives this one its own")
        yield


class Journal:
    """The lines of one soak, those of earlier runs included."""

    def __init__(
        self,
        path: Path,
        soaked: Mapping[str, Any],
        seed: int | None = None,
        *,
        begin: bool = True,
        more: Callable[[Done], bool] = lambda _: False,
    ) -> None:
        """Go on with the last soak of the file if it was of the same and has no end, else begin one.

        One that has ended there is gone on with too where `more` than that is wanted. Without a `seed` it is that of
        the soak that is gone on with, or drawn. Unless it is to `begin`, the file stays as it is.

        Raises:
            UserError: the file cannot be read or written.
        """
        self.path = path
        self.events: list[Line] = []
        self.failures: list[Line] = []
        self.notes: list[str] = []
        self.unlike: list[str] = []
        """What differs in an unfinished soak of the file that is not gone on with: keys of `soaked`, or seed."""
        self.finished = 0
        """Events of a finished one of the same, which is not gone on with."""
        self._soaked_before = 0.0
        self._began = time.monotonic()
        begun = self._go_on(_lines(path), json.loads(json.dumps(dict(soaked))), seed, more)
        self.resumed = begun is not None
        self._size_before = path.stat().st_size if path.exists() else None
        self.seed = begun if begun is not None else secrets.randbelow(1 << 32) if seed is None else seed
        if begin and not self.resumed:
            self._write({"kind": "begin", "soaked": dict(soaked), "seed": self.seed, "when": time.time()})

    @property
    def run_seconds(self) -> float:
        """Seconds of this run."""
        return time.monotonic() - self._began

    @property
    def done(self) -> Done:
        """How far the soak is, with its earlier runs. What showed only as a guest ended has the number of its last
        event, which is one event.
        """
        return self._done(self._soaked_before + self.run_seconds)

    def _done(self, seconds: float) -> Done:
        failed = {line["number"] for line in self.failures}
        once = len(self.failures) - sum(line["number"] in failed for line in self.events if failed)
        return Done(seconds, len(self.events) + once, len(self.failures))

    @property
    def a_minute(self) -> float:
        """Events a minute since the first began: before that images are built, QEMU and servers installed."""
        done, first = self.done, self.events[0] if self.events else None
        seconds = done.seconds - (max(0.0, first["at"] - first["whole"]) if first else 0.0)
        return done.events / seconds * 60 if seconds > 0 else 0.0

    @property
    def next_number(self) -> int:
        """That of the first event that was not begun yet: one that failed is not tried again."""
        return 1 + max((line["number"] for line in (*self.events, *self.failures)), default=0)

    def event(self, facts: Line) -> None:
        """Append what is known of an event, and have it on the disk.

        Raises:
            UserError: that cannot be written.
        """
        self.events.append({"at": round(self.done.seconds, 3), "when": round(time.time(), 3), **facts})
        self._write({"kind": "event", **self.events[-1]})

    def failure(self, facts: Line) -> None:
        """Append what is known of a failure."""
        self.failures.append({"at": round(self.done.seconds, 3), "when": round(time.time(), 3), **facts})
        self._write({"kind": "failure", **self.failures[-1]})

    def reduced(self, facts: Line) -> None:
        """Append what is left of the last failure."""
        self.failures[-1] |= facts
        self._write({"kind": "reduced", **facts})

    def note(self, what: str) -> None:
        """Append what a reader of the results has to know."""
        if what not in self.notes:
            self.notes.append(what)
            self._write({"kind": "note", "what": what})

    def end(self, verdict: str) -> None:
        """Say that the soak has done all that it was to do."""
        self._write({"kind": "end", "events": self.done.events, "failures": len(self.failures), "verdict": verdict})

    def take_back(self) -> None:
        """Have nothing in the file of a soak that was refused before anything began."""
        if not self._size_before:
            self.path.unlink(missing_ok=True)
        elif not self.resumed:
            os.truncate(self.path, self._size_before)

    def _go_on(self, lines: list[Line], soaked: Line, seed: int | None, more: Callable[[Done], bool]) -> int | None:
        """Take over the last soak of these lines if it can be gone on with: its seed, else None."""
        begun: int | None = None
        for line in lines:
            match line:
                case {"kind": "begin", "seed": int(its)}:
                    self.events, self.failures, self.notes = [], [], []
                    self.unlike = _unlike(line.get("soaked"), soaked, its, seed)
                    begun = None if self.unlike else its
                case {"kind": "event", "number": int(), "at": int() | float(), **facts} if begun is not None:
                    self.events.append({"number": line["number"], "at": line["at"], **facts})
                case {"kind": "failure", "number": int(), "at": int() | float(), **facts} if begun is not None:
                    self.failures.append({"number": line["number"], "at": line["at"], **facts})
                case {"kind": "reduced", **facts} if begun is not None and self.failures:
                    self.failures[-1] |= facts
                case {"kind": "note", "what": str(what)} if begun is not None:
                    self.notes.append(what)
        before = max((line["at"] for line in (*self.events, *self.failures)), default=0.0)
        ended = lines[-1:] != [] and lines[-1].get("kind") == "end"
        self.unlike = [] if ended else self.unlike
        if begun is not None and ended and not more(self._done(before)):
            self.finished = self._done(before).events
            self.events, self.failures, self.notes = [], [], []
            return None
        self._soaked_before = before
        return begun

    def _write(self, line: Line) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                cut = file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                file.write((b"\n" if cut else b"") + json.dumps(line, default=str).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}",
                hint="what was done until then is in it; make room, and the same command goes on",
            ) from error


def _taken(file: IO[bytes]) -> bool:
    """Whether a file is this process's now: on a file system without locks nobody has it, or anybody."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def _unlike(its: object, soaked: Line, its_seed: int, seed: int | None) -> list[str]:
    """The names of what differs between a soak that was begun and the one that is wanted."""
    before = its if isinstance(its, dict) else {}
    return [
        *(name for name in sorted({*before, *soaked}) if before.get(name) != soaked.get(name)),
        *(["seed"] if seed not in (None, its_seed) else []),
    ]


def _lines(path: Path) -> list[Line]:
    """The lines that can be read: the last may have been cut."""
    try:
        texts = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
