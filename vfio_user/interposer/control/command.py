"""What all commands of the control socket are made of: the model, and the kinds of values that they take."""

from __future__ import annotations

import base64
import reprlib
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from userdev.control import ControlResult
from userdev.errors import UserError
from userdev.memory.bitmap import IovaRange
from vfio_user.interposer.control.controlled import Controlled
from vfio_user.interposer.trace.show import parse_region


def _number(value: Any) -> Any:
    """Numbers may be written as "0x10"."""
    try:
        return int(value, 0) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{reprlib.repr(value)} is no number") from None


def _bytes(value: Any) -> Any:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("bytes are written in base64") from None


def _region(value: Any) -> Any:
    return parse_region(value) if isinstance(value, str) else value


MAX_DATA = 64 << 20
"""Bytes of an answer's data, base64 aside."""
Number = Annotated[int, BeforeValidator(_number), Field(ge=0, lt=1 << 64)]
Size = Annotated[int, BeforeValidator(_number), Field(ge=0, le=MAX_DATA)]
PageSize = Annotated[int, BeforeValidator(_number), Field(ge=4096, le=1 << 40)]
Data = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(lambda data: base64.b64encode(data).decode())]
Region = Annotated[int, BeforeValidator(_region), Field(ge=0, lt=1 << 32)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Run(BaseModel):
    """A piece of guest memory."""

    model_config = ConfigDict(extra="forbid")
    iova: Number
    size: Number

    @property
    def pair(self) -> IovaRange:
        """The piece as (iova, size), both in bytes."""
        return self.iova, self.size


class ControlCommand(BaseModel):
    """What all commands have: `id` comes back in the answer, whatever it is."""

    model_config = ConfigDict(extra="forbid")
    command: str
    id: Any = None
    fds: ClassVar[bool] = False
    """Whether a descriptor may come with it."""

    def follow(self, data: bytes) -> None:
        """Take the bytes that came behind the line.

        Raises:
            UserError: there should be none.
        """
        raise UserError("no bytes may follow this command")

    async def run(self, interposer: Controlled, fds: list[int]) -> ControlResult:
        """Do the command with the descriptors that came with it; returns the answer's result.

        Raises:
            UserError: its parameters do not fit each other or the session.
            RequestRefused, PeerLost, TimeoutError: server or client refuse, are gone, or do not answer in time.
        """
        raise NotImplementedError
