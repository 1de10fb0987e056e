"""Times, so that percentiles of however many take little space: they are kept to within 1 %."""

from __future__ import annotations

from typing import Self

_BITS = 8
"""Significant bits that are kept of a time: what is left out is less than 1 part in 128 of it."""


class Latencies:
    """Counts of times in ns."""

    __slots__ = ("_counts", "count", "longest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.longest = 0

    def add(self, ns: int) -> None:
        """Count one."""
        self.count += 1
        if ns > self.longest:
            self.longest = ns
        shift = ns.bit_length() - _BITS
        if shift > 0:
            ns = ns >> shift << shift
        counts = self._counts
        counts[ns] = counts.get(ns, 0) + 1

    def update(self, other: Self) -> None:
        """Count what another one has."""
        self.count += other.count
        self.longest = max(self.longest, other.longest)
        for ns, count in other._counts.items():
            self._counts[ns] = self._counts.get(ns, 0) + count

    def percentile(self, share: float) -> int | None:
        """The time that this share of all (0 to 1) took at most, in ns; None where there are none."""
        wanted, passed = share * self.count, 0
        for ns in sorted(self._counts):
            passed += self._counts[ns]
            if passed >= wanted:
                left_out = max(0, ns.bit_length() - _BITS)
                return min(ns | (1 << left_out) - 1, self.longest)
        return None
