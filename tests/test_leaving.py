"""How a process of ours ends where nobody reads any more what it says."""

from __future__ import annotations

import atexit
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from userdev.errors import UserError, VerdictError
from userdev.leaving import leave
from vfio_user.cli import end_with


class Unread(io.StringIO):
    """A stream of which the other end is closed."""

    def __init__(self, file: int) -> None:
        super().__init__()
        self._file = file

    def fileno(self) -> int:
        return self._file

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.fixture
def close_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """What has neither of our streams read any more."""
    with open(os.devnull, "wb") as out, open(os.devnull, "wb") as err:
        files = {"stdout": out.fileno(), "stderr": err.fileno()}

        def close() -> None:
            for name, file in files.items():
                monkeypatch.setattr(sys, name, Unread(file))

        yield close


def test_a_process_that_nobody_reads_ends_with_one_unless_it_was_worse(
    close_all: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was 120, the interpreter's."""

    close_all()

    def ended(status: int) -> NoReturn:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ended)
    done: list[str] = []
    monkeypatch.setattr(threading, "_shutdown", lambda: done.append("threads"))
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: done.append("what is to be done at the end"))
    for status, wanted in ((0, 1), (1, 1), (2, 2), (130, 130)):
        done.clear()
        with pytest.raises(SystemExit) as left:
            leave(status)
        assert left.value.code == wanted, status
        assert done == ["threads", "what is to be done at the end"], status


def test_an_error_that_nobody_reads_ends_with_one(close_all: Callable[[], None]) -> None:
    close_all()
    for error in (VerdictError("it read 7"), UserError("there is none"), KeyboardInterrupt()):
        with pytest.raises(SystemExit) as left:
            end_with(error)
        assert left.value.code == 1, error
