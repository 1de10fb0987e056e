"""The numbers of a trace as tables, and as what programs read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from userdev.counted import counted
from userdev.trace.exchanges import Place
from userdev.trace.stats.findings import Finding, findings
from userdev.trace.stats.latencies import Latencies
from userdev.trace.stats.stats import Stats
from userdev.trace.stats.tally import Tally, Vector

PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
"""Of latencies, beside the longest."""
_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"))


@dataclass
class Section:
    """A table: what is counted first."""

    title: str
    rows: list[dict[str, Any]]
    """For programs: values are numbers, times `_ns`."""
    columns: tuple[str, ...] = ()

    def shown(self) -> Iterator[tuple[str, ...]]:
        """Its rows as people read them."""
        for row in self.rows:
            yield tuple(_shown(name, row.get(_KEYS.get(name, name))) for name in self.columns)


@dataclass
class Report:
    """All of it."""

    about: dict[str, Any]
    messages: Section
    registers: Section
    interrupts: Section
    findings: list[Finding] = field(default_factory=list)

    @property
    def sections(self) -> list[Section]:
        """The tables that have something in them."""
        return [section for section in (self.messages, self.registers, self.interrupts) if section.rows]

    @property
    def heading(self) -> str:
        """What was counted, in a line."""
        about = self.about
        return f"{counted(about['records'], 'record')} of {about['protocol']} in {about['seconds']:.3f} s"

    def json(self) -> dict[str, Any]:
        """All of it for programs."""
        return {
            **self.about,
            "messages": self.messages.rows,
            "registers": self.registers.rows,
            "interrupts": self.interrupts.rows,
            "findings": [{"kind": one.kind, "text": one.text, "records": list(one.records)} for one in self.findings],
        }


_TIMES = (*PERCENTILES, "longest")
_KEYS = {"a second": "per_second", **{name: f"{name}_ns" for name in _TIMES}}
"""What a column is called for programs, where people read another name."""
_MESSAGES = ("message", "count", "errors", "a second", *_TIMES)
_REGISTERS = ("register", "where", "bytes", "reads", "writes", "errors", "a second", *_TIMES, "last")
_INTERRUPTS = ("interrupt", "count", "a second", *_TIMES)


def report(stats: Stats) -> Report:
    """What has been counted until now."""
    about = {
        "protocol": stats.reader.header.protocol,
        "records": stats.reader.number,
        "seconds": round(stats.seconds, 9),
        "truncated": stats.reader.truncated,
        "notes": stats.notes,
    }
    return Report(
        about,
        Section("messages", list(_messages(stats)), _MESSAGES),
        Section("registers", list(_registers(stats)), _REGISTERS),
        Section("interrupts, and how long after the client's last write", list(_interrupts(stats)), _INTERRUPTS),
        findings(stats),
    )


def _messages(stats: Stats) -> Iterator[dict[str, Any]]:
    grouped: dict[str, list[tuple[Place, Tally]]] = {}
    for place, tally in stats.tallies.items():
        if place.carried and place.is_access:
            continue  # it is in its message, and among the registers
        subject = place.detail if place.offset is None else ""
        kind = " posted" if place.kind == "posted" and not place.channel else ""
        grouped.setdefault(" ".join(filter(None, (place.command, subject))) + kind, []).append((place, tally))
    for name, members in sorted(grouped.items(), key=lambda item: -sum(tally.count for _, tally in item[1])):
        yield {"message": name, **_totals((tally for _, tally in members), stats.seconds)}


def _registers(stats: Stats) -> Iterator[dict[str, Any]]:
    grouped: dict[tuple[str, str, int | None], list[tuple[Place, Tally]]] = {}
    for place, tally in stats.tallies.items():
        if place.is_access:
            grouped.setdefault((place.register, place.where, place.size), []).append((place, tally))
    for (register, where, size), members in sorted(grouped.items(), key=lambda item: _place_in_table(item[1])):
        reads = sum(tally.count for place, tally in members if not place.writes)
        totals = _totals((tally for _, tally in members), stats.seconds)
        latest = max((tally for _, tally in members), key=lambda tally: tally.last_number)
        writes = totals.pop("count") - reads
        row = {"register": register, "where": where, "bytes": size, "reads": reads, "writes": writes, **totals}
        yield {**row, "last": latest.last}


def _place_in_table(members: list[tuple[Place, Tally]]) -> tuple[bool, int]:
    """What only this device has first, and of that the most frequent."""
    return members[0][0].common, -sum(tally.count for _, tally in members)


def _interrupts(stats: Stats) -> Iterator[dict[str, Any]]:
    for name, vector in sorted(stats.vectors.items(), key=lambda item: -item[1].count):
        yield {"interrupt": name, "count": vector.count, **_rate(vector.count, stats.seconds), **_latencies(vector)}


def _totals(tallies: Iterable[Tally], seconds: float) -> dict[str, Any]:
    """Count, errors, rate and latencies of several together."""
    count = errors = 0
    latencies = Latencies()
    for tally in tallies:
        count += tally.count
        errors += tally.errors.counts.total()
        latencies.update(tally.latencies)
    return {"count": count, "errors": errors, **_rate(count, seconds), **_times(latencies)}


def _latencies(vector: Vector) -> dict[str, Any]:
    return _times(vector.since_write)


def _rate(count: int, seconds: float) -> dict[str, Any]:
    return {"per_second": round(count / seconds, 3) if seconds > 0 else None}


def _times(latencies: Latencies) -> dict[str, Any]:
    found: dict[str, Any] = {_KEYS[name]: latencies.percentile(share) for name, share in PERCENTILES.items()}
    return {**found, "longest_ns": latencies.longest if latencies.count else None}


def _shown(name: str, value: Any) -> str:
    """A cell as people read it."""
    if value is None or (name in ("errors", "reads", "writes") and value == 0):
        return "-"
    if name in _TIMES:
        return duration(value)
    if name == "last":
        return f"{value:#x}"
    if name == "a second":
        return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def duration(ns: int) -> str:
    """A time as people read it."""
    for size, unit in _UNITS:
        if ns >= size:
            return f"{ns / size:.1f} {unit}"
    return f"{ns} ns"
