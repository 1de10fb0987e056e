"""What a trace says the client did, and what the server did in return."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

from userdev.descriptors import FdKind
from userdev.errors import UserError, about
from userdev.relay.direction import Direction
from userdev.trace.format import MAGIC, encode_body, encode_json, encode_message
from vfio_user.interposer.trace import Entry, Header, MessageRecord, Note, Raw, RecordKind, View, read_trace
from vfio_user.wire import Command, Dialect
from vfio_user.wire.dialects import dialect_named

ScriptStep = MessageRecord | Raw | Note
"""A message, or bytes, that the server was sent or sent; or an interrupt (a note)."""


@dataclass(frozen=True)
class Script:
    """One session as its server saw it, in order."""

    header: Header
    steps: tuple[ScriptStep, ...]

    @property
    def dialect(self) -> Dialect:
        """The dialect that the trace's header names.

        Raises:
            UserError: there is none of that name.
        """
        return dialect_named(self.header.dialect)

    @property
    def requests(self) -> list[MessageRecord | Raw]:
        """The client's own doing: its requests, and bytes that are none."""
        return [step for step in self.steps if is_doing(step)]

    @property
    def memory_was_mapped(self) -> bool:
        """Whether the server could reach guest memory past the interposer: then the trace does not have all of it."""
        number = self.dialect.number(Command.DMA_MAP)
        return any(
            isinstance(step, MessageRecord)
            and step.message.command == number
            and any(fd.kind in (FdKind.MEMFD, FdKind.FILE) for fd in step.fds)
            for step in self.steps
        )

    def only(self, kept: Iterable[int]) -> Script:
        """The script with only these of the client's doings (numbers of records), and what answered them."""
        numbers = set(kept)
        doings = {step.number for step in self.requests}
        steps = tuple(
            step
            for step in self.steps
            if step.number in numbers
            or (
                step.number not in doings
                and not (isinstance(step, MessageRecord) and step.pair in doings and step.pair not in numbers)
            )
        )
        return replace(self, steps=steps)

    def write(self, path: Path) -> None:
        """Save as a trace of its own; records are numbered anew."""
        numbers: dict[int, int] = {}
        with about(path), open(path, "wb") as stream:
            stream.write(MAGIC + encode_json(RecordKind.HEADER, self.header.time, self.header.about))
            for number, step in enumerate(self.steps, 2):
                numbers[step.number] = number
                stream.write(_encoded(step, numbers))


def load_script(path: str | Path, session: int = 1) -> Script:
    """The `session`th session (from 1) of a trace, up to the first replacement of its server.

    Raises:
        UserError: the trace cannot be read, or has no such session.
    """
    trace = read_trace(path)
    steps: list[ScriptStep] = []
    current = 0
    for entry in trace.entries:
        if isinstance(entry, Note) and entry.event == "connected":
            current += 1
        elif current == session or (current == 0 and session == 1):
            if isinstance(entry, Note) and entry.event in ("disconnected", "server-gone", "restarted"):
                break
            if _is_step(entry):
                steps.append(entry)
    if not steps:
        raise UserError(f"{path} has no session {session} to replay", hint=f"it has {max(current, 1)}")
    return Script(trace.header, tuple(steps))


def is_doing(step: ScriptStep) -> TypeGuard[MessageRecord | Raw]:
    """Whether the client does this of itself: a request, or bytes."""
    if step.direction is not Direction.TO_SERVER:
        return False
    return isinstance(step, Raw) or (isinstance(step, MessageRecord) and not step.message.is_reply)


def _is_step(entry: Entry) -> TypeGuard[ScriptStep]:
    """Whether the server saw it, or did it; what a fault kept from it, or the interposer answered, is left out."""
    match entry:
        case Note():
            return entry.event == "interrupt"
        case MessageRecord() | Raw():
            seen = View.SENT if entry.direction is Direction.TO_SERVER else View.RECEIVED
            return bool(entry.view & seen)
    return False


def _encoded(step: ScriptStep, numbers: dict[int, int]) -> bytes:
    match step:
        case MessageRecord():
            pair = numbers.get(step.pair, 0)
            return encode_message(step.direction, step.view, step.time, pair, step.message, step.fds)
        case Raw():
            return encode_body(RecordKind.BYTES, step.direction, step.view, step.time, step.data)
        case Note():
            return encode_json(RecordKind.NOTE, step.time, {"event": step.event, **step.details})
