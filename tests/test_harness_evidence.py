"""What ended first, and what is kept of it: real programs that crash, with real cores where the machine writes them."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vfio_user.cli.test_e2e import first_causes, per_minute
from vfio_user.errors import UserError
from vfio_user.harness import core, evidence
from vfio_user.harness.process import Child

WAITS = "import sys, time; print('last words', file=sys.stderr, flush=True); time.sleep(60)"


@contextmanager
def child(folder: Path, name: str, program: str = WAITS) -> Iterator[Child]:
    """A program that has said its last words."""
    log = folder / f"{name}.server.log"
    started = Child(name, [sys.executable, "-c", program], log=log, folder=folder, leaves_core=True)
    try:
        while started.running and "last words" not in log.read_text():
            started.wait(0.01)
        yield started
    finally:
        started.stop()


def end(victim: Child, number: signal.Signals) -> None:
    victim.signal(number)
    victim.wait(30)


def test_the_first_to_end_badly_is_the_cause(tmp_path: Path) -> None:
    with child(tmp_path, "one") as one, child(tmp_path, "two") as two, child(tmp_path, "three") as three:
        for victim in (two, one):
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait(30)
        cause = evidence.write(tmp_path, [one, two, three], UserError("the guest does not answer"))
    assert cause == "two was killed by SIGKILL: last words"
    record = json.loads((tmp_path / evidence.RECORD).read_text())
    assert [death["name"] for death in record["deaths"]] == ["two", "one"], "three lived until it was stopped"
    assert evidence.cause_of(tmp_path) == cause


def test_what_the_test_did_is_told_from_what_came_of_it(tmp_path: Path) -> None:
    with child(tmp_path, "server") as server, child(tmp_path, "guest") as guest:
        end(server, signal.SIGKILL)
        error = UserError("the guest does not answer")
        assert evidence.write(tmp_path, [server, guest], error) == (
            "user error: the guest does not answer; before that the test itself ended server (SIGKILL)"
        )
        os.kill(guest.pid, signal.SIGKILL)
        guest.wait(30)
        assert evidence.write(tmp_path, [server, guest], error) == (
            "guest was killed by SIGKILL: last words; before that the test itself ended server (SIGKILL)"
        )


def test_who_ends_by_itself_is_quoted(tmp_path: Path) -> None:
    with child(tmp_path, "server", "import sys; sys.exit('last words: no memory')") as server:
        server.wait(30)
        assert evidence.write(tmp_path, [server]) == "server exited with status 1: last words: no memory"


def test_an_orderly_end_is_no_cause(tmp_path: Path) -> None:
    with child(tmp_path, "server", "print('last words')") as server:
        server.wait(30)
        assert evidence.write(tmp_path, [server], UserError("wrong answer")) == "user error: wrong answer"


def test_the_page_has_everything_that_was_said_and_is_safe_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "guest.qmp.log").write_text('-> {"execute": "device_add"}\n')
    (tmp_path / "guest.console.log").write_text("<script>alert(1)</script>\n")
    with child(tmp_path, "server") as server:
        end(server, signal.SIGKILL)
        evidence.write(tmp_path, [server], UserError("wrong answer", hint="look at the cable"))
    page = (tmp_path / evidence.INDEX).read_text()
    for said in ("last words", "device_add", "look at the cable", "&lt;script&gt;", 'href="guest.qmp.log"'):
        assert said in page
    assert "<script>" not in page
    files = json.loads((tmp_path / evidence.RECORD).read_text())["files"]
    assert len(files["guest.qmp.log"]) == 64


def test_a_crash_leaves_a_core_of_this_very_process_and_its_backtrace(tmp_path: Path) -> None:
    if core.who_takes_cores() or Path("/proc/sys/kernel/core_pattern").read_text().startswith("/"):
        pytest.skip("this machine writes no cores into the folder of who crashed")
    with child(tmp_path, "server") as server:
        end(server, signal.SIGSEGV)
        assert core.find_core(server.pid + 1, server.began, tmp_path) is None
        assert evidence.crashed([server])
        [death] = evidence.deaths(tmp_path, [server])
        assert death.core == "server.core"
        assert core.process_of(tmp_path / death.core) == server.pid
        trace = (tmp_path / death.backtrace).read_text()
        assert "#0 " in trace or "gdb is not installed" in trace
        assert evidence.deaths(tmp_path, [server]) == [death], "a second look finds the same"


def test_what_is_no_core_is_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(b"\x7fELF and no more")
    assert core.process_of(tmp_path / "core") is None
    assert core.mapped_files(tmp_path / "core") == {}


def test_a_folder_without_evidence_has_no_cause(tmp_path: Path) -> None:
    assert evidence.cause_of(tmp_path) == ""


def test_a_run_of_the_suite_names_the_first_cause_of_what_failed(tmp_path: Path) -> None:
    tests = []
    for name, status in (("good", "PASS"), ("bad", "FAIL"), ("worse", "ERROR")):
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        if name != "worse":  # that one came to no lab
            evidence.write(folder, [], UserError("wrong answer"))
        tests.append({"name": f"/x/test_x.py:X.test_{name}", "status": status, "logdir": str(tmp_path / name)})
    assert list(first_causes(tests)) == [
        ("X.test_bad", "user error: wrong answer", tmp_path / "bad" / "data" / evidence.INDEX)
    ]


def test_cases_per_minute() -> None:
    assert per_minute(29, 60.0) == 29.0
    assert per_minute(0, 0.0) == 0.0
