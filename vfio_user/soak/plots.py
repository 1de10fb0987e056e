"""The plots of a soak's page: SVG that needs neither a network nor a script, by pygal."""

from __future__ import annotations

import sys
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
    most = max(values, default=1.0) or 1.0
    width = most / _BARS
    counts = [0] * _BARS
    for value in values:
        counts[min(_BARS - 1, int(value / width))] += 1
    chart = pygal.Histogram(title=title, show_legend=False, height=_HEIGHT, **_USUAL)
    chart.add("hops", [(count, at * width, (at + 1) * width) for at, count in enumerate(counts) if count])
    return _drawn(chart)


def _drawn(chart: Any) -> str:
    chart.add_xml_filter(_titled)
    return str(chart.render())


def _titled(root: Any) -> Any:
    """Labels as titles, which browsers show by themselves: pygal's own are for a script, which goes."""
    for definitions in root.iter("defs"):
        for script in definitions.findall("script"):
            definitions.remove(script)
    for group in root.iter("g"):
        if group.get("class") == "dots":
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
