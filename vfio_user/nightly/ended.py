"""A night that has ended, put beside those before it, and among them; also one that was killed."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from userdev.errors import UserError
from vfio_user.harness.debian import Progress
from vfio_user.nightly.comparison import LOOKED_AT, compare
from vfio_user.nightly.history import History
from vfio_user.nightly.morning import write_morning
from vfio_user.nightly.summary import FILE, Status, Summary, read_summary

BY_FORCE = "by force, nobody knows in what"
"""How a night was ended whose process was killed, or whose machine went down."""


def compared_and_remembered(summary: Summary, history: History, folder: Path) -> Summary:
    """A night with its comparison, written to its folder and remembered.

    Raises:
        UserError: the history cannot be read or written.
    """
    plan, night = summary.plan.name, summary.night
    before = history.last_finished(plan, but=night)
    comparison = compare(summary, before, history.latest(plan, LOOKED_AT - 1, but=night))
    summary = summary.model_copy(update={"comparison": comparison})
    summary.write(folder)
    history.add(summary)
    return summary


def end_those_killed(base: Path, say: Progress) -> None:
    """End the nights in a folder that still run by their summaries, with a page each; for who alone may run one there.

    What cannot be read or written stays as it is.
    """
    for file in sorted(base.glob(f"*/{FILE}")):
        with suppress(UserError, OSError):
            if b'"running"' not in file.read_bytes():  # reading a year of them as models takes its time
                continue
            summary = read_summary(file)
            if summary.status is Status.RUNNING:
                last = datetime.fromtimestamp(file.stat().st_mtime, UTC)
                told = {"status": Status.ENDED, "reason": BY_FORCE, "ended": last}
                summary = compared_and_remembered(summary.model_copy(update=told), History(base), file.parent)
                say(f"{summary.night} was killed: {write_morning(summary, file.parent)}")
