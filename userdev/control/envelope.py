"""What is around a command, its answer and an event, whatever they are about. No I/O."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from userdev.errors import UserError

RAW = "raw"
"""In a command or a result: how many bytes follow the line."""


def document_of(text: bytes) -> Any:
    """The JSON value in a line.

    Raises:
        ValueError: it is none, or one that nobody means.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("a JSON value of too many levels") from None


def command_of(document: Any, known: Collection[str]) -> str:
    """The name of the command in a line's document.

    Raises:
        UserError: it has none, or one that is not `known`.
    """
    name = document.get("command") if isinstance(document, dict) else None
    if not isinstance(name, str):
        raise UserError('a command is one line of JSON: {"command": NAME, ...}')
    if name not in known:
        raise UserError(f"{reprlib.repr(name)} is no command", hint=f"there are: {', '.join(known)}")
    return name


def announced(text: bytes) -> int:
    """How many bytes a command says will follow its line."""
    if b'"raw"' not in text:
        return 0
    try:
        size = document_of(text)[RAW]
    except (ValueError, TypeError, KeyError):  # it will be refused for what it is
        return 0
    return size if type(size) is int and size > 0 else 0  # true asks for raw bytes


def answer_line(result: Mapping[str, object], document: Any = None) -> bytes:
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
    """What those are sent who asked for events."""
    return _line({"event": event}, None)


def _line(answer: dict[str, object], document: Any) -> bytes:
    if isinstance(document, dict) and "id" in document:
        answer["id"] = document["id"]
    return json.dumps(answer).encode() + b"\n"
