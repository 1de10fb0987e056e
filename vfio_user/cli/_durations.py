"""How long something may take, as an option has it."""

from __future__ import annotations

import re
from typing import Any

import click

_FORM = re.compile(r"(?=\d)(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s?)?")


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
