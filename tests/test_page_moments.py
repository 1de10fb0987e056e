"""What each file of a run says is on its page at the moment that it says, for as long as it says."""

from __future__ import annotations

import html
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.pages import happened
from vfio_user.page.document import write_page
from vfio_user.page.names import COLLECTED

MOMENT = 1_795_932_999
"""Seconds since 1970 at which the run began: its first step is there."""


def at(seconds: float) -> float:
    return MOMENT + seconds


def clock(seconds: float) -> str:
    return datetime.fromtimestamp(at(seconds)).strftime("%H:%M:%S.%f")[:-3]


def iso(seconds: float) -> str:
    return datetime.fromtimestamp(at(seconds), UTC).isoformat()


def lines(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


SOAKED = {"event": "hop", "target": "", "number": 1}
PHASES = [{"phase": "pre-copy", "began": 0.25, "seconds": 0.5}, {"phase": "resume", "began": 2.0, "seconds": 0.125}]
FILES: dict[str, tuple[str, list[tuple[str, float, float]]]] = {
    "timeline.json": (json.dumps([{"what": "boot", "when": at(0), "seconds": 30.5}]), [("boot", 0, 30.5)]),
    "processes.json": (
        json.dumps([{"name": "qemu", "pid": 7, "when": at(1), "ended": at(3.5), "fate": "ended", "stopped": True}]),
        [("qemu runs, process 7", 1, 2.5), ("qemu ended", 3.5, 0)],
    ),
    "guest.migration.json": (
        json.dumps({"when": at(4), "seconds": 2.5, "verdict": "migrated", "phases": PHASES}),
        [("phase pre-copy", 4.25, 0.5), ("phase resume", 6, 0.125), ("migrated", 6.5, 0)],
    ),
    "guest.commands.jsonl": (lines({"when": at(2), "seconds": 1.5, "run": "lspci"}), [("lspci", 2, 1.5)]),
    "soak.jsonl": (
        # an event is written down when all has been looked at
        lines(
            {"kind": "event", "when": at(14), "whole": 4.0, "seconds": 1.0, **SOAKED},
            {"kind": "failure", "when": at(20), "whole": 2.5, "check": "work", **SOAKED},
            {"kind": "failure", "when": at(22), "check": "work", **SOAKED, "target": "edu"},
        ),
        [("hop", 10, 4), ("hop work", 17.5, 2.5), ("hop edu work", 22, 0)],
    ),
    "guest.console.timed.log": (f"{at(1.75):.6f} hello\n", [("hello", 1.75, 0)]),
    "guest.dmesg.log": (
        # taken twice: the guest has come from a checkpoint of which the first is, or stood still between them
        f"[    1.000000] long ago\n[    2.000000] {COLLECTED} {at(-100)}\n"
        f"[   60.000000] now\n[   62.500000] {COLLECTED} {at(10)}\n[   63.000000] and then\n",
        [("now", 7.5, 0), ("and then", 10.5, 0)],
    ),
    "guest.qmp.log": (
        f'{iso(1)} -> {{"execute": "one"}}\n{iso(1.5)} <- {{"event": "STOP"}}\n'
        f'{iso(2)} -> {{"execute": "two"}}\n{iso(3)} <- {{"return": {{}}}}\n{iso(5)} <- {{"return": {{}}}}\n',
        [("one", 1, 2), ("STOP", 1.5, 0), ("two", 2, 3)],
    ),
    "edu.server.log": (f"{clock(2.25)} INFO went\n{clock(29)} INFO on\n", [("INFO went", 2.25, 0), ("INFO on", 29, 0)]),
}


def test_each_file_of_a_run_is_on_its_page_at_the_moments_that_it_has(tmp_path: Path) -> None:
    for name in FILES:
        folder = tmp_path / name
        folder.mkdir()
        for each in {"timeline.json", name}:
            (folder / each).write_text(FILES[each][0])
        write_page(folder, folder / "index.html")
        found = [(one.title, round(one.when, 3), round(one.lasted, 3)) for one in happened(folder / "index.html")]
        wanted = FILES[name][1] if name == "timeline.json" else [*FILES["timeline.json"][1], *FILES[name][1]]
        assert sorted(found) == sorted(wanted), name


def test_a_page_of_all_files_has_all_of_them_in_the_order_of_time(tmp_path: Path) -> None:
    for name, (text, _) in FILES.items():
        (tmp_path / name).write_text(text)
    page = write_page(tmp_path, tmp_path / "index.html")
    found = happened(tmp_path / "index.html")
    assert page.happened == len(found) == sum(len(said) for _, said in FILES.values())
    assert [one.when for one in found] == sorted(one.when for one in found)


def test_the_cause_at_the_top_is_said_once_and_what_else_the_error_said_stands_below(tmp_path: Path) -> None:
    cause = "guest failure: it read 7"
    for first in (cause, "it is silent"):
        (tmp_path / "evidence.json").write_text(json.dumps({"of": "it", "first_cause": cause}))
        (tmp_path / "error.txt").write_text(f"{first}\nthe console's end\n\nraised at (most recent call last):\n  x.py")
        write_page(tmp_path, tmp_path / "index.html")
        page = html.unescape((tmp_path / "index.html").read_text())
        head = page.partition("<header")[2].partition("</header>")[0]
        assert head.count(cause) == 1, first
        assert (first in head, "the console's end" in head, "x.py" in head) == (True, True, False), first
