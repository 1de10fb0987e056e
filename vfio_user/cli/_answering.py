"""Programs that are asked something at their control sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from userdev.errors import UserError


@contextmanager
def answering(socket: Path, name: str, timeout: float) -> Iterator[None]:
    """A block in which the program at a control socket answers the command `name`, within `timeout` seconds.

    Raises:
        UserError: it does not.
    """
    try:
        yield
    except TimeoutError:
        hint = "is it a control socket, and does its program run, or has somebody stopped it?"
        raise UserError(f"{socket}: no answer to {name} in {timeout:g} s", hint=hint) from None
