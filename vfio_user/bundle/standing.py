"""Standing still at a message of a bundle's trace: which one that is in another run, and whoever looks then."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userdev.errors import UserError
from userdev.process import Child, Watch
from userdev.process.inotify import ARRIVAL, Change
from userdev.relay.direction import Direction
from userdev.trace import Note, TraceLine, View
from vfio_user.bundle.reading import OpenBundle
from vfio_user.harness.breakpoint import Breakpoint
from vfio_user.harness.coredump import running_files
from vfio_user.harness.toolchain import debugger
from vfio_user.interposer.control.client import InterposerControl
from vfio_user.interposer.faults.scenario import Match
from vfio_user.interposer.trace.decode import DecodedMessage
from vfio_user.traces import open_trace

_TOLD = "processes.jsonl"
_LOADER = "ld-linux"
_ATTACHING_SECONDS = 0.02
_HELD = b'"event":"held"'
"""In the note of a trace (userdev/trace/format.py)."""


@dataclass(frozen=True)
class Place:
    """A message of a trace, as another run has it too: the `nth` of those that `match`, of that server."""

    server: str
    match: dict[str, Any]
    nth: int
    said: str
    """What the message is, for people."""

    def breakpoint(self, folder: Path) -> Breakpoint:
        """What has a run stand still there; who runs it is told in `folder`."""
        return Breakpoint(self.server, {**self.match, "nth": self.nth}, str(folder / _TOLD))

    def __str__(self) -> str:
        return f"{self.said}, number {self.nth} of these in its session, at {self.server}"


def place_of(found: OpenBundle, text: str) -> Place:
    """The message that is meant by the number of a record, or SERVER:NUMBER where there are several traces.

    Raises:
        UserError: there is no such record, it is no message, or the bundle has no trace of vfio-user.
    """
    server, _, number = text.rpartition(":")
    traces = found.traces
    if not traces:
        raise UserError(f"{found.folder} has no trace, so that there is no record to stand still at")
    if not server and len(traces) > 1:
        raise UserError(
            f"there are {len(traces)} traces", hint=f"say which: {', '.join(f'{name}:{number}' for name in traces)}"
        )
    server = server or next(iter(traces))
    if server not in traces:
        raise UserError(f"there is no trace of {server!r}", hint=f"there are: {', '.join(traces)}")
    if not number.isdecimal():
        raise UserError(f"{number!r} is no record's number", hint="`vfio-user trace show` has them")
    return _place(traces[server], server, int(number))


def first_place(found: OpenBundle) -> Place:
    """The first message to the first server.

    Raises:
        UserError: the bundle has no trace of vfio-user.
    """
    for server, path in found.traces.items():
        for line in open_trace(path).lines():
            if line.decoded is not None and _came(line):
                return _place(path, server, line.entry.number)
    raise UserError(
        f"{found.folder} has no trace with a message", hint="without one there is nothing to stand still at"
    )


def _place(path: Path, server: str, number: int) -> Place:
    """Count the messages like the one of this number, in its session and as far as that."""
    lines: list[TraceLine] = []
    for line in open_trace(path).lines():
        if isinstance(line.entry, Note) and line.entry.event == "connected":
            lines.clear()  # a scenario counts anew in each session
        lines.append(line)
        if line.entry.number == number:
            break
    else:
        raise UserError(f"{path.name} has no record {number}", hint="`vfio-user trace show` has them")
    wanted = lines[-1]
    decoded = wanted.decoded
    if not isinstance(decoded, DecodedMessage) or not _came(wanted):
        raise UserError(
            f"record {number} is no message that came from the guest or a server of vfio-user", hint="name one"
        )
    match: dict[str, Any] = {
        "direction": wanted.entry.direction.label,
        "command": decoded.command,
        "kind": decoded.kind,
    }
    if decoded.region is not None and decoded.offset is not None:
        match |= {"region": decoded.region, "offset": decoded.offset}
    fits = Match.model_validate(match)
    nth = sum(
        fits.fits(line.entry.direction, line.decoded, "running", 0.0)
        for line in lines
        if line.decoded is not None and _came(line)
    )
    return Place(server, match, nth, _said(decoded))


def _said(decoded: DecodedMessage) -> str:
    """What a message is, without what is another in each run."""
    is_access = decoded.region is not None and decoded.offset is not None
    where = f"{decoded.fields.get('region')}+{decoded.offset:#x}" if is_access else ""
    kind = "" if decoded.kind == "request" else decoded.kind
    return " ".join(filter(None, (decoded.command, decoded.register or where, kind)))


def _came(line: TraceLine) -> bool:
    """Whether a message came from a peer: what is the interposer's own no rule sees."""
    entry: Any = line.entry
    return bool(getattr(entry, "view", 0) & View.RECEIVED) and isinstance(getattr(entry, "direction", None), Direction)


class Standing:
    """A session that stands still: processes by name, and what lets it go on."""

    def __init__(self, processes: dict[str, int], server: str, control: InterposerControl) -> None:
        self.processes = processes
        self.server = server
        self._control = control
        self._goes_on = False

    @property
    def server_pid(self) -> int:
        """The process of the server."""
        return int(self._control.call("status")["server_pid"] or 0)

    @property
    def qemu_pid(self) -> int:
        """The process of the guest's QEMU: of the machine that the server's name begins with, else of `guest`."""
        machines = [name for name in self.processes if self.server.startswith(f"{name}-")]
        return self.processes.get(max(machines, key=len, default="guest"), 0)

    def go_on(self) -> None:
        """Let it; a second call does nothing."""
        if not self._goes_on:
            self._goes_on = True
            self._control.call("resume")


def stand(child: Child, breakpoint: Breakpoint, look: Callable[[Standing], None]) -> int:
    """Wait for a run, and call `look` each time when it stands still; afterwards it goes on. How often it did."""
    told, seen, times = Path(breakpoint.told), 0, 0
    with Watch(told.parent, ARRIVAL | Change.WRITTEN) as news:
        while (server := _server_in(told)) is None:
            if not _wait(child, news):
                return 0
    trace = Path(server["trace"])
    with Watch(trace.parent, ARRIVAL | Change.WRITTEN) as news:
        while True:
            if trace.exists():
                found, seen = _notes(trace, seen)
                for _ in range(found):
                    times += 1
                    control = InterposerControl(Path(server["control"]))
                    standing = Standing(_processes(told), breakpoint.server, control)
                    try:
                        look(standing)
                    finally:
                        standing.go_on()
                        control.close()
            if not _wait(child, news):
                return times


def _wait(child: Child, news: Watch) -> bool:
    """Whether something is new: it is asked again until the run has ended."""
    child.wait(math.inf, or_readable=news.fd)
    news.drain()
    return child.running


def _lines(told: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in told.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def _server_in(told: Path) -> dict[str, Any] | None:
    return next((line for line in _lines(told) if "control" in line), None)


def _processes(told: Path) -> dict[str, int]:
    return {line["name"]: line["pid"] for line in _lines(told) if "pid" in line}


def _notes(trace: Path, since: int) -> tuple[int, int]:
    """How many notes of a hold there are behind an offset, and the offset from which to look the next time."""
    with trace.open("rb") as file:
        file.seek(since)
        data = file.read()
    last = data.rfind(_HELD)
    upto = last + len(_HELD) if last >= 0 else max(0, len(data) - len(_HELD))
    return data.count(_HELD), since + upto


def run_gdb(standing: Standing, pid: int, words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run gdb in this terminal. The session goes on once the process stands still under it, to meet its breakpoints."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is gdb's
    try:
        with subprocess.Popen(words, env=environment) as gdb:
            while gdb.poll() is None and not _is_traced(pid):
                with suppress(subprocess.TimeoutExpired):  # of being traced the kernel tells nobody else
                    gdb.wait(_ATTACHING_SECONDS)
            standing.go_on()
    finally:
        signal.signal(signal.SIGINT, before)


def _is_traced(pid: int) -> bool:
    """Whether a debugger has a process stand still (proc(5): t in its state)."""
    try:
        return b"\nState:\tt" in Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False


def gdb_command(pid: int) -> tuple[list[str], dict[str, str]]:
    """The command that has gdb look at a process, and its environment: this machine's gdb, or one that is fetched.

    Of a program that was started by a loader of its own, as a QEMU of the cache is, gdb is told what was mapped where.

    Raises:
        UserError: there is no gdb, and none can be fetched.
    """
    theirs = shutil.which("gdb")
    if theirs is not None:
        program, environment = theirs, dict(os.environ)
    else:
        ours = debugger()
        program, environment = str(ours.program), ours.environment()
    words = [program, "-p", str(pid)]
    if _LOADER in Path(f"/proc/{pid}/exe").readlink().name:
        added = [f"add-symbol-file {path} -o {base:#x}" for path, base in running_files(pid).items()]
        words += [word for line in ("set confirm off", *added, "set confirm on") for word in ("-ex", line)]
    return words, environment
