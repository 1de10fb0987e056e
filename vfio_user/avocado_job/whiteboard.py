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
    """Which of the servers of others that its cell names a test has started, or tried to (`Cell.tried_by`)."""
    tried = record_of(test).get("tried")
    return [str(text) for text in tried] if isinstance(tried, list) else []
