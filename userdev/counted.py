"""How many of something, as people say it: the one way to print a count."""

from __future__ import annotations


def counted(number: int, noun: str, many: str = "") -> str:
    """A count with its noun: "1 case", "2 cases", "12,345 records"; `many` is the plural where an s is not enough."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def amount(size: int) -> str:
    """Bytes in the largest unit of which there is at least one: "17 B", "1.5 KiB", "1.0 GiB"."""
    if size < 1024:
        return f"{size} B"
    value, unit = size / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if round(value, 1) < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.1f} {unit}"


def times(number: int) -> str:
    """Once, or so many times."""
    return "once" if number == 1 else counted(number, "time")
