"""What run, migrate, test-e2e, exec and repro tell of what guests saw: of outcomes made by hand."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from junitparser import JUnitXml

from tests.bundle_kit import FAILED, make_bundle
from tests.tellings import Told, called, said
from tests.test_e2e_counts import STATUSES, job_of
from userdev.conformance import Check, CheckResult, Level, Outcome
from userdev.errors import UserError, VerdictError
from vfio_user.avocado_job.ending import Ending
from vfio_user.bundle import Outcome as CameOf
from vfio_user.bundle import open_bundle
from vfio_user.bundle.again import Attempt, Command, Prepared
from vfio_user.bundle.difference import About, Difference, differences
from vfio_user.bundle.made_with import recorded
from vfio_user.cli import exec as exec_command
from vfio_user.cli import migrate, repro, run, test_e2e
from vfio_user.cli._conformance import Suite, _judge, _tell_counts
from vfio_user.harness.artifacts import Step
from vfio_user.harness.exercises import Exercise, Part
from vfio_user.harness.guest import Result
from vfio_user.harness.migration.report import Mode, Phase, PhaseRecord, Report, Verdict

DRIVEN = {"access": "vfio", "speed": 7, "interrupts": "MSI"}
WORK = {
    "right": Exercise(
        "edu 5", True, {"5!": 120, "took": [1, 2], "regs": {"a": 1}}, (), {"access": "vfio", "interrupts": "MSI"}, 0.25
    ),
    "wrong": Exercise("edu 6", False, {"6!": 721}, ("6! is 721", "no interrupt"), {"interrupts": "MSI-X"}, 1.5),
    "failed": Exercise("edu 7", False, {}, (), {}, 0.0, error="it ended with status 3"),
    "silent": Exercise("edu 8", False, {"many": {str(n): n * 1000 for n in range(20)}}, (), {}, 0.0),
}


def told(folder: Path) -> Told:
    """Each of them, in JSON and for people."""
    return {
        "run": _run(folder / "run"),
        "migrate": _migrate(folder),
        "test-e2e": _tests(folder / "job"),
        "exec": _exec(folder),
        "repro": _repro(folder),
        "conformance": _conformance(folder),
    }


def _run(folder: Path) -> Told:
    folder.mkdir()
    for name in ("guest-dev1-blk.trace", "guest-dev0-edu.trace"):
        (folder / name).write_text("")
    steps = [Step("boot", 0.0, 1.5, "", 100.0), Step("look", 1.5, 0.001, "it is 7", 101.5)]
    lab: Any = SimpleNamespace(folder=folder, failure=None, timeline=SimpleNamespace(steps=steps))
    done = [(Part((name,), f"it is {name}"), work) for name, work in WORK.items()]
    left_out = [Part(("last",), "it is last")]
    told = run._report(lab, "edu", done, left_out, ["'slow' acted once"], ["'lose' never acted"], 2.34567)
    whole = json.loads(told.replace(str(folder), "FOLDER"))
    failures = {}
    for name, some, others, acted in (
        ("all", done, 0, ()),
        ("wrong alone", done[1:2], 3, ()),
        ("right", done[:1], 2, ("'slow' acted once",)),
        ("behind faults", done[1:2], 0, ("'slow' acted once",)),
    ):
        failure = run._failure("edu", some, others, acted)
        failures[name] = failure and [str(failure), failure.evidence, *getattr(failure, "__notes__", ())]
    printer = run._Printer()
    lines = [called(folder, partial(printer.part, part, work), False)["out"] for part, work in done]
    ends = []
    for lab.failure in (None, VerdictError("it read 8"), UserError("a rule never acted")):
        ends.append(called(folder, partial(printer.end, lab, 2.34567), False)["out"])
    return {
        "report": whole,
        "failures": failures,
        "summaries": [run._summary(work) for work in WORK.values()],
        "parts": lines,
        "end": [len(each) for each in ends],
    }


def _migrate(folder: Path) -> Told:
    found: Told = {}
    for verdict in Verdict:
        report = Report(Mode.COORDINATED, "a", "b", ["edu", "disk"], ["disk"], verdict, "in pre-copy", machine="guest")
        report.phases = [
            PhaseRecord(phase, number / 2, 0.25 + number, size)
            for number, (phase, size) in enumerate(zip(Phase, (0, 5, 2048, 3 << 20, 0, 1 << 30), strict=False))
        ]
        report.seconds, report.downtime = 12.345, 0.0567 if verdict is Verdict.MIGRATED else None
        report.ram_bytes, report.notes = 4 << 20, ["a note"]
        report.check("clock", True, "it went on")
        report.check("memory", verdict is Verdict.MIGRATED, "page 7" if verdict is not Verdict.MIGRATED else "")
        found[verdict] = [report.sentence, report.ok, [each.what for each in report.wrong], report.last_phase]
        for as_json in (True, False)[verdict is not Verdict.LOST :]:
            tell = partial(migrate._print, report, [WORK["right"], WORK["wrong"]], "evidence", as_json=as_json)
            found[f"{verdict}, {'JSON' if as_json else 'text'}"] = called(folder, tell, as_json)["out"]
    assigned = [migrate._assignments(("edu", "nvme"), work, None) for work in ((), ("none",))]
    return {**found, "assigned": [[[each.device.name, str(each.kind)] for each in some] for some in assigned]}


def _tests(folder: Path) -> Told:
    folder.mkdir()
    found: Told = {}
    for name, counts in (
        ("each", [1] * len(STATUSES)),
        ("good", [2, 1, 0, 0, 0, 3, 1, 2]),
        ("bad", [0, 0, 2, 1, 1, 0, 0, 0]),
    ):
        for as_json in (True, False):
            job = job_of(folder, counts)

            def tell(job: Any = job, as_json: bool = as_json) -> None:
                test_e2e.report(job, 0, Ending(), None, test_e2e.Printed(sys.stdout, as_json=as_json))

            found[f"{name}, {'JSON' if as_json else 'text'}"] = called(folder, tell, as_json)
    long = "first\n" + "x" * 400 + "\nlast: " + "y" * (test_e2e.SHOWN + 50)
    return {**found, "brief": [test_e2e.brief(cause) for cause in ("one line", "two\nlines", long, "  \n")]}


def _exec(folder: Path) -> Told:
    results = {
        "good": Result("true", 0, "out\n", "err\n", 0.1234567),
        "status": Result(["false"], 3, "", "", 1.0),
        "signal": Result("crash", -11, "o", "", 2.0),
        "too long": Result("sleep", -9, "", "e", 60.0, timed_out=True),
    }
    found: Told = {name: exec_command._document(result) for name, result in results.items()}
    for name, error in (("user", UserError("no guest", hint="wait")), ("verdict", VerdictError("lost"))):
        with patch.object(exec_command, "_run", side_effect=error):
            found[f"refused by a {name}"] = said(folder, "vfio-user exec -- true")["status"]
    return {**found, "nothing to run": said(folder, "vfio-user exec")["status"]}


def _repro(folder: Path) -> Told:
    make_bundle(folder / "first")
    make_bundle(folder / "same")
    make_bundle(folder / "other", outcome=CameOf(verdict="PASS", saw=FAILED.saw[:1]))
    bundles = {name: open_bundle(folder / name) for name in ("first", "same", "other")}
    attempts = [
        Attempt(bundles[name], differences(bundles["first"], bundles[name]), 1.23456 + number)
        for number, name in enumerate(("same", "other", "same"))
    ]
    here = [Difference(About.VERSION, "QEMU", "11.1.3", "11.2.0"), Difference(About.VERSION, "image minimal", "a", "")]
    prepared = Prepared(cast(Command, None), here)
    found: Told = {}
    for name, some in (("all", attempts), ("one", attempts[:1]), ("other", attempts[1:2])):
        for as_json in (True, False):
            tell = partial(repro._tell_after, prepared, some, as_json=as_json, quiet=False)
            found[f"{name}, {'JSON' if as_json else 'text'}"] = called(folder, tell, as_json)["out"]
    before = partial(repro._tell_before, "FAIL", "a run of edu", prepared)
    return {**found, "before": called(folder, before, False)["out"], "recorded": _recorded(folder / "first-results")}


def _conformance(folder: Path) -> Told:
    """Two groups of checks, of each outcome two, as they are shown, counted, judged, and written for a CI."""
    results: list[CheckResult[Any]] = [
        CheckResult(
            Check(f"{group}/{outcome.name.lower()}", f"it is {outcome.name}", f"rule {number}", _nothing, level, None),
            outcome,
            "" if outcome is Outcome.PASS else f"it did {number}",
            number / 4,
        )
        for group, level in (("one", Level.MUST), ("two", Level.REFERENCE))
        for number, outcome in enumerate(Outcome, 1)
    ]
    suite: Suite[Any] = Suite([each.check for each in results], "vfio-user", "current", reference="of 2019")
    good = [each for each in results if each.outcome not in (Outcome.FAIL, Outcome.BROKEN)]
    found: Told = {"document": suite._document(results)}
    for name, some in (("all", results), ("none failed", [*good, results[-1], results[-2]]), ("good", good)):
        found[f"{name}, shown"] = [called(folder, partial(suite._show, each), False)["out"] for each in some]
        found[f"{name}, counted"] = called(folder, partial(_tell_counts, some, 2.34567), False)["out"]
        found[f"{name}, judged"] = called(folder, partial(_judge, some), False)
    suite._write_junit(folder / "junit.xml", results)
    found["JUnit"] = [
        [
            case.classname,
            case.name,
            case.time,
            case.system_out,
            *((type(it).__name__, it.message) for it in case.result),
        ]
        for part in JUnitXml.fromfile(str(folder / "junit.xml"))
        for case in part
    ]
    return found


def _became(found: Any) -> tuple[str, str]:
    return type(found).__name__, found.message


def _nothing(_bench: object) -> None:
    return


def _recorded(results: Path) -> Told:
    """What a recipe has of results with two machines."""
    facts = json.loads((results / "versions.json").read_text())
    facts["machines"]["other"] = {"accelerator": "kvm"}
    facts["images"]["debian"] = "2" * 64
    (results / "versions.json").write_text(json.dumps(facts))
    found: dict[str, Any] = recorded(results)
    found["qemu"] = {**found["qemu"].model_dump(), "program": len(found["qemu"].program)}
    found["programs"] = [[each.name, *(Path(word).name for word in each.command)] for each in found["programs"]]
    return {**found, "versions": [*found["versions"]]}
