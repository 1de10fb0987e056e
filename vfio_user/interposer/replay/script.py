"""What a trace says the client did, and what the server did in return."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeGuard

from userdev.descriptors import FdInfo, FdKind
from userdev.errors import UserError, about
from userdev.relay.direction import Direction
from userdev.trace.cutting import EXTRACT, FIRST, PART
from userdev.trace.format import BOTH, MAGIC, encode_body, encode_json, encode_message, towards
from vfio_user.interposer.replay.causes import Causes
from vfio_user.interposer.replay.steps import ScriptStep, is_doing, is_interrupt
from vfio_user.interposer.trace import Entry, Header, MessageRecord, Note, Raw, RecordKind, View, read_trace
from vfio_user.interposer.trace.files import CHANNELS
from vfio_user.wire import Command, Dialect, Message
from vfio_user.wire.dialects import dialect_named

_NOT_WRITTEN = "`vfio-user minimize` writes a list of their numbers: was the file edited?"


@dataclass(frozen=True)
class Script:
    """One session as its server saw it, in order."""

    header: Header
    steps: tuple[ScriptStep, ...]
    compared: frozenset[int] | None = None
    """Records that a replay compares, those of requests for their replies; None: all. What else the server does may
    differ, as what it follows from was left out."""
    all_interrupts: bool = False
    """Whether every interrupt that came is in it, even if that is none."""
    truncated: str = ""
    """Where and why the trace ends within the session; empty where it does not."""
    unknown_behind: int = 0
    """The client's last record before such an end, or that of a part: what the server did behind it nobody knows."""

    @classmethod
    def of(
        cls, messages: Iterable[Message | bytes | tuple[Message, Iterable[FdInfo]]], dialect: str = "current"
    ) -> Script:
        """A script of requests that somebody made up, VERSION the first; nothing is known of their replies.

        A message's own descriptors are not part of it: `FdInfo` says what stands for them when it is played.
        """
        steps: list[ScriptStep] = []
        for number, item in enumerate(messages, FIRST):
            if isinstance(item, bytes):
                steps.append(Raw(number, 0, Direction.TO_SERVER, BOTH, item))
                continue
            message, fds = item if isinstance(item, tuple) else (item, ())
            steps.append(MessageRecord(number, 0, Direction.TO_SERVER, BOTH, replace(message, fds=[]), tuple(fds)))
        said = {"format": 1, "protocol": "vfio-user", "dialect": dialect}
        return cls(Header(1, 0, Direction.TO_SERVER, View(0), said), tuple(steps))

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
    def versions(self) -> list[int]:
        """Records of VERSION, without which there is no session."""
        number = self.dialect.number(Command.VERSION)
        return [
            step.number for step in self.requests if isinstance(step, MessageRecord) and step.message.command == number
        ]

    @property
    def knows_interrupts(self) -> bool:
        """Whether an interrupt that is not in it did not come when it was recorded."""
        return self.all_interrupts or any(is_interrupt(step) for step in self.steps)

    @cached_property
    def causes(self) -> Causes:
        """What of it needs what else."""
        return Causes(self.steps, self.dialect)

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
        """The script with only these of the client's doings (numbers of records), and what the server did for them."""
        numbers = set(kept)
        needs = self.causes.needs
        there: set[int] = set()
        steps: list[ScriptStep] = []
        for step in self.steps:
            if is_doing(step):
                stays = step.number in numbers
            elif isinstance(step, MessageRecord) and step.pair:
                stays = step.pair in there
            else:
                stays = needs.get(step.number, numbers) <= numbers
            if stays:
                there.add(step.number)
                steps.append(step)
        return replace(self, steps=tuple(steps))

    def up_to(self, record: int) -> Script:
        """The script as far as this record; of a request its reply is part of it."""
        last = next((place for place, step in enumerate(self.steps) if _answers(step, record)), None)
        if last is None:
            last = next((place for place, step in enumerate(self.steps) if step.number == record), len(self.steps))
        return replace(self, steps=self.steps[: last + 1])

    def renumbered(self) -> tuple[Script, dict[int, int]]:
        """The script with the numbers that its records have in a file of its own, and {number here: number there}."""
        numbers = {step.number: number for number, step in enumerate(self.steps, FIRST + self._is_extract)}
        steps = tuple(_renumbered(step, numbers) for step in self.steps)
        compared = (
            None if self.compared is None else frozenset(numbers[each] for each in self.compared & numbers.keys())
        )
        unknown_behind = numbers.get(self.unknown_behind, 0)
        return replace(self, steps=steps, compared=compared, unknown_behind=unknown_behind), numbers

    def write(self, path: Path) -> None:
        """Save as a trace of its own; records are numbered anew."""
        script, _ = self.renumbered()
        with about(path), open(path, "wb") as stream:
            stream.write(MAGIC + encode_json(RecordKind.HEADER, self.header.time, self.header.about))
            if self._is_extract:
                compared = None if script.compared is None else sorted(script.compared)
                note = {"event": EXTRACT, "compared": compared, "all_interrupts": self.all_interrupts}
                stream.write(encode_json(RecordKind.NOTE, self.header.time, note))
            for step in script.steps:
                stream.write(_encoded(step))

    @property
    def _is_extract(self) -> bool:
        return self.compared is not None or self.all_interrupts


def load_script(path: str | Path, session: int = 1) -> Script:
    """The `session`th session (from 1) of a trace, up to the first replacement of its server.

    Raises:
        UserError: the trace cannot be read, or has no such session.
    """
    trace = read_trace(path)
    steps: list[ScriptStep] = []
    compared: frozenset[int] | None = None
    all_interrupts = False
    current, truncated, is_open = 0, trace.truncated, bool(trace.truncated)
    for entry in trace.entries:
        if isinstance(entry, Note) and entry.event == "connected":
            current += 1
            is_open = True
        elif isinstance(entry, Note) and entry.event == EXTRACT:
            compared = _compared(path, entry)
            all_interrupts = bool(entry.details.get("all_interrupts"))
        elif current == session or (current == 0 and session == 1):
            if isinstance(entry, Note) and entry.event in ("disconnected", "server-gone", "restarted"):
                truncated, is_open = "", False
                break
            if _is_step(entry):
                steps.append(entry)
    if not steps and session <= max(current, 1):
        raise UserError(f"{path}: nothing was recorded of session {session}", hint="it ends before a client's message")
    if not steps:
        raise UserError(f"{path} has no session {session} to replay", hint=f"it has {max(current, 1)}")
    script = Script(trace.header, tuple(steps), compared, all_interrupts)
    is_part = any(isinstance(entry, Note) and entry.event == PART for entry in trace.entries)
    if is_open and current <= session:
        if not is_part:
            truncated = truncated or f"cut off behind record {trace.entries[-1].number}, before the session's end"
        last = max((step.number for step in script.requests), default=0)
        script = replace(script, truncated=truncated, unknown_behind=last)
    if is_part and not script.versions:
        hint = "cut it from where the client connects, and up to what is to be seen: --to-mark, --until, --records -N"
        raise UserError(
            f"{path} is a part of a trace, without the beginning of a session: nobody serves that", hint=hint
        )
    return script


def _compared(path: str | Path, note: Note) -> frozenset[int] | None:
    """The records that an extract is to be compared at.

    Raises:
        UserError: they are none.
    """
    match note.details.get("compared"):
        case None:
            return None
        case [*records] if all(isinstance(record, int) for record in records):
            return frozenset(records)
    raise UserError(f"{path}: record {note.number} says of no records that they are compared", hint=_NOT_WRITTEN)


def _answers(step: ScriptStep, record: int) -> bool:
    return isinstance(step, MessageRecord) and step.pair == record


def _is_step(entry: Entry) -> TypeGuard[ScriptStep]:
    """Whether the server saw it, or did it; what a fault kept from it, or the interposer answered, is left out."""
    match entry:
        case Note():
            return is_interrupt(entry)
        case MessageRecord() | Raw():
            seen = View.SENT if entry.direction is Direction.TO_SERVER else View.RECEIVED
            return bool(entry.view & seen)
    return False


def _renumbered(step: ScriptStep, numbers: dict[int, int]) -> ScriptStep:
    if isinstance(step, MessageRecord):
        return replace(step, number=numbers[step.number], pair=numbers.get(step.pair, 0))
    return replace(step, number=numbers[step.number])


def _encoded(step: ScriptStep) -> bytes:
    place = towards(step.direction, CHANNELS.index(step.channel))
    match step:
        case MessageRecord():
            return encode_message(place, step.view, step.time, step.pair, step.message, step.fds)
        case Raw():
            return encode_body(RecordKind.BYTES, place, step.view, step.time, step.data)
        case Note():
            return encode_json(RecordKind.NOTE, step.time, {"event": step.event, **step.details})
