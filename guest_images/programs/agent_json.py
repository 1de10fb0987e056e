"""The JSON between the agent and its host, which has what JSON has not: bytes, and dicts with any scalar for a key.

{"bytes": BASE64} are bytes; {"dict": [[KEY, VALUE], ...]} is a dict whose keys are not all texts, or that would be
taken for one of these two.
"""

from __future__ import annotations

import base64
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCALARS = (type(None), bool, int, float, str)
BYTES = (bytes, bytearray, memoryview)


def encode(value: object) -> str:
    """JSON text of None, bool, int, float, str, bytes, and lists, tuples (which become lists) and dicts of them."""
    return json.dumps(_plain(value), separators=(",", ":"))


def _plain(value: object) -> object:
    match value:
        case dict():
            if all(isinstance(key, str) for key in value) and [*value] not in (["bytes"], ["dict"]):
                return {key: _plain(each) for key, each in value.items()}
            if all(isinstance(key, (*SCALARS, bytes)) for key in value):
                return {"dict": [[_plain(key), _plain(each)] for key, each in value.items()]}
            raise TypeError("a dict cannot be sent that has other keys than None, bool, int, float, str or bytes")
        case list() | tuple():
            return [each if type(each) in SCALARS else _plain(each) for each in value]
        case bytes() | bytearray() | memoryview():
            return {"bytes": base64.b64encode(value).decode()}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{type(value).__name__} cannot be sent: use None, bool, int, float, str, bytes, list or dict")


def decode(text: str) -> Any:
    return json.loads(text, object_hook=_whole)


def _whole(found: dict[str, Any]) -> Any:
    match found:
        case {"bytes": text, **others} if not others:
            return base64.b64decode(text)
        case {"dict": pairs, **others} if not others:
            return dict(pairs)
    return found
