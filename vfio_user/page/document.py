"""The page itself: what is at its top, and everything that it needs put into it."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from userdev.errors import UserError, about
from userdev.printable import printable
from userdev.trace.kept import keep_aside
from userdev.writable import apart_from
from vfio_user.interposer.trace.registers import RegisterMap
from vfio_user.page import logs, run
from vfio_user.page.axis import Axis
from vfio_user.page.names import INDEX, MIGRATIONS, PROCESSES, RECORD, SOAK, TIMELINE
from vfio_user.page.sections import Said, Section, sections
from vfio_user.page.texts import json_of, seconds_of, text_of
from vfio_user.page.versions import versions_of
from vfio_user.page.wire import Seen, put_trace

_SCRIPTS = ("uplot/uPlot.iife.min.js", "events.js", "timeline.js")
_STYLES = ("uplot/uPlot.min.css", "page.css")
_KNOWN = (RECORD, TIMELINE, PROCESSES, "*.trace", "*.qmp.log", "*.console.log", MIGRATIONS, SOAK)
"""What a folder has one of, if it is of a run."""
_RECORDED = {"versions": dict, "programs": dict, "files": dict, "deaths": list, "exceptions": list}
"""What of a record is not a text."""
_MOST_WORDS = 4000
"""Characters of an error at the top."""


@dataclass(frozen=True)
class Written:
    """A page that was written: what is on its axis, and which traces end early, and why."""

    path: Path
    happened: int
    truncated: tuple[str, ...] = ()


def write_page(what: Path, out: Path, *, registers: RegisterMap | None = None) -> Written:
    """Write the page of a folder of a run, or of one trace; `registers` name those of vfio-user's.

    Raises:
        UserError: it is neither, or the page cannot be written, or would be written over it.
    """
    if not what.exists():
        raise UserError(f"there is no {what}", hint="give a folder of a run, or a trace")
    if not what.is_dir() and not what.is_file():
        raise UserError(f"{what} is no file that can be read twice", hint="give a folder of a run, or a trace")
    apart_from(what, out)
    axis = Axis()
    if what.is_dir():
        if not any(found for pattern in _KNOWN for found in what.glob(pattern)):
            raise _no_run(what)
        record = _record(what)
        traces = list(_put_folder(axis, what, registers))
        record["when"] = record.get("when") or _moment(axis.began / 1e9)
        said = sections(what)
        listed = [(path.name, path.stat().st_size, record.get("files", {}).get(path.name, "")) for path in _files(what)]
    else:
        traces = [put_trace(axis, what, registers)]
        record = {"of": what.name, "when": _moment(axis.began / 1e9), "versions": {}}
        said, listed = [], []
    truncated = [f"{trace.file}: {trace.truncated}" for trace in traces if trace.truncated]
    cause = printable(str(record.get("first_cause") or ""))
    head = {
        "record": record,
        "cause": cause,
        "words": _words(what, cause) if what.is_dir() else "",
        "truncated": truncated,
        "traces": [trace for trace in traces if trace.findings],
        "sections": [*_wire_sections(traces), *said],
        "files": listed,
        "moment": _moment,
    }
    page = "".join(_rendered(head, axis))
    with about(out):
        keep_aside(out)
        out.write_text(page, encoding="utf-8", errors="backslashreplace")  # what is half a character
    return Written(out, len(axis), tuple(truncated))


def _put_folder(axis: Axis, folder: Path, registers: RegisterMap | None) -> Iterator[Seen]:
    """Put all that a run left on the axis; yields what there is to say of its traces beside that."""
    run.put_steps(axis, folder)
    run.put_programs(axis, folder)
    run.put_migrations(axis, folder)
    run.put_guest_commands(axis, folder)
    run.put_soak(axis, folder)
    for path in sorted(folder.glob("*.console.timed.log")):
        logs.put_console(axis, path)
    for path in sorted(folder.glob("*.dmesg.log")):
        logs.put_kernel_log(axis, path, axis.began)
    for path in sorted(folder.glob("*.qmp.log")):
        logs.put_qmp(axis, path)
    during = axis.began, axis.ended
    for path in sorted(folder.glob("*.server.log")):
        logs.put_server_log(axis, path, *during)
    for path in filter(Path.is_file, sorted(folder.glob("*.trace"))):
        try:
            yield put_trace(axis, path, registers)
        except UserError as error:
            yield Seen(path.name.removesuffix(".trace"), path.name, str(error))


def _wire_sections(traces: Sequence[Seen]) -> list[Section]:
    """The last messages of each trace, in words."""
    said = [Said(trace.file, trace.last) for trace in traces if trace.last]
    return [Section("The last messages on the wire, as an interposer saw them", said)] if said else []


def _no_run(folder: Path) -> UserError:
    """What to say of a folder that is of no run: where in it there are some."""
    below = sorted({path.parent for name in (RECORD, TIMELINE) for path in folder.rglob(name)})
    if below:
        shown = ", ".join(str(path) for path in below[:5]) + (", ..." if len(below) > 5 else "")
        return UserError(f"{folder} is not itself a folder of a run", hint=f"there are {len(below)} in it: {shown}")
    return UserError(f"{folder} has nothing of a run in it", hint="a run's folder has evidence.json or a trace")


def _record(folder: Path) -> dict[str, Any]:
    found = json_of(text_of(folder / RECORD))
    if not isinstance(found, dict):
        found = {"of": folder.name}
    known = {name: value for name, value in found.items() if isinstance(value, _RECORDED.get(name, str))}
    return {**{name: kind() for name, kind in _RECORDED.items()}, "versions": versions_of(folder), **known}


def _words(folder: Path, cause: str) -> str:
    """What the error said beyond the cause, without where it was raised."""
    said = text_of(folder / "error.txt")
    words = printable(said.partition("\n\nraised at ")[0].strip())[:_MOST_WORDS]
    first, _, rest = words.partition("\n")
    return rest if first == cause else words


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (INDEX, RECORD)]


def _moment(when: object) -> str:
    seconds = seconds_of(when)
    if seconds is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"


@functools.cache
def _template() -> Any:
    """The page's template, compiled once in a process: that takes longer than a small page."""
    import jinja2  # slow, and nobody else needs it

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vfio_user.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["urlencode"] = _link
    return environment.get_template("page.html")


def _link(name: object) -> str:
    """A link to a file beside the page, whose name need not be UTF-8; "" of what no file is called."""
    try:
        return quote(os.fsencode(str(name)))
    except UnicodeEncodeError:
        return ""


def _rendered(head: dict[str, Any], axis: Axis) -> Iterator[str]:
    """The page, in pieces: what is embedded is large."""
    packed = axis.packed()
    scripts = [_asset(name) for name in _SCRIPTS]
    generated: Iterator[str] = _template().generate(
        **head,
        scripts=scripts,
        styles=[_asset(name) for name in _STYLES],
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        about=_safe_json(packed.about()),
        columns=packed.columns,
        blocks="\n".join(packed.blocks),
        count=packed.count,
        licence=_asset("uplot/LICENSE"),
    )
    return generated


def _asset(name: str) -> str:
    return files("vfio_user.page").joinpath(name).read_text(encoding="utf-8").strip()


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _safe_json(value: object) -> str:
    """JSON that ends no element of HTML."""
    return json.dumps(value).replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
