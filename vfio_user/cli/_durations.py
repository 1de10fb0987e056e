"""How long something may take, as an option has it: no number of a command line is endless, or none."""

from __future__ import annotations

import math
import re
from typing import Any

import click

_FORM = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s?)?")


LEAST = 0.001
"""Seconds that an answer may be given at least: with none the best server answers nothing."""
MOST = 1e6
"""Of any number, such as seconds: what waits for that long takes milliseconds as an int (epoll_wait(2))."""


class Finite(click.FloatRange):
    """A number, within bounds if there are any."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read it; what is none, or endless, is refused."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number) or abs(number) > MOST:
            self.fail(f"{value!r} is not between {-MOST:,.0f} and {MOST:,.0f}", param, ctx)
        return number


class Duration(click.ParamType[float]):
    """So many seconds, as 90, 90s, 10m or 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it; nothing and no time at all are none."""
        if isinstance(value, int | float):
            return float(value)
        found = _FORM.fullmatch(str(value).strip())
        hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
        if not (whole := (hours * 60 + minutes) * 60 + seconds):
            self.fail(f"{value!r} is no duration: 90s, 10m and 1h30m are", param, ctx)
        return float(whole)
