"""What a fault changes of a back-end of ours, and the table of faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from userdev.errors import ProtocolError
from userdev.transport import close_all
from vhost_user.backend.commands import COMMANDS
from vhost_user.wire import (
    FrontEndRequest,
)

Usual = Callable[..., Any]
Fault = Callable[["Faulty"], None]


class Faulty:
    """What a fault changes of the back-ends of this process, until the end of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._commands = dict(COMMANDS)
        monkeypatch.setattr("vhost_user.backend.session.COMMANDS", self._commands)
        self.leaked: list[int] = []

    def close(self) -> None:
        """Close what a fault has kept."""
        close_all(self.leaked)

    def at(self, request: FrontEndRequest, does: Callable[..., Any]) -> None:
        """Do something else at a request: it is given the back-end, the payload, the descriptors and what is usual."""
        usual = self._commands[request]
        self._commands[request] = lambda back_end, value, fds: does(back_end, value, fds, usual)

    def instead(self, owner: Any, name: str, does: Callable[..., Any]) -> None:
        """Do something else in a method: it is given what is usual, and the arguments."""
        usual = getattr(owner, name)
        self._monkeypatch.setattr(owner, name, lambda *args, **kwargs: does(usual, *args, **kwargs))

    def put(self, name: str, value: Any) -> None:
        """Have another value of what is called so, from its module on."""
        self._monkeypatch.setattr(name, value)


FAULTS: dict[str, Fault] = {}


def fault_for(*ids: str) -> Callable[[Fault], Fault]:
    """Enter a fault for these checks."""

    def enter(fault: Fault) -> Fault:
        for name in ids:
            assert name not in FAULTS
            FAULTS[name] = fault
        return fault

    return enter


def fatal(*_: Any) -> None:
    raise ProtocolError("on purpose", fatal=True)


def nothing(*_: Any, **__: Any) -> None:
    return None
