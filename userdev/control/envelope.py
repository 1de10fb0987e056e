"""What is around a command, its answer and an event, whatever they are about. No I/O."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from userdev.errors import UserError, meant

EXAMPLE = '{"command": NAME, ...}'
MAX_DIGITS = 1000
"""Of a number: Python takes no more than 4300, at times, and 20 are 64 bits."""
RAW = "raw"
"""In a command or a result: how many bytes follow the line."""

ControlResult = Mapping[str, object]
"""The result of a command, as its answer has it."""


def document_of(text: bytes) -> Any:
    """The JSON value in a line.

    Raises:
        UserError: it is none, or one that nobody means.
    """
    try:
        return json.loads(text.decode(), parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        what = "it has too many levels"
    except UnicodeDecodeError as error:
        what = f"its bytes from {error.start} on are no UTF-8"
    except json.JSONDecodeError as error:
        what = f"it is not from character {error.pos} on"
    raise UserError(f"a command is one line of JSON, and this is none: {what}", hint=EXAMPLE)


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise UserError(
            f"a number of {len(digits)} digits is in the command, and {MAX_DIGITS} are the most that one has"
        )
    return int(digits)


def _finite(text: str) -> float:
    """Of what JSON has no way to write the answer would not be JSON."""
    if not math.isfinite(number := float(text)):
        raise UserError(f"{reprlib.repr(text)} is no number that JSON has")
    return number


def command_of(document: Any, known: Collection[str]) -> str:
    """The name of the command in a line's document.

    Raises:
        UserError: it has none, or one that is not `known`.
    """
    name = document.get("command") if isinstance(document, dict) else None
    if not isinstance(name, str):
        raise UserError(f"a command is one line of JSON: {EXAMPLE}")
    if name not in known:
        raise UserError(
            f"{reprlib.repr(name)} is no command", hint=f"{meant(name, known)}there are: {', '.join(known)}"
        )
    return name


def announced(text: bytes) -> int:
    """The number of bytes that a command says will follow its line."""
    if b'"raw"' not in text:
        return 0
    try:
        size = document_of(text)[RAW]
    except (UserError, TypeError, KeyError):  # it will be refused for what it is
        return 0
    return max(0, size) if type(size) is int else 0  # true asks for raw bytes


def answer_line(result: ControlResult, document: Any = None) -> bytes:
    """The answer to a command that was done. Bytes that `result` has as `raw` follow the line."""
    behind = result.get(RAW)
    if isinstance(behind, bytes):
        return _line({"ok": True, "result": {**result, RAW: len(behind)}}, document) + behind
    return _line({"ok": True, "result": result}, document)


def refusal_line(error: BaseException, document: Any = None, *, what: str = "") -> bytes:
    """The answer to a command that was not: what is wrong, what to do about it, and the errno where there is one."""
    told: dict[str, object] = {"what": what or str(error) or type(error).__name__}
    if isinstance(error, UserError) and error.hint:
        told["hint"] = error.hint
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        told["errno"] = number
        told["name"] = os.strerror(number)
    return _line({"ok": False, "error": told}, document)


def event_line(event: Mapping[str, object]) -> bytes:
    """The line of an event, for those who asked for events."""
    return _line({"event": event}, None)


def _line(answer: dict[str, object], document: Any) -> bytes:
    if isinstance(document, dict) and "id" in document:
        answer["id"] = document["id"]
    return json.dumps(answer).encode() + b"\n"
