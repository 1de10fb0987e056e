"""What a soak and runs left behind, made by hand, as their summary and their pages tell it."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from tests.pages import Happened, happened
from tests.tellings import Told, facts, traces
from vfio_user.cli._soak_line import event_line, status_line
from vfio_user.page import document
from vfio_user.page.document import write_page
from vfio_user.soak import Done, Journal, Until
from vfio_user.soak import journal as journal_module
from vfio_user.soak.summary import summary_of

MOMENT = 1_795_932_999
GROWS = 24
"""Events, so that what grows is seen to grow."""


def of_traces(folder: Path) -> Told:
    """The page of a recording, and of one of the other protocol."""
    traces.made(folder)
    return {f"page of {name}": _page(folder / name, folder / f"{name}.html") for name in ("one", "forth")}


def of_runs(folder: Path) -> Told:
    """The page of a run, and what a soak came to."""
    traces.made(folder)
    _run(folder / "run")
    (folder / "run" / "guest-dev1-blk.trace").write_bytes((folder / "back").read_bytes())
    (folder / "run" / "guest-dev0-edu.trace").write_bytes((folder / "cut").read_bytes())
    (folder / "soak").mkdir()
    return {"soak": _soaked(folder / "soak"), "page of a run": _page(folder / "run", folder / "run.html")}


def _page(what: Path, out: Path) -> Told:
    """All that is on its axis, and the numbers of what is above and below it."""
    with patch.object(document, "time", SimpleNamespace(strftime=time.strftime, localtime=time.gmtime)):
        written = write_page(what, out)
    text = out.read_text()
    above = text[text.index("<body") : text.index('<script type="', text.index("<body"))]
    return {
        "happened": written.happened,
        "truncated": [each.replace(str(what.parent), "FOLDER") for each in written.truncated],
        "odd": facts(_words(text.partition('<ul id="odd">')[2].partition("</ul>")[0])),
        "words": [each for each in facts(_words(above)) if re.search(r"\d", each) and "\u2190" not in each],
        "rows": json.loads(text.partition('id="about">')[2].partition("</script>")[0]),
        "axis": [[*each.where, round(each.when, 7), round(each.lasted, 7), *_said(each)] for each in happened(out)],
    }


def _said(each: Happened) -> list[object]:
    return [each.kind, each.title, each.short, each.fields, each.record, each.answer]


def _words(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", " ", html))


def _run(folder: Path) -> None:
    """A run with all that it writes down: steps, programs and their ends, QMP, console, logs, a migration."""
    folder.mkdir()
    ends = {"server": ("was killed by SIGSEGV", False, False), "guest": ("ended with status 0", True, False)}
    ends["interposer"] = ("was killed by SIGKILL", False, True)
    programs = [
        {"name": name, "pid": 7 + number, "when": MOMENT + number, "ended": MOMENT + 4 + number, "fate": fate}
        | {"in_order": in_order, "on_request": asked, "stopped": False}
        for number, (name, (fate, in_order, asked)) in enumerate(ends.items())
    ]
    programs.append({"name": "disk", "pid": 70, "when": MOMENT + 1.5, "fate": "is running", "stopped": False})
    steps = [
        {"what": "boot guest", "began": 0.0, "seconds": 1.5, "error": "", "when": MOMENT},
        {"what": "look", "began": 1.5, "seconds": 0.25, "error": "it is 7", "when": MOMENT + 1.5},
    ]
    phases = [
        {"phase": "pre-copy", "began": 0.25, "seconds": 0.5, "bytes": 4096},
        {"phase": "stop-copy", "began": 0.75, "seconds": 0.125, "bytes": 512},
    ]
    migrations = [
        {"when": MOMENT + 2, "seconds": 1.0, "verdict": "migrated", "phases": phases},
        {"when": MOMENT + 3.5, "seconds": 0.5, "verdict": "dead", "reason": "lost", "phases": phases[:1]},
    ]
    soak = [
        {"kind": "event", "event": "hop", "target": "", "number": 1, "when": MOMENT + 5, "whole": 0.5},
        {"kind": "failure", "event": "kill", "target": "edu", "check": "register", "when": MOMENT + 6, "whole": 1.0},
        {"kind": "note", "what": "a note", "when": MOMENT + 6.5},
        {"kind": "begin", "when": MOMENT},
    ]
    guest = [
        {"run": "look", "when": MOMENT + 4, "seconds": 0.5, "stdout": '{"wrong": ["5! is 121", "no irq"]}'},
        {"run": "false", "when": MOMENT + 4.5, "seconds": 0.25, "exit_code": 3, "stdout": ""},
        {"run": "true", "when": MOMENT + 4.75, "seconds": 0.25, "exit_code": 0, "stdout": "done"},
    ]
    record = {
        "of": "X.test_y",
        "first_cause": "server was killed by SIGSEGV",
        "when": datetime.fromtimestamp(MOMENT, UTC).isoformat(),
        "deaths": ["server was killed by SIGSEGV"],
        "versions": {"qemu": "11.1.3"},
        "files": {"guest.qmp.log": "what QEMU was told"},
    }
    files: dict[str, Any] = {
        "evidence.json": record,
        "processes.json": programs,
        "timeline.json": steps,
        "guest.migration.json": migrations[0],
        "other.migration.json": migrations[1],
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    for name, rows in (("soak.jsonl", soak), ("guest.commands.jsonl", guest)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    began = datetime.fromtimestamp(MOMENT + 1, UTC)
    stamps = [began.replace(microsecond=number * 250_000).isoformat(timespec="microseconds") for number in range(4)]
    said = (
        '-> {"execute": "device_add", "arguments": {"driver": "vfio-user-pci"}}',
        '<- {"error": {"class": "GenericError", "desc": "no such thing"}}',
        '<- {"event": "RESET", "data": {}}',
        '-> {"execute": "quit"}',
    )
    logs = {
        "guest.qmp.log": "".join(f"{stamp} {line}\n" for stamp, line in zip(stamps, said, strict=True)),
        "guest.console.timed.log": f"{MOMENT}.75 [    7.4] Kernel panic - not syncing: 7\n{MOMENT + 1}.5 login:\n",
        "guest.dmesg.log": f"[    1.0] long ago\n[   60.0] now\n[   60.5] vfio-user: collected at {MOMENT + 1.5}\n",
        "error.txt": "register 0 is 7, not 8\n",
        "dev0.server.log": "listening\n" * 3,
    }
    for name, text in logs.items():
        (folder / name).write_text(text)


def _soaked(folder: Path) -> Told:
    """The summary of a soak with two failures, one made smaller, and what grows; and the lines that told of it."""
    clock = SimpleNamespace(now=0.0)
    clocks = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: MOMENT + clock.now)
    with patch.object(journal_module, "time", clocks):
        journal = Journal(folder / "soak.jsonl", {"devices": ["edu", "blk"], "events": GROWS}, 7)
        for number in range(1, GROWS + 1):
            clock.now += 2.5
            facts_of = {
                "number": number,
                "event": ("hop", "kill", "reboot")[number % 3],
                "target": "edu" * (number % 2),
            }
            sizes = {"harness_rss": 50_000 + 1000 * number, "qemu_fds": 40 + number, "servers_fds": 9}
            moved = {"downtime": 0.1 + number / 100, "dirty_pages": number} if not number % 3 else {}
            journal.event({**facts_of, "seconds": number / 8, "whole": number / 4, **sizes, **moved})
            if number in (5, 17):
                clock.now += 1
                lost = {"number": number + 100, "event": "kill", "target": "edu", "check": "register"}
                journal.failure({**lost, "folder": f"failure-{number}", "what": "it is gone"})
                journal.note("the clock jumped")
        journal.reduced({"reduced": [5, 7], "reproduced": True, "tries": 9})
        summary = summary_of(journal, {"devices": ["edu", "blk"]}, {"flr edu": "it has none"}, "all were done")
        last, done = journal.events[-1], journal.done
        worst = max(line.get("downtime", 0.0) for line in journal.events)
        until = Until(events=50)
        line = status_line(done, journal.a_minute, last, worst, until.left(done, journal.run_seconds), "now hop")
        again = Journal(folder / "soak.jsonl", {"devices": ["edu", "blk"], "events": GROWS})
    kept = [json.loads(text) for text in (folder / "soak.jsonl").read_text().splitlines()]
    return {
        "summary": summary,
        "line": facts(line),
        "events": [event_line(each) for each in journal.events[:3]],
        "journal": [kept[0], kept[1], *[each for each in kept if each["kind"] != "event"][1:]],
        "gone on with": [again.resumed, again.seed, again.next_number, again.done.events, again.done.failures],
        "part": [
            until.part(done, journal.run_seconds),
            until.reached(done, 0.0),
            status_line(Done(0, 0, 0), 0.0, {}, 0, None, ""),
        ],
    }
