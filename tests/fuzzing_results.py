"""What runs, soaks, nights and fuzzers leave, nearly right: somebody may have edited it, or be sent it by whoever.

Readers of `fuzzing_readers`: each sample is a whole file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bundle_kit import make_bundle
from userdev.fuzz import Find, Step
from userdev.written import read_document
from vfio_user.bundle import MANIFEST, open_bundle
from vfio_user.bundle.difference import differences
from vfio_user.nightly.plan import PlanText
from vfio_user.nightly.servers import Servers
from vfio_user.nightly.summary import CaseResult, Cell, PlanIdentity, Summary, Verdict, read_summary
from vfio_user.page import document
from vfio_user.page.axis import Axis
from vfio_user.soak.journal import Journal
from vfio_user.soak.order import weights_of

WHEN = 1_795_932_000.0
_OF_RUN = {
    "timeline.json": [{"what": "boot", "when": WHEN, "seconds": 1.5, "error": "it did not"}],
    "evidence.json": {
        "first_cause": "it did not",
        "when": "then",
        "deaths": [
            {"name": "guest", "pid": 7, "fate": "exited", "when": WHEN, "core": "guest.core", "stack": "#0 main"}
        ],
        "exceptions": [
            {"name": "edu", "when": WHEN, "what": "KeyError: 1", "place": "x.py:1", "traceback": "Traceback"}
        ],
        "files": {"timeline.json": "00"},
        "versions": {"qemu": "11"},
    },
    "processes.json": [
        {"name": "guest", "pid": 7, "when": WHEN, "ended": WHEN + 2, "fate": "exited", "stopped": False}
    ],
    "guest.migration.json": [
        {"when": WHEN, "seconds": 2.0, "verdict": "stayed", "reason": "x", "phases": [{"phase": "setup", "began": 0.5}]}
    ],
    "soak.jsonl": {"kind": "event", "event": "hop", "target": "edu", "when": WHEN, "whole": 1.25},
    "guest.commands.jsonl": {"run": "true", "when": WHEN, "seconds": 1, "exit_code": 1, "stdout": '{"wrong": ["x"]}'},
    "versions.json": {"vfio-user": "1", "qemu": {"version": [11, 1]}},
}
_LOGS = {
    "guest.qmp.log": '2026-11-29T10:00:00 -> {"execute": "stop"}\n2026-11-29T10:00:01 <- {"error": {"desc": "no"}}\n',
    "guest.console.timed.log": f"{WHEN} Linux version 6\n{WHEN + 1} Kernel panic - not syncing\n",
    "guest.dmesg.log": f"[    1.500000] Linux version 6\n[    2.0] vfio-user: collected at {WHEN}\n",
    "edu.server.log": "10:00:00.125 Edu is listening\n10:00:01.250 and serves\n",
}


def _run(folder: Path, data: bytes) -> None:
    """What a page makes of it, whichever file of a run it is."""
    (folder / "data").write_bytes(data)
    axis = Axis()
    document._record(folder)
    list(document._put_folder(axis, folder, None))
    packed = axis.packed()
    json.dumps(packed.about(), allow_nan=False)


def _page(folder: Path, data: bytes) -> None:
    (folder / "evidence.json").write_bytes(data)
    document.write_page(folder, folder / "index.html")


def _written(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    """Reads a file that has this content."""

    def written(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return written


def _journal(path: Path) -> None:
    journal = Journal(path, {"devices": ["edu"]})
    journal.event({"number": journal.next_number, "event": "hop", "target": ""})


def _bundle(folder: Path, data: bytes) -> None:
    (folder / MANIFEST).write_bytes(data)
    found = open_bundle(folder)
    found.bundle.document()
    assert differences(found, found) == []


def _summary() -> str:
    results = (
        CaseResult(id="edu/a.py:A.test", cell="edu", test="a.py:A.test", verdict=Verdict.PASS, seconds=1.5),
        CaseResult(id="edu/a.py:B.test", cell="edu", test="a.py:B.test", verdict=Verdict.FAIL, cause="it did not"),
    )
    night = Summary(
        night="n-1",
        plan=PlanIdentity(name="n", file="n.yaml", digest="00"),
        began=datetime(2026, 11, 29, tzinfo=UTC),
        cells=(Cell(id="edu", parameters={"server": "edu"}, planned=2),),
        results=results,
    )
    return night.model_dump_json()


_PLAN = """name: n
qemus: {mine: /usr/bin/qemu}
slots: {a: {host: a, folder: /var/x, parallel: 2}}
groups:
  g: {tests: [a.py], servers: [edu], vary: {cpus: [1, 2], iommu: [yes, no]}, without: [{cpus: 2, iommu: yes}]}
"""
_SERVERS = """servers:
  spdk:
    about: x
    protocol: vfio-user
    kind: nvme
    command: "{program} {socket}"
    prepare: make
    supports: [reset]
    properties: {x-msg-timeout: 5}
    known_issues: [{id: a, what: b, tests: [A.test], symptom: c}]
"""


def samples_of_results(folder: Path) -> Iterator[tuple[str, tuple[bytes, ...], Callable[[bytes], Any]]]:
    """Name, samples and reader of each; `folder` is for their files."""
    places = [folder / name for name in ("run", "page", "bundle", "journal", "find")]
    run, page, bundle, journal, find = places
    for place in (run, page, find):
        place.mkdir()
    for name in (*_OF_RUN, *_LOGS):
        (run / name).symlink_to("data")
    of_run = tuple(json.dumps(value).encode() for value in _OF_RUN.values())
    yield "files of a run", (*of_run, *(text.encode() for text in _LOGS.values())), lambda data: _run(run, data)
    yield "record of a page", (of_run[1],), lambda data: _page(page, data)
    make_bundle(bundle)
    yield "bundle", ((bundle / MANIFEST).read_bytes(),), lambda data: _bundle(bundle, data)
    Journal(journal, {"devices": ["edu"]}, 7).event({"number": 1, "event": "hop", "target": "", "whole": 1.0})
    yield "journal of a soak", (journal.read_bytes(),), _written(journal, _journal)
    step = Step.of("write", region=0, data="00ff", values=(1, 2))
    kept = Find("vfio-user", "alive", "a rule", "alive: x", "x", (step,), subject={"device": "edu"}).write(find)
    yield "find of a fuzzer", (kept.read_bytes(),), _written(kept, Find.read)
    plan, servers, weights, night = (folder / name for name in ("plan.yaml", "servers.yaml", "weights.yaml", "n.json"))
    yield "plan of nights", (_PLAN.encode(),), _written(plan, lambda path: read_document(PlanText, path, "plan"))
    yield (
        "servers of others",
        (_SERVERS.encode(),),
        _written(servers, lambda path: read_document(Servers, path, "list")),
    )
    yield (
        "weights of a soak",
        (b"hop: 3\nreset: 0.5\n",),
        _written(weights, lambda path: weights_of({"hop": 1.0, "reset": 1.0}, path)),
    )
    yield "summary of a night", (_summary().encode(),), _written(night, read_summary)
