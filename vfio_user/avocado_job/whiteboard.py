"""What a guest-driven test tells beside its verdict, on avocado's whiteboard (`GuestTest.lab` writes it)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def record_of(test: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a test of avocado's result has written there; nothing where that is none of ours."""
    try:
        record = json.loads(str(test.get("whiteboard") or "{}"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def tried_by(test: Mapping[str, Any]) -> list[str]:
    """Which of the servers that its cell names a test has started, or tried to (`Cell.tried_by`)."""
    return _names(test, "tried")


def ours_of(test: Mapping[str, Any]) -> list[str]:
    """The names of devices of ours, or made for a test, whose servers it has started, or tried to (`Lab.ours`)."""
    return _names(test, "ours")


def _names(test: Mapping[str, Any], field: str) -> list[str]:
    names = record_of(test).get(field)
    return [str(text) for text in names] if isinstance(names, list) else []
