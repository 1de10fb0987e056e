"""One interface to a running guest, whichever way commands get there.

`run` returns what happened; `succeed`, `fail` and `wait_until_succeeds` judge it, and show the command, its output, the
console and the kernel's log when it was wrong.
"""

from __future__ import annotations

import abc
import base64
import functools
import inspect
import json
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vfio_user
from userdev.counted import counted
from userdev.errors import UserError, VerdictError
from userdev.printable import printable
from userdev.process import Deadline
from vfio_user.harness.timeouts import SCALE_VARIABLE, waited
from vfio_user.harness.troubles import Look, Wait, nothing_wrong

Command = str | Sequence[str]
"""A line for the guest's shell, or a program and its arguments."""


OUTPUT_LIMIT = 16 << 20
"""Bytes that are kept of each stream of a command; the guest's agent keeps as many."""


@dataclass(frozen=True)
class Result:
    """How a command ended. `exit_code` is negative for a signal; `seconds` were measured in the guest.

    `stdout` and `stderr` are text for people; `raw` has the bytes of both, at most `OUTPUT_LIMIT` of each.
    """

    command: Command
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False
    raw: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself with exit code 0."""
        return self.exit_code == 0 and not self.timed_out

    def describe(self) -> str:
        """Command, fate and output, for a person."""
        fate = "took too long and was ended" if self.timed_out else f"exit code {self.exit_code}"
        parts = [f"$ {as_line(self.command)}   ({fate} after {self.seconds:.2f} s)"]
        parts += [
            f"{name}:\n{_clip(text)}" for name, text in (("stdout", self.stdout), ("stderr", self.stderr)) if text
        ]
        return "\n".join(parts)


class GuestFailure(VerdictError):
    """A guest did not do what it should. `result` is the command's, where one ended."""

    def __init__(self, what: str, *, evidence: str = "", result: Result | None = None) -> None:
        super().__init__(what, evidence=evidence)
        self.result = result


_LOST = (
    "look at what its devices' servers and its kernel said before that: all logs are in the run's folder; what only"
    f" takes longer wants a larger timeout=, or {SCALE_VARIABLE}"
)


_IN_VAIN = (
    "begin with that: once a server has ended or a queue is broken, what needs its device gets no answer, and a wait"
    " has no more patience than under KVM"
)


_STANDSTILL = re.compile(
    r"\[ *\d+\.\d{6}\](?:\[[^]]*\])? (?:watchdog: )?"
    r"(BUG: soft lockup .*|INFO: task .* blocked for more than .*|(?:rcu: )?INFO: rcu\w* .*stall.*)"
)


def standstill_in(console: str) -> str:
    """What a guest's kernel said last of a processor or a task that does not go on, as the end of a sentence; "" where
    it said nothing of that. By itself it is no fault: a busy host does that too.
    """
    said = _STANDSTILL.findall(console)
    return f"; its kernel says: {said[-1].strip()}" if said else ""


class GuestLost(UserError):
    """The guest did not answer in time, or there is no way to it any more. The evidence is its console's last lines."""

    def __init__(self, what: str, *, hint: str = _LOST, evidence: str = "") -> None:
        super().__init__(what, hint=hint, evidence=evidence)

    @classmethod
    def after(cls, wait: Wait, what: str, *, evidence: str = "") -> GuestLost:
        """What a wait that is over was without: "the agent did not answer"; and what its kernel says of that, where it
        does.
        """
        hint = _IN_VAIN if wait.was_in_vain else _LOST
        return cls(wait.without(what) + standstill_in(evidence), hint=hint, evidence=evidence)


class Job(abc.ABC):
    """A command that runs in the guest."""

    @abc.abstractmethod
    def wait(self, limit: float | Deadline | None = None) -> Result:
        """Wait for the result; without `limit` the job's own timeout decides how long.

        Raises:
            GuestLost: none came.
        """

    @abc.abstractmethod
    def kill(self, number: int = 15) -> None:
        """Send a signal to it and to all that it started."""


class Guest(abc.ABC):
    """A running guest. Timeouts are seconds of a guest under KVM; they are multiplied by `patience`.

    `look` is asked what has gone wrong beside a wait that has lasted so long unmultiplied: it ends then.
    """

    def __init__(self, *, patience: float = 1.0, console: Callable[[], str] = str, look: Look = nothing_wrong) -> None:
        self.patience = patience
        self._console = console
        self._look = look

    # -- what each way of reaching a guest has to provide ---------------------------------------------------------

    @abc.abstractmethod
    def start(self, command: Command, timeout: float = 60.0) -> Job:
        """Start a command and do not wait for it."""

    @abc.abstractmethod
    def put(self, source: Path | bytes, target: str, mode: int = 0o644) -> None:
        """Write a file of the guest, from a file of the host or from bytes."""

    @abc.abstractmethod
    def get(self, source: str) -> bytes:
        """Read a file of the guest."""

    @abc.abstractmethod
    def invoke(self, request: Mapping[str, object], timeout: float) -> dict[str, Any]:
        """Do one `call` (see `shipped`) and return the agent's outcome: `value`, or `error` and `traceback`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give up the way to the guest; the guest itself runs on."""

    # -- the verbs ------------------------------------------------------------------------------------------------

    def waiting(self, timeout: float) -> Wait:
        """A wait of so many seconds of a guest under KVM that begins now."""
        return Wait(Deadline(timeout * self.patience), self.patience, self._look)

    def waiting_until(self, limit: float | Deadline) -> Wait:
        """A wait until `limit`, which nothing makes shorter, but which says what has gone wrong beside it."""
        return Wait(Deadline.of(limit), 1.0, self._look)

    def run(self, command: Command, timeout: float = 60.0) -> Result:
        """Run a command to its end.

        Raises:
            GuestFailure: it takes longer than `timeout`.
        """
        result = self.start(command, timeout).wait()
        if result.timed_out:
            limit = waited(timeout, self.patience)
            raise self._failure(f"in the guest, {as_line(command)!r} did not end in {limit}", result)
        return result

    def succeed(self, *commands: Command, timeout: float = 60.0) -> str:
        """Run commands that must succeed; returns what they wrote to stdout.

        Raises:
            GuestFailure: one failed, or took longer than `timeout`.
        """
        return "".join(self._judged(command, timeout, good=True).stdout for command in commands)

    def fail(self, *commands: Command, timeout: float = 60.0) -> str:
        """Run commands that must fail; returns what they wrote to stdout.

        Raises:
            GuestFailure: one succeeded, or took longer than `timeout`.
        """
        return "".join(self._judged(command, timeout, good=False).stdout for command in commands)

    def wait_until_succeeds(self, command: Command, timeout: float = 60.0, interval: float = 0.1) -> str:
        """Repeat a command until it succeeds; returns its stdout.

        Raises:
            GuestFailure: it never did within `timeout`; it has the last result.
        """
        wait = self.waiting(timeout)
        while True:
            result = self.start(command, timeout).wait()
            if result.ok:
                return result.stdout
            if wait.remaining <= interval:
                raise self._failure(wait.without(f"{as_line(command)!r} never succeeded"), result)
            time.sleep(interval)

    def call(self, function: Callable[..., Any], /, *args: object, timeout: float = 60.0, **kwargs: object) -> Any:
        """Run a Python function in the guest and return what it returns.

        The function's source is sent: it has to import what it uses in its own body. Arguments and result are made of
        None, bool, int, float, str, bytes, list and dict; a tuple arrives as a list. An exception becomes a
        `GuestFailure` with its traceback.
        """
        answer = self.invoke({**shipped(function), "args": list(args), "kwargs": kwargs}, timeout)
        if "error" in answer:
            raise GuestFailure(
                f"in the guest, {function.__name__}() raised {answer['error']}{_left_here(function, answer['error'])}"
                f"\n{answer['traceback'].rstrip()}",
                evidence=self.evidence(),
            )
        return answer["value"]

    def evidence(self) -> str:
        """The ends of the console and of the kernel's log."""
        parts = []
        if console := self._console():
            parts.append(f"console, last lines:\n{_clip(console)}")
        try:
            log = self.start("dmesg | tail -n 25", 5.0).wait(Deadline(10.0 * self.patience)).stdout
            parts.append(f"dmesg, last lines:\n{_clip(log)}")
        except (UserError, VerdictError) as error:
            parts.append(f"dmesg: {error}")
        return "\n".join(parts)

    def _judged(self, command: Command, timeout: float, *, good: bool) -> Result:
        result = self.run(command, timeout)
        if result.ok is not good:
            wrong = f"failed with exit code {result.exit_code}" if good else "succeeded, and should have failed"
            raise self._failure(f"in the guest, {as_line(command)!r} {wrong}", result)
        return result

    def _failure(self, what: str, result: Result) -> GuestFailure:
        return GuestFailure(what, evidence=f"{result.describe()}\n{self.evidence()}", result=result)


@functools.lru_cache(maxsize=512)
def shipped(function: Callable[..., Any]) -> Mapping[str, object]:
    """A function as the guest's agent takes it: source, name, and where it stands for tracebacks.

    It stays what it was when it was asked for first: a file that is edited while a soak runs has others at its lines.

    Raises:
        UserError: a function whose source is not enough: a lambda, a method, a closure.
    """
    name = getattr(function, "__name__", "")
    code = getattr(function, "__code__", None)
    if code is None or name == "<lambda>":
        raise UserError("only a function made by `def` can be sent to a guest")
    if code.co_freevars:
        raise UserError(f"{name}() uses {', '.join(code.co_freevars)} from around it; pass that as an argument")
    try:
        lines, first = inspect.getsourcelines(function)
    except OSError as error:
        raise UserError(f"the source of {name}() is not there to be sent to a guest") from error
    if lines[0][0].isspace():  # without being changed: a text or comment in it may begin further left
        lines, first = ["if True:\n", *lines], first - 1
    return {"source": "".join(lines), "function": name, "file": _known_as(code.co_filename), "line": first}


def _known_as(file: str) -> str:
    """The name of a file of ours, wherever it is installed.

    A guest from a checkpoint knows functions of ours by it, whoever made that; to compile one takes 80 ms without KVM.
    """
    ours = str(Path(vfio_user.__file__).parent)
    return f"vfio_user{file.removeprefix(ours)}" if file.startswith(f"{ours}/") else file


def _left_here(function: Callable[..., Any], error: str) -> str:
    """Why a name is not there in the guest that is there in the function's module; nothing of other errors."""
    missing = re.match(r"NameError: name '(\w+)' is not defined", error)
    if missing is None or missing[1] not in getattr(function, "__globals__", {}):
        return ""
    return f": only the text of {function.__name__}() goes to the guest; import or define {missing[1]} inside it"


def as_line(command: Command) -> str:
    """A command as a person would type it."""
    return command if isinstance(command, str) else shlex.join(command)


_SCALARS = (type(None), bool, int, float, str)


def encode(value: object) -> str:
    """JSON text as the agent reads it (guest_images/programs/agent_json.py), with bytes and dicts of any scalar keys.

    Raises:
        UserError: there is something that cannot be told so.
    """
    try:
        return json.dumps(_plain(value), separators=(",", ":"))
    except RecursionError:
        raise UserError("what is within itself, or has too many levels, cannot be sent to a guest") from None


def _plain(value: object) -> object:
    match value:
        case dict():
            if all(isinstance(key, str) for key in value) and [*value] not in (["bytes"], ["dict"]):
                return {key: _plain(each) for key, each in value.items()}
            if all(isinstance(key, (*_SCALARS, bytes)) for key in value):
                return {"dict": [[_plain(key), _plain(each)] for key, each in value.items()]}
            raise UserError(
                "a dict cannot be sent to a guest that has other keys than None, bool, int, float, str or bytes"
            )
        case list() | tuple():
            return [each if type(each) in _SCALARS else _plain(each) for each in value]
        case bytes() | bytearray() | memoryview():
            return {"bytes": base64.b64encode(value).decode()}
        case None | bool() | int() | float() | str():
            return value
    raise UserError(f"a {type(value).__name__} cannot be sent to a guest")


def decode(text: str | bytes) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: the text is none of its.
    """
    try:
        return json.loads(text, object_hook=_whole)
    except (TypeError, RecursionError) as error:  # {"bytes": 5}; more levels than anybody sends
        raise ValueError(str(error)) from None


def _whole(found: dict[str, Any]) -> Any:
    match found:
        case {"bytes": text, **others} if not others:
            return base64.b64decode(text)
        case {"dict": pairs, **others} if not others:
            return dict(pairs)
    return found


def result_of(command: Command, answer: Mapping[str, Any]) -> Result:
    """A `Result` from what the agent says of a job that ended.

    Raises:
        GuestFailure: it says something else.
    """
    kinds = {"exit_code": int, "stdout": bytes, "stderr": bytes, "seconds": int | float, "timed_out": bool}
    for name, kind in kinds.items():
        if not isinstance(answer.get(name), kind):
            raise GuestFailure(f"the guest's agent says nothing that can be used of {as_line(command)!r}: no {name}")
    return Result(
        command=command,
        exit_code=answer["exit_code"],
        stdout=answer["stdout"].decode(errors="replace"),
        stderr=answer["stderr"].decode(errors="replace"),
        seconds=answer["seconds"],
        timed_out=answer["timed_out"],
        raw=(answer["stdout"], answer["stderr"]),
    )


def outcome_of(function: object, text: str | bytes) -> dict[str, Any]:
    """What a function in the guest came to: its `value`, or `error` and `traceback`.

    Raises:
        GuestFailure: that cannot be read, as when there is more than the agent keeps of it (16 MiB).
    """
    try:
        outcome = decode(text)
    except ValueError as error:
        if len(text) >= OUTPUT_LIMIT:
            more = f"more than {OUTPUT_LIMIT >> 20} MiB: have it write a file, and get that"
            raise GuestFailure(f"what {function}() came to in the guest is {more}") from None
        raise GuestFailure(f"what {function}() came to in the guest cannot be read: {error}") from None
    if isinstance(outcome, dict):
        failed = [outcome.get("error"), outcome.get("traceback")]
        if "value" in outcome or all(isinstance(part, str) for part in failed):
            return outcome
    raise GuestFailure(f"what {function}() came to in the guest is neither a value nor an error")


def _clip(text: str, lines: int = 40) -> str:
    """The end of a text, indented."""
    kept = printable(text.rstrip()).splitlines()
    dropped = [f"... {counted(len(kept) - lines, 'line')} before"] if len(kept) > lines else []
    return textwrap.indent("\n".join(dropped + kept[-lines:]), "    ")
