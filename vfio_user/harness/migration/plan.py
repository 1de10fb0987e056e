"""What somebody wants of a migration: how, within which limits, and who looks on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.migration.qemu_side import Tuning
from vfio_user.harness.migration.report import Phase


class Cancelled(UserError):
    """Somebody wanted the migration to end."""


@dataclass(frozen=True)
class Limits:
    """Seconds: `total` for all of it, `pre_copy` for that of memory alone, which may never converge, `answer` for a
    server to go from one state to another.

    State of at most `compared_state` bytes is saved again on both sides and compared, within the downtime.
    """

    total: float = 120.0
    pre_copy: float = 60.0
    answer: float = 10.0
    compared_state: int = 1 << 20


@dataclass
class Plan:
    """What to do, and who looks on: `watch` is called at the beginning of each phase, and may raise `Cancelled`, or
    call `hurry`.

    With `file` the guest's memory goes there, and the destination reads it when the source has ended writing.
    """

    tuning: Tuning = field(default_factory=Tuning)
    limits: Limits = field(default_factory=Limits)
    file: Path | None = None
    watch: Callable[[Phase], None] = lambda _: None
    cancel: threading.Event = field(default_factory=threading.Event)
    until: Deadline | None = field(default=None, init=False)

    def hurry(self, seconds: float) -> None:
        """Whatever the limits are: no longer than so many seconds from now."""
        self.until = Deadline(seconds)
