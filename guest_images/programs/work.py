"""What every kind of work of workload.py is: rounds that check themselves, and what was seen and wrong in them."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self


class Work:
    """A context manager: `begin` opens the device, `round` is done again and again, `finish` once in the end.

    `seen` counts what was done, `wrong` says what should have been otherwise, `device` how the device was driven.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seen: dict[str, Any] = {}
        self.wrong: list[str] = []
        self.device: dict[str, Any] = {}
        self.opened = ExitStack()

    def begin(self) -> None:
        """Open the device and prepare what the rounds need."""

    def round(self, number: int) -> None:
        """Do and check something; `number` counts from 0."""

    def check(self) -> None:
        """Check what has been done so far."""

    def finish(self) -> None:
        """Check what can be checked only now."""
        self.check()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.opened.close()
