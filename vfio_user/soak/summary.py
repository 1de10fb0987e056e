"""What a soak came to, as data: summary.json, whose fields docs/soak.md has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vfio_user.harness.artifacts import write_text
from vfio_user.soak.journal import Journal
from vfio_user.soak.measuring import trends

SCHEMA = 1
NO_WORK = "the guest stayed whole; no device had work of which something could be lost"


def summary_of(
    journal: Journal,
    soaked: Mapping[str, Any],
    left_out: Mapping[str, str],
    ended: str,
    *,
    works: bool = True,
    undone: str = "",
) -> dict[str, Any]:
    """`soaked` is what the command line said, `left_out` what could not happen and why, `ended` why it is no more.

    Without any work (`works`) nothing could be lost of it, which the verdict says. `undone` is why it could not be done
    to its end, where it could not.
    """
    grown = trends(journal.events)
    lost = [
        f"{line['number']} {line['event']} {line['target']}".strip() + f": {line['check']}" for line in journal.failures
    ]
    wrong, none = [*lost, *grown], "nothing was lost" if works else NO_WORK
    unfinished = [f"{'' if wrong else f'{none}, and '}it could not be done to its end: {undone}"] if undone else []
    done = journal.done
    return {
        "schema": SCHEMA,
        "seed": journal.seed,
        "soaked": dict(soaked),
        "seconds": round(done.seconds, 1),
        "events": done.events,
        "a_minute": round(journal.a_minute, 2),
        "by_event": _by_event(journal.events, journal.failures),
        "downtime": _spread([line["downtime"] for line in journal.events if line.get("downtime") is not None]),
        "left_out": dict(left_out),
        "notes": journal.notes,
        "failures": journal.failures,
        "grown": grown,
        "ended": ended,
        "undone": undone,
        "verdict": "; ".join([*wrong, *unfinished]) or none,
        "ok": not wrong and not undone,
    }


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write it as JSON.

    Raises:
        UserError: that cannot be written.
    """
    write_text(path, json.dumps(summary, indent=2, default=str) + "\n")


def _by_event(events: Sequence[Mapping[str, Any]], failures: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[float]] = {line["event"]: [] for line in failures}
    for line in events:
        found.setdefault(line["event"], []).append(line["whole"])
    failed = Counter(line["event"] for line in failures)
    return {
        name: {"count": len(values), "failed": failed[name], **_spread(values)}
        for name, values in sorted(found.items())
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median and longest, in seconds; nothing of nothing."""
    return {"median": round(median(values), 4), "longest": round(max(values), 4)} if values else {}
