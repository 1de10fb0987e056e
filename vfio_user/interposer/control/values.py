"""The kinds of values that vfio-user's commands take."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from userdev.interposer.control.command import Number, ParsedNumber
from userdev.memory.bitmap import IovaRange
from vfio_user.interposer.trace.show import parse_region

_HEX = "hex:"
"""Before bytes in hexadecimal digits; base64 has no colon."""


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        if value.startswith(_HEX):
            return bytes.fromhex(value.removeprefix(_HEX))
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError("bytes are written in base64, or as hex: and hexadecimal digits") from None


def _region(value: Any) -> Any:
    return parse_region(value) if isinstance(value, str) else value


MAX_DATA = 64 << 20
"""Bytes of an answer's data, base64 aside."""
Size = Annotated[int, ParsedNumber, Field(ge=0, le=MAX_DATA)]
PageSize = Annotated[int, ParsedNumber, Field(ge=4096, le=1 << 40)]
Data = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(lambda data: base64.b64encode(data).decode())]
Region = Annotated[int, BeforeValidator(_region), Field(ge=0, lt=1 << 32)]


class Run(BaseModel):
    """A piece of guest memory."""

    model_config = ConfigDict(extra="forbid")
    iova: Number
    size: Number

    @property
    def pair(self) -> IovaRange:
        """The piece as (iova, size), both in bytes."""
        return self.iova, self.size
