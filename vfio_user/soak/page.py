"""The page of a soak: one HTML file that opens without a network, with plots, events and what was lost."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vfio_user.harness import INDEX
from vfio_user.harness.artifacts import write_text
from vfio_user.soak.plots import plots

_LAST = 200  # events that the page lists; the journal has all


def write_page(
    path: Path, summary: Mapping[str, Any], events: Sequence[Mapping[str, Any]], again: Mapping[int, str]
) -> None:
    """Write it; `again` has the command that repeats a failure, by its number.

    Raises:
        UserError: that cannot be written.
    """
    folder = path.parent
    found = {line["number"]: os.path.relpath(Path(line["folder"], INDEX), folder) for line in summary["failures"]}
    drawn = [Markup(plot) for plot in plots(events, summary["failures"])]  # pygal escapes what it draws
    write_text(path, _template().render(summary=summary, plots=drawn, last=events[-_LAST:], again=again, found=found))


@functools.cache
def _template() -> jinja2.Template:
    """The page's template, compiled once in a process."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vfio_user.soak", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html")
