"""What ended first, and what is kept of it: real programs that crash, with real cores where the machine writes them."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.cases import for_each, for_each_row
from tests.interposer_bench import Bench as InterposerBench
from tests.pages import happened
from tests.vhost.between import Between
from userdev.errors import UserError, VerdictError
from userdev.process import Child
from userdev.serving.authored import at_work
from vfio_user.cli.test_e2e import first_causes, per_minute
from vfio_user.harness import INDEX, RECORD, coredump, evidence, last_words
from vfio_user.harness.lab import Lab
from vfio_user.harness.records import Records
from vfio_user.harness.server_exceptions import logged_exceptions
from vfio_user.page.document import write_page

STACKS = "the stacks\n"
WAITS = "import sys, time; print('last words', file=sys.stderr, flush=True); time.sleep(60)"


@contextmanager
def child(folder: Path, name: str, program: str = WAITS) -> Iterator[Child]:
    """A program that has said its last words."""
    log = folder / f"{name}.server.log"
    started = Child(name, [sys.executable, "-c", program], log=log, folder=folder, take_core=coredump.take)
    try:
        while started.running and "last words" not in log.read_text():
            started.wait(0.01)
        yield started
    finally:
        started.stop()


def end(victim: Child, number: signal.Signals) -> None:
    victim.signal(number)
    victim.wait(30)


def test_the_cause_of_a_plain_assert_is_its_line(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("x = 4\nassert x == 3\n")
    with pytest.raises(AssertionError) as caught:
        exec(compile(source.read_text(), source, "exec"), {})
    assert evidence.write(tmp_path, [], caught.value) == "assertion error: assert x == 3 (mine.py:2)"
    assert "it does not say why" in evidence.write(tmp_path, [], AssertionError())


def test_the_first_to_end_badly_is_the_cause(tmp_path: Path) -> None:
    with child(tmp_path, "one") as one, child(tmp_path, "two") as two, child(tmp_path, "three") as three:
        for victim in (two, one):
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait(30)
        cause = evidence.write(tmp_path, [one, two, three], UserError("the guest does not answer"))
    assert cause == "two was killed by SIGKILL: last words"
    record = json.loads((tmp_path / RECORD).read_text())
    assert [death["name"] for death in record["deaths"]] == ["two", "one"], "three lived until it was stopped"
    assert evidence.cause_of(tmp_path) == cause


def test_what_the_test_did_is_told_from_what_came_of_it(tmp_path: Path) -> None:
    with child(tmp_path, "server") as server, child(tmp_path, "guest") as guest:
        end(server, signal.SIGKILL)
        error = UserError("the guest does not answer")
        assert evidence.write(tmp_path, [server, guest], error) == (
            "the guest does not answer; before that the test itself ended server (SIGKILL)"
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
        assert evidence.write(tmp_path, [server], UserError("wrong answer")) == "wrong answer"


def test_the_page_has_everything_that_was_said_and_is_safe_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "guest.qmp.log").write_text('-> {"execute": "device_add"}\n')
    (tmp_path / "guest.console.log").write_text("<script>alert(1)</script>\n")
    with child(tmp_path, "server") as server:
        end(server, signal.SIGKILL)
        evidence.write(tmp_path, [server], UserError("wrong answer", hint="look at the cable"))
    page = (tmp_path / INDEX).read_text()
    for said in ("last words", "device_add", "look at the cable", "&lt;script&gt;", 'href="guest.qmp.log"'):
        assert said in page
    assert "<script>alert" not in page
    files = json.loads((tmp_path / RECORD).read_text())["files"]
    assert len(files["guest.qmp.log"]) == 64


@pytest.fixture(autouse=True)
def stacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The debugger is fetched, which takes a network: only one test needs what it says."""
    if "network" not in request.keywords:
        monkeypatch.setattr(coredump, "backtrace", lambda core: STACKS.strip())


def test_a_core_is_a_childs_own_also_where_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is older is of a process before it, which had the same number."""
    child = Child("mine", ["true"], log=tmp_path / "log", folder=tmp_path)
    child.wait(60)
    core, now = tmp_path / "core", time.time()
    core.touch()
    monkeypatch.setattr(coredump, "_candidates", lambda *_: iter([core]))
    monkeypatch.setattr(coredump, "process_of", lambda _: child.pid)
    monkeypatch.setattr(coredump, "keep", lambda found, _: found)
    for back, written, is_its_own in ((0, 1, True), (0, -60, False), (3600, -3599, True), (3600, -3660, False)):
        os.utime(core, (now + written, now + written))
        with monkeypatch.context() as clock:
            clock.setattr(time, "time", lambda back=back: now - back)
            assert (coredump.take(child) is not None) is is_its_own, (back, written)
    child.stop()


@pytest.mark.network
def test_a_crash_has_a_backtrace_on_a_machine_without_a_debugger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if coredump.who_takes_cores() or Path("/proc/sys/kernel/core_pattern").read_text().startswith("/"):
        pytest.skip("this machine writes no cores into the folder of who crashed")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "gdb" else which(name))
    with child(tmp_path, "server") as server:
        end(server, signal.SIGSEGV)
        assert evidence.crashed([server])
        [death] = evidence.deaths(tmp_path, [server])
        trace = (tmp_path / death.backtrace).read_text()
    assert re.search(r"^#\d+ +(?:\S+ in )?\w+ \(", trace, re.MULTILINE), trace


def test_a_crash_leaves_a_core_of_this_very_process_and_its_backtrace(tmp_path: Path) -> None:
    if coredump.who_takes_cores() or Path("/proc/sys/kernel/core_pattern").read_text().startswith("/"):
        pytest.skip("this machine writes no cores into the folder of who crashed")
    with child(tmp_path, "server") as server:
        end(server, signal.SIGSEGV)
        assert coredump.find_core(server.pid + 1, server.began, tmp_path) is None
        assert evidence.crashed([server])
        [death] = evidence.deaths(tmp_path, [server])
        assert death.core == f"server-{server.pid}.core"
        assert coredump.process_of(tmp_path / death.core) == server.pid
        assert (tmp_path / death.backtrace).read_text() == STACKS
        assert evidence.deaths(tmp_path, [server]) == [death], "a second look finds the same"


def test_two_crashes_at_one_place_leave_both_their_cores(tmp_path: Path) -> None:
    """Also where the kernel gives every core the same name."""
    if coredump.who_takes_cores() or Path("/proc/sys/kernel/core_pattern").read_text().startswith("/"):
        pytest.skip("this machine writes no cores into the folder of who crashed")
    with child(tmp_path, "one") as one:
        end(one, signal.SIGSEGV)
        with child(tmp_path, "two") as two:
            end(two, signal.SIGABRT)
            found = evidence.deaths(tmp_path, [one, two])
    assert [coredump.process_of(tmp_path / death.core) for death in found] == [one.pid, two.pid]
    assert len({death.backtrace for death in found}) == 2


def test_a_core_that_another_has_just_taken_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all programs of a machine leave theirs in one folder."""
    (ours := tmp_path / "core.2").touch()
    monkeypatch.setattr(coredump, "_candidates", lambda *_: iter([tmp_path / "core.1", ours]))
    monkeypatch.setattr(coredump, "process_of", lambda _: 2)
    assert coredump.find_core(2, 0.0, tmp_path) == ours


@for_each_row(
    [
        ("Edu is listening\nerror: cannot map it\n  make room, and try again\n", "error: cannot map it"),
        ("Traceback (most recent call last):\n  File x\nValueError: 5\n", "ValueError: 5"),
        (
            "qemu-system-x86_64: Assertion `x' failed\n"
            "qemu-system-x86_64: vfio_container_dma_unmap(0x1, 0xc0000, 0x20000) = -2 (No such file or directory)\n",
            "qemu-system-x86_64: Assertion `x' failed",
        ),
        ("qemu-system-x86_64: terminating on signal 15 from pid 1\n", ""),
        ("  only this\n", "only this"),
        ("Edu is listening on unix:/run/edu.sock\n", ""),
        ("", ""),
    ]
)
def test_a_cause_is_what_went_wrong_and_neither_a_hint_nor_noise(log: str, said: str) -> None:
    assert last_words.reason(log) == said


def test_the_page_begins_with_the_cause_and_what_ran_when_and_of_what(tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text('{"vfio-user": "1.2.3", "qemu": {"version": [11, 1, 3]}}')
    (tmp_path / "guest.dmesg.log").write_text("[    0.000000] Linux version 6.12.117+deb13-amd64 (x)\n")
    (tmp_path / "guest.qemu.log").write_text("said\nvfio_user_process: error reply on async request command 3 error\n")
    with pytest.raises(UserError) as raised:
        raise UserError("wrong answer\nand more of it", hint="a hint")
    cause = evidence.write(tmp_path, [], raised.value, name="test_x.py:X.test_y")
    assert cause == "wrong answer"
    page = (tmp_path / INDEX).read_text()
    head, _, rest = page.partition("<h2>")
    for told in (
        "test_x.py:X.test_y",
        "vfio-user 1.2.3",
        "QEMU 11.1.3",
        "6.12.117+deb13-amd64",
        "wrong answer",
    ):
        assert told in head
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}", head)
    assert Path(__file__).name in rest, "where the error was raised"
    shown, _, noise = rest.partition("known harmless noise")
    assert "error reply on async request" not in shown
    assert "error reply on async request" in noise
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["of"] == "test_x.py:X.test_y"
    assert record["versions"]["QEMU"] == "11.1.3"


def test_the_stack_of_a_crash_is_beside_its_cause(tmp_path: Path) -> None:
    with child(tmp_path, "server") as server:
        end(server, signal.SIGSEGV)
        [death] = evidence.deaths(tmp_path, [server])
        evidence.write(tmp_path, [server], ended=evidence.Ends([death]))
    first = (tmp_path / death.backtrace).read_text().splitlines()[0]
    assert death.stack.startswith(first)
    head, _, _ = (tmp_path / INDEX).read_text().partition("<h2>Device servers said")
    assert html.escape(first, quote=False) in head.replace("&#34;", '"').replace("&#39;", "'")


def refused_lab(folder: Path | None = None, *, qemu: str = "", begins: bool = False) -> UserError:
    def use() -> object:
        with ExitStack() as begun, Lab("run", folder=folder, qemu=qemu) as lab:
            if begins:
                child = Child("server", ["/bin/true"], log=lab.folder / "server.log")
                begun.callback(child.stop)
                lab.records.note(child)
            return lab.qemu if qemu else lab.boot("nonesuch")

    with pytest.raises(UserError) as refused:
        use()
    return refused.value


def test_what_was_refused_before_anything_began_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VFIO_USER_RESULTS", raising=False)
    for error in (refused_lab(), refused_lab(qemu="nonesuch")):
        assert getattr(error, "__notes__", []) == []
    assert list(tmp_path.iterdir()) == []


def test_what_was_refused_after_that_leaves_its_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFIO_USER_RESULTS", str(tmp_path / "results"))
    refused_lab(begins=True)
    assert [(folder / INDEX).exists() for folder in (tmp_path / "results").iterdir()] == [True]
    refused_lab(tmp_path / "mine")
    assert (tmp_path / "mine" / INDEX).exists(), "whoever names a folder looks into it"


RAISES = """
import logging, sys, time
from userdev.serving.program import log_to_stderr
log_to_stderr(verbose=False)
log = logging.getLogger("vfio_user.server.session")

def doorbell(value):
    return value.nonesuch

try:
    doorbell(1)
except AttributeError as error:
    log.error("REGION_WRITE: the device failed", exc_info=error)
log.info("last words")
time.sleep(60)
"""


RAISES_IN_A_THREAD = (
    RAISES.partition("try:")[0]
    + """
import threading
thread = threading.Thread(target=doorbell, args=[1], name="ticker")
thread.start()
thread.join()
log.info("last words")
time.sleep(60)
"""
)


@for_each([RAISES, RAISES_IN_A_THREAD], ids=["in the session's thread", "in a thread of the device's own"])
def test_what_a_server_raised_before_a_test_failed_is_the_cause_and_the_failure_what_came_of_it(
    raises: str, tmp_path: Path
) -> None:
    with child(tmp_path, "edu", raises) as server:
        raised = logged_exceptions([server])
        cause = evidence.write(tmp_path, [server], UserError("the guest saw 0"), evidence.Ends([], raised))
    what = "AttributeError: 'int' object has no attribute 'nonesuch'"
    assert cause == f"edu: {what} (<string>:8, in doorbell); after that the guest saw 0"
    assert [(one.name, one.what) for one in raised] == [("edu", what)]
    assert server.began - 1 <= raised[0].when <= server.began + 60
    page = html.unescape((tmp_path / INDEX).read_text())
    head, _, _ = page.partition("What happened")
    assert cause in head
    assert "return value.nonesuch" not in cause
    assert 'File "<string>", line 8, in doorbell' in head, "the traceback is beside its cause"
    assert evidence.cause_of(tmp_path) == cause


def test_faults_that_an_interposer_put_in_come_before_what_came_of_them_as_none_of_the_devices(tmp_path: Path) -> None:
    """The guest sees the device do wrong, and only the trace had said that it was told to."""
    wrong = VerdictError("the guest saw edu do wrong: 2! is 3, not 2")
    for count in (1, evidence.FAULTS_NAMED, evidence.FAULTS_NAMED + 2):
        acted = [f"'rule {number}' acted once" for number in range(count)]
        ended = evidence.Ends(faults=acted)
        assert ended.are_causes
        cause = evidence.first_cause(ended, wrong)
        before, _, after = cause.partition("; after that ")
        assert "not the device's" in before, cause
        assert [rule in before for rule in acted] == [number < evidence.FAULTS_NAMED for number in range(count)]
        assert ("2 other rules too" in before) is (count > evidence.FAULTS_NAMED), cause
        assert after == str(wrong)
    assert evidence.first_cause(ended, None) == "nothing went wrong"
    assert evidence.write(tmp_path, [], wrong, ended) == cause
    assert cause in html.unescape((tmp_path / INDEX).read_text())


def test_of_an_exception_and_an_end_the_one_that_came_first_is_the_cause(tmp_path: Path) -> None:
    with child(tmp_path, "edu", RAISES) as server, child(tmp_path, "blk") as other:
        [raised] = logged_exceptions([other, server])
        os.kill(other.pid, signal.SIGKILL)
        other.wait(30)
        [dead] = evidence.deaths(tmp_path, [server, other])
    cause = evidence.first_cause(evidence.Ends([dead], [raised]), None)
    assert cause.startswith("edu: AttributeError")
    assert cause.endswith("after that blk was killed by SIGKILL: last words")
    later = dataclasses.replace(raised, when=dead.when + 1)
    assert evidence.first_cause(evidence.Ends([dead], [later]), None) == "blk was killed by SIGKILL: last words"


def test_a_device_that_does_not_return_is_told_with_the_line_where_it_was_of_what_went_wrong(tmp_path: Path) -> None:
    def keeps() -> None:
        begun.set()
        may_end.wait(30)

    begun, may_end = threading.Event(), threading.Event()
    thread = threading.Thread(target=keeps, name="session")
    thread.start()
    assert begun.wait(30)
    place = at_work(thread)
    may_end.set()
    thread.join()
    assert place == f" ({__file__}:{keeps.__code__.co_firstlineno + 2}, in keeps)"
    with child(tmp_path, "edu") as server:
        said = f"12:00:00.000 WARNING the thread session does not end yet: the device's own code may keep it{place}\n"
        server.log.write_text(said)
        cause = evidence.write(tmp_path, [server], UserError("the guest saw 0"))
        assert cause == f"the guest saw 0; edu had still not returned from {place[2:-1]} when it was to end"
        assert evidence.write(tmp_path, [server]) == "nothing went wrong"
        server.log.write_text(said.replace(place, ""))
        assert evidence.write(tmp_path, [server], UserError("the guest saw 0")) == "the guest saw 0"


@pytest.mark.parametrize("log", ["", "Traceback (most recent call last):\n", "12:00:00.000 INFO well\n", "\0\n"])
def test_a_log_without_an_exception_has_none(tmp_path: Path, log: str) -> None:
    with child(tmp_path, "edu") as server:
        server.log.write_text(log)
        assert logged_exceptions([server]) == []


def test_what_is_no_core_is_of_nobody(tmp_path: Path) -> None:
    (tmp_path / "core").write_bytes(b"\x7fELF and no more")
    assert coredump.process_of(tmp_path / "core") is None
    assert coredump.mapped_files(tmp_path / "core") == {}


def test_the_programs_of_a_good_run_are_on_its_page_from_birth_to_death(tmp_path: Path) -> None:
    records = Records(tmp_path)
    with child(tmp_path, "server") as server:
        records.note(server)
    records.write({}, [], [], None)
    assert not (tmp_path / RECORD).exists()
    write_page(tmp_path, tmp_path / INDEX)
    seen = {each.title for each in happened(tmp_path / INDEX)}
    assert {f"server runs, process {server.pid}", "server was killed by SIGTERM"} <= seen


def test_a_folder_without_evidence_has_no_cause(tmp_path: Path) -> None:
    for record in ("", "[]", "[" * 2000, '{"first_cause": null}'):
        assert evidence.cause_of(tmp_path) == ""
        (tmp_path / "evidence.json").write_text(record)


def test_a_run_of_the_suite_names_the_first_cause_of_what_failed(tmp_path: Path) -> None:
    tests = []
    for name, status in (("good", "PASS"), ("bad", "FAIL"), ("worse", "ERROR")):
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        if name != "worse":  # that one came to no lab
            evidence.write(folder, [], UserError("wrong answer"))
        tests.append({"name": f"/x/test_x.py:X.test_{name}", "status": status, "logdir": str(tmp_path / name)})
    assert list(first_causes(tests)) == [("X.test_bad", "wrong answer", tmp_path / "bad" / "data" / INDEX)]


def test_cases_per_minute() -> None:
    assert per_minute(29, 60.0) == 29.0
    assert per_minute(0, 0.0) == 0.0


def test_the_page_has_what_passed_last_on_the_wire_of_either_protocol(tmp_path: Path) -> None:
    with InterposerBench(trace=tmp_path / "dev0-edu.trace") as bench:
        bench.negotiate()
    with Between(tmp_path / "dev1-vhost-user-rng.trace") as between:
        between.negotiate()
    evidence.write(tmp_path, [], RuntimeError("on purpose"))
    page = (tmp_path / INDEX).read_text()
    assert "VERSION reply" in page
    assert "SET_PROTOCOL_FEATURES posted protocol_features=REPLY_ACK|BACKEND_REQ|CONFIG" in page


def test_what_the_test_ended_after_the_first_cause_came_is_no_part_of_it() -> None:
    """A lab that fails ends what it has left, as it has to."""

    def death(name: str, when: float, *, on_request: bool) -> evidence.Death:
        return evidence.Death(name, 7, when, "was killed by SIGKILL", on_request, False, "last words")

    dead = [
        death("before", 1.0, on_request=True),
        death("cause", 2.0, on_request=False),
        death("after", 3.0, on_request=True),
    ]
    told = evidence.first_cause(evidence.Ends(dead), None)
    assert told.endswith("the test itself ended before (SIGKILL)")
    assert "after (SIGKILL)" not in told
    assert "after (SIGKILL)" in evidence.first_cause(evidence.Ends(dead[::2]), UserError("it does not answer"))


def test_a_record_lists_the_files_beside_it_however_often_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "edu.server.log").write_text("said")
    for _ in range(2):
        evidence.write(tmp_path, [])
        assert [*json.loads((tmp_path / RECORD).read_text())["files"]] == ["edu.server.log"]


def test_a_crash_is_looked_at_once_and_shows_the_thread_that_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A debugger takes seconds, and a core may be gone when the evidence is written."""
    asked: list[Path] = []

    def backtrace(core: Path) -> str:
        asked.append(core)
        return "Thread 1\n#0 it_crashed\n#1 main\n\nThread 2\n#0 it_waits\n"

    monkeypatch.setattr(coredump, "backtrace", backtrace)
    crashed = SimpleNamespace(
        name="qemu",
        pid=7,
        running=False,
        was_stopped=False,
        ended=1.0,
        crashed=True,
        core=tmp_path / "qemu-7.core",
        fate=lambda: "was killed by SIGSEGV",
        ended_on_request=False,
        exit_code=-11,
        log=tmp_path / "qemu.log",
    )
    for _ in range(2):
        [death] = evidence.deaths(tmp_path, [cast(Child, crashed)])
        assert death.stack == "Thread 1\n#0 it_crashed\n#1 main"
        assert death.core == "qemu-7.core"
    assert len(asked) == 1
