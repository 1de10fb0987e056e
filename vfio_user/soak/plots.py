"""The plots of a soak's page: SVG that needs neither a network nor a script, by pygal."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pygal
from pygal.style import Style

# It leaves a hook in the way of each later import, for charts of other packages; newer Pythons do not know that kind.
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]

Line = Mapping[str, Any]
Point = tuple[float, float | None, str]
"""Minutes, a value, and what is told of it when a pointer is on it."""

_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    font_family="sans-serif",
    title_font_size=14,
    label_font_size=10,
    major_label_font_size=10,
    legend_font_size=11,
    colors=("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"),
)
_HEIGHT = 260
_BARS = 30
_USUAL: Mapping[str, Any] = {
    "js": [],
    "style": _STYLE,
    "width": 1100,
    "disable_xml_declaration": True,
    "no_data_text": "nothing of this was seen",
}


def plots(events: Sequence[Line], failures: Sequence[Line]) -> list[str]:
    """All of them, one below the other, over the same minutes."""
    return [
        _over_time("Events, failures in red", _happened(events, failures), failures, rows=_rows(events, failures)),
        _over_time("Downtime, ms", [("hops", _values(events, "downtime", 1000))], failures),
        _histogram("Downtime, ms: how many hops", [line["downtime"] * 1000 for line in _with(events, "downtime")]),
        _over_time("Seconds until all was looked at", [("events", _values(events, "whole"))], failures),
        _over_time("Memory, MiB", _sizes(events, "rss", 1 / 1024), failures, lines=True),
        _over_time("Descriptors", _sizes(events, "fds"), failures, lines=True),
        _over_time("Pages that devices had written when a hop stopped them", _dirty(events), failures),
    ]


Series = Sequence[tuple[str, Sequence[Point]]]


def _over_time(
    title: str, series: Series, failures: Sequence[Line], *, lines: bool = False, rows: Sequence[str] = ()
) -> str:
    """Values over minutes; `lines` joins them, `rows` are names of the values 1, 2, ..."""
    last = max((point[0] for _, points in series for point in points), default=1.0)
    chart = pygal.XY(
        title=title,
        stroke=lines,
        dots_size=1.5 if lines else 2.5,
        x_title="minutes",
        xrange=(0, last or 1.0),
        include_x_axis=not rows,
        show_legend=not rows,
        y_labels=[{"value": at, "label": name} for at, name in enumerate(rows, 1)] or None,
        height=60 + 26 * len(rows) if rows else _HEIGHT,
        **_USUAL,
    )
    for name, points in series:
        chart.add(name, [{"value": (at, value), "label": told} for at, value, told in points if value is not None])
    if not rows and failures:
        chart.add("failures", [{"value": (_minutes(line), 0), "label": _told(line)} for line in failures], stroke=False)
    return _drawn(chart)


def _histogram(title: str, values: Sequence[float]) -> str:
    """Bars from nothing to beyond the most, each so wide as a person would have it and told with both its ends."""
    width = _round(max(values, default=1.0) or 1.0)
    counts = Counter(int(value / width) for value in values)
    chart = _FromNothing(title=title, show_legend=False, height=_HEIGHT, **_USUAL)
    bars = [(count, at * width, (at + 1) * width) for at, count in sorted(counts.items())]
    chart.add("hops", bars, formatter=lambda bar: f"{bar[0]} from {bar[1]:g} to {bar[2]:g}")
    return _drawn(chart)


def _round(most: float) -> float:
    """The least of 1, 2 and 5 times a power of ten with which some `_BARS` bars go beyond the most."""
    power = 10.0 ** math.floor(math.log10(most / _BARS))
    return next(width for times in (1, 2, 5, 10) if (width := times * power) * _BARS > most)


class _FromNothing(pygal.Histogram):  # type: ignore[misc]  # pygal has no types
    """A histogram whose axis begins where values do, and not at its first bar."""

    @property
    def xvals(self) -> list[float]:
        """Where bars begin and end."""
        return [0.0, *(end for series in self.all_series for bar in series.values for end in bar[1:3])]


def _drawn(chart: Any) -> str:
    chart.add_xml_filter(_titled)
    return str(chart.render())


def _titled(root: Any) -> Any:
    """Labels as titles, which browsers show by themselves: pygal's own are for a script, which goes."""
    for definitions in root.iter("defs"):
        for script in definitions.findall("script"):
            definitions.remove(script)
    for group in root.iter("g"):
        if group.get("class") in ("dots", "histbar"):
            told = [text for kind in ("label", "value") if (text := group.findtext(f"desc[@class='{kind}']"))]
            title = group.makeelement("title", {})
            title.text = ": ".join(told)
            group.append(title)
            for told_twice in group.findall("desc"):
                group.remove(told_twice)
    return root


def _rows(events: Sequence[Line], failures: Sequence[Line]) -> list[str]:
    return sorted({line["event"] for line in (*events, *failures)})


def _happened(events: Sequence[Line], failures: Sequence[Line]) -> Series:
    """Each event on the row of its kind."""
    row = {name: at for at, name in enumerate(_rows(events, failures), 1)}
    return [
        (name, [(_minutes(line), float(row[line["event"]]), _told(line)) for line in some])
        for name, some in (("events", events), ("failures", failures))
    ]


def _values(events: Sequence[Line], name: str, times: float = 1.0) -> list[Point]:
    return [(_minutes(line), round(line[name] * times, 3), _told(line)) for line in _with(events, name)]


def _sizes(events: Sequence[Line], kind: str, times: float = 1.0) -> Series:
    owners = ("harness", "qemu", "servers", "interposers")
    return [(owner, _values(events, f"{owner}_{kind}", times)) for owner in owners if _with(events, f"{owner}_{kind}")]


def _dirty(events: Sequence[Line]) -> Series:
    return [("pages", _values(events, "dirty_pages"))]


def _with(events: Sequence[Line], name: str) -> list[Line]:
    return [line for line in events if line.get(name) is not None]


def _minutes(line: Line) -> float:
    return round(float(line["at"]) / 60, 4)


def _told(line: Line) -> str:
    return " ".join(filter(None, (str(line["number"]), line["event"], line["target"])))
