"""How many of something, as people say it: the one way to print a count."""

from __future__ import annotations


def counted(number: int, noun: str, many: str = "") -> str:
    """A count with its noun: "1 case", "2 cases", "12,345 records"; `many` is the plural where an s is not enough."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def times(number: int) -> str:
    """Once, or so many times."""
    return "once" if number == 1 else counted(number, "time")
