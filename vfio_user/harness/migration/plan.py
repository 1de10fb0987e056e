"""What somebody wants of a migration, which does not change, and who looks on, and may change his mind."""

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


@dataclass(frozen=True)
class Plan:
    """What to do. With `file` the guest's memory goes there; the destination reads it when the source has written."""

    tuning: Tuning = field(default_factory=Tuning)
    limits: Limits = field(default_factory=Limits)
    file: Path | None = None


class Conductor:
    """Whoever looks on while a migration runs, and may end or hurry it, from any thread."""

    def __init__(self, watch: Callable[[Phase], None] = lambda _: None) -> None:
        """`watch` is called at the beginning of each phase, and may raise `Cancelled`, or call `hurry`."""
        self.watch = watch
        self._cancelled = threading.Event()
        self._until: Deadline | None = None

    def cancel(self) -> None:
        """Have the guest stay where it is; too late once it runs on the destination."""
        self._cancelled.set()

    def hurry(self, seconds: float) -> None:
        """Whatever the limits are: no longer than so many seconds from now."""
        self._until = Deadline(seconds)

    def check(self, where: str) -> None:
        """Raise `Cancelled` when somebody has cancelled it; `where` says how far it came."""
        if self._cancelled.is_set():
            raise Cancelled(f"cancelled {where}")

    def sooner(self, limit: Deadline) -> Deadline:
        """The deadline that passes first, of a limit's and one that was hurried to."""
        hurried = self._until
        return hurried if hurried is not None and hurried.remaining < limit.remaining else limit
