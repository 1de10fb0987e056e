"""The JSON between the agent and its host, which has bytes too."""

from __future__ import annotations

import base64
import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def encode(value: object) -> str:
    """JSON text, with bytes as {"bytes": BASE64}."""
    return json.dumps(value, default=_encode_bytes, separators=(",", ":"))


def _encode_bytes(value: object) -> dict[str, str]:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} cannot be sent: use None, bool, int, float, str, bytes, list or dict")


def decode(text: str) -> Any:
    return json.loads(
        text, object_hook=lambda found: base64.b64decode(found["bytes"]) if [*found] == ["bytes"] else found
    )
