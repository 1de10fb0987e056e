"""What all commands of a control socket are made of: the model, and the kinds of values that they take."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from userdev.control import ControlResult
from userdev.errors import UserError
from userdev.interposer.control.controlled import Controlled

C = TypeVar("C", bound=Controlled)


def _number(value: Any) -> Any:
    """Numbers may be written as "0x10"."""
    try:
        return int(value, 0) if isinstance(value, str) else value
    except ValueError:
        raise ValueError(f"{reprlib.repr(value)} is no number") from None


ParsedNumber = BeforeValidator(_number)
Number = Annotated[int, ParsedNumber, Field(ge=0, lt=1 << 64)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class ControlCommand(BaseModel, Generic[C]):
    """What all commands have: `id` comes back in the answer, whatever it is."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
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

    async def run(self, interposer: C, fds: list[int]) -> ControlResult:
        """Do the command with the descriptors that came with it; returns the answer's result.

        Raises:
            UserError: its parameters do not fit each other or the session.
            RequestRefused, PeerLost, TimeoutError: server or client refuse, are gone, or do not answer in time.
        """
        raise NotImplementedError
