"""Of each file that a run writes, each way in which what it tells can have gone is on the page as what it is."""

from __future__ import annotations

import errno
import html
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

from tests.interposer_bench import request, write
from tests.pages import happened
from tests.test_page_moments import at, iso, lines
from tests.traced import BOTH, REGISTERS, UP, Written
from userdev.relay.direction import Direction
from userdev.trace import View
from userdev.trace.perfetto import trace_events
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
from vfio_user.page.document import write_page
from vfio_user.page.names import COLLECTED
from vfio_user.page.texts import seconds_of
from vfio_user.traces import open_trace
from vfio_user.wire import Command
from vfio_user.wire import layouts as at_wire

STEP = json.dumps([{"what": "boot", "when": at(0), "seconds": 1}])


def kinds(folder: Path, files: Mapping[str, str], registers: RegisterMap | None = None) -> dict[str, str]:
    """The kind of each thing on the page of a folder with these files, by its title."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    write_page(folder, folder / "index.html", registers=registers)
    return {each.title: each.kind for each in happened(folder / "index.html")}


def test_a_programs_end_is_right_wrong_or_wanted(tmp_path: Path) -> None:
    """Wrong is one that nobody wanted; on purpose a fault; what was stopped, or ends by itself as it should, a step."""
    programs, wanted = [], {}
    for number, (stopped, in_order, on_request, fate) in enumerate(
        product((False, True), (False, True), (False, True), ("", "exited", "is running"))
    ):
        name = f"p{number}"
        said = {"stopped": stopped, "in_order": in_order, "on_request": on_request, "fate": fate}
        programs.append({"name": name, "pid": number, "when": at(1), "ended": at(2), **said})
        usual = stopped or fate == "is running" or in_order
        wanted[f"{name} {fate or 'ended'}"] = "step" if usual else "fault" if on_request else "wrong"
    found = kinds(tmp_path / "run", {"processes.json": json.dumps(programs)})
    assert {title: kind for title, kind in found.items() if " runs, " not in title} == wanted
    assert {kind for title, kind in found.items() if " runs, " in title} == {"step"}


def test_a_guests_command_is_wrong_where_its_report_is_and_refused_where_it_failed(tmp_path: Path) -> None:
    ran: dict[str, tuple[dict[str, Any], str, str]] = {
        "well": ({"exit_code": 0}, "well", "step"),
        "report": ({"exit_code": 0, "stdout": '{"wrong": []}'}, "report", "step"),
        "prints": ({"exit_code": 0, "stdout": "[1]"}, "prints", "step"),
        "status": ({"exit_code": 3}, "status: status 3", "refused"),
        "error": ({"error": "timed out"}, "error: timed out", "refused"),
        "both": ({"exit_code": 3, "error": "timed out"}, "both: timed out", "refused"),
        "wrong": ({"exit_code": 1, "stdout": '{"wrong": ["a", "b"]}'}, "wrong: a; b", "wrong"),
    }
    each = [{"when": at(1), "seconds": 1, "run": name, **said} for name, (said, _, _) in ran.items()]
    found = kinds(tmp_path / "run", {"timeline.json": "[]", "guest.commands.jsonl": lines(*each)})
    assert found == {title: kind for _, title, kind in ran.values()}


def test_steps_migrations_and_soaks_are_wrong_where_they_failed(tmp_path: Path) -> None:
    steps = [{"what": "boot", "when": at(0)}, {"what": "plug", "when": at(1), "error": "it ended"}]
    moved = [{"when": at(2), "verdict": "migrated"}, {"when": at(3), "verdict": "stayed", "reason": "refused"}]
    soaked = [{"kind": kind, "event": f"a {kind}", "when": at(5)} for kind in ("event", "failure", "note", "end")]
    found = kinds(
        tmp_path / "run",
        {"timeline.json": json.dumps(steps), "g.migration.json": json.dumps(moved), "soak.jsonl": lines(*soaked)},
    )
    assert found == {
        "boot": "step",
        "plug: it ended": "wrong",
        "migrated": "step",
        "stayed: refused": "wrong",
        "a event": "step",
        "a failure": "wrong",
        "a note": "step",
    }


def test_a_line_that_is_none_hides_none_behind_it(tmp_path: Path) -> None:
    bad = '{"cut": \n[1]\n\nnull\n'
    ran, soaked = lines({"when": at(1), "run": "lspci"}), lines({"when": at(2), "kind": "event", "event": "hop"})
    files = {"guest.commands.jsonl": bad + ran, "soak.jsonl": bad + soaked, "timeline.json": "[]"}
    assert kinds(tmp_path / "run", files) == {"lspci": "step", "hop": "step"}


def test_the_end_of_a_migration_says_all_but_its_phases(tmp_path: Path) -> None:
    report = {"when": at(0), "seconds": 2, "verdict": "migrated", "pages": 7, "phases": [{"phase": "stop", "began": 1}]}
    kinds(tmp_path / "run", {"timeline.json": "[]", "g.migration.json": json.dumps(report)})
    phase, end = happened(tmp_path / "run" / "index.html")
    assert (phase.title, phase.fields) == ("phase stop", {"phase": "stop", "began": 1})
    assert (end.title, end.when, end.fields["pages"]) == ("migrated", 1, 7)
    assert "phases" not in end.fields


def test_what_took_place_backwards_took_no_time(tmp_path: Path) -> None:
    """A clock was set meanwhile."""
    asked, answered = '-> {"execute": "stop"}', '<- {"return": {}}'
    kinds(tmp_path / "run", {"guest.qmp.log": f"{iso(5)} {asked}\n{iso(3)} {answered}\n"})
    [stop] = happened(tmp_path / "run" / "index.html")
    assert (stop.title, stop.lasted) == ("stop", 0)


def test_what_qmp_never_answered_lasts_to_the_end(tmp_path: Path) -> None:
    kinds(tmp_path / "run", {"guest.qmp.log": f'{iso(0)} -> {{"execute": "quit"}}\n{iso(4)} <- {{"event": "X"}}\n'})
    left, _ = happened(tmp_path / "run" / "index.html")
    assert (left.title, left.kind, left.lasted) == ("quit, never answered", "wrong", 4)


def test_a_server_that_logs_for_days_says_each_thing_at_its_moment(tmp_path: Path) -> None:
    """Its lines have the time of day alone; each is at most half a day behind the one before."""
    begin = datetime(2026, 11, 27, 9)
    moments = [begin + timedelta(hours=hours) for hours in range(0, 70, 7)]
    steps = [{"what": "night", "when": begin.timestamp(), "seconds": 72 * 3600}]
    logged = "".join(f"{moment:%H:%M:%S}.000 line {number}\n" for number, moment in enumerate(moments))
    kinds(tmp_path / "run", {"timeline.json": json.dumps(steps), "dev.server.log": logged})
    found = {each.title: each.when for each in happened(tmp_path / "run" / "index.html")}
    assert {title: when for title, when in found.items() if title != "night"} == {
        f"line {number}": (moment - begin).total_seconds() for number, moment in enumerate(moments)
    }


def test_lines_end_as_a_terminal_ends_them(tmp_path: Path) -> None:
    said = f"{at(1):.1f} one\r\n{at(2):.1f} two\r\n\r\n{at(3):.1f} three"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "guest.console.timed.log").write_bytes(said.encode())
    assert [*kinds(tmp_path / "run", {"timeline.json": STEP})] == ["boot", "one", "two", "three"]


def test_what_ends_a_line_elsewhere_ends_none_of_a_guest(tmp_path: Path) -> None:
    """A progress bar says CR, and what it is followed by may be the cause of all."""
    panic = "Kernel panic - not syncing: gone"
    for end in ("\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"):
        (folder := tmp_path / f"{ord(end):x}").mkdir()
        (folder / "guest.console.timed.log").write_bytes(f"{at(1):.1f} 99 %{end}{panic}\n".encode())
        (folder / "guest.qmp.log").write_bytes(f'{iso(2)} <- {{"event": "RESET{end}{panic}"}}\n'.encode())
        found = kinds(folder, {"timeline.json": STEP})
        ends = [title for title in found if title.endswith(panic)]
        assert [found[title] for title in ends] == (["wrong"] if end < " " else ["wrong", "event"]), repr(end)
        with Written(folder / "some.trace") as trace:
            view = open_trace(trace.path)
        events = trace_events(view.shown.lanes, view.header, (), console_log=folder / "guest.console.timed.log")
        assert [event["name"] for event in events if event["ph"] == "i"] == [f"99 %{end}{panic}"], repr(end)


def test_a_kernel_log_goes_by_when_it_was_taken_last(tmp_path: Path) -> None:
    """Between two takings the guest stood still, as where it was moved."""
    log = f"[10.0] {COLLECTED} {at(2)}\n[12.0] then\n[20.0] {COLLECTED} {at(30)}\n"
    kinds(tmp_path / "run", {"timeline.json": STEP, "guest.dmesg.log": log})
    found = {each.title: each.when for each in happened(tmp_path / "run" / "index.html")}
    assert found == {"boot": 0, "then": 22}


def test_a_number_is_a_moment_where_a_clock_says_it() -> None:
    for value, wanted in ((0, 0.0), ("1.5", 1.5), (1 << 31, float(1 << 31))):
        assert seconds_of(value) == wanted, value
    nothing: list[object] = [-1, "-1", -1e-9, 1 << 32, "inf", "-inf", "nan", 10**400, "", "soon", None, [], {}]
    for each in nothing:
        assert seconds_of(each) is None, each


# -- what is beside the axis


def test_whatever_the_record_says_the_page_is_written(tmp_path: Path) -> None:
    """Each of its fields as something that it is not."""
    names = ("of", "when", "first_cause", "versions", "programs", "files", "deaths", "exceptions", "unknown")
    for number, (name, value) in enumerate(product(names, (None, 7, 1.5, True, "text", [1], {"a": 1}))):
        folder = tmp_path / str(number)
        found = kinds(folder, {"evidence.json": json.dumps({name: value}), "timeline.json": STEP})
        assert found == {"boot": "step"}, (name, value)
        assert (folder / "index.html").read_text().rstrip().endswith("</html>"), (name, value)


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.read_text()))


def test_each_file_is_listed_with_its_size_but_for_the_page_and_what_it_is_made_of(tmp_path: Path) -> None:
    files = {"notes.txt": "12345", "guest.console.log": "hello\n", "timeline.json": STEP}
    digests = {"notes.txt": "abc" * 8}
    record = {"evidence.json": json.dumps({"of": "a run", "files": digests})}
    for _ in range(2):  # once more, where there is a page already
        kinds(tmp_path / "run", {**files, **record})
    listed = text_of(tmp_path / "run" / "index.html").partition(" Files ")[2]
    for name, text in files.items():
        assert re.search(rf"{re.escape(name)}\s+{len(text)}\b", listed), name
    assert "abc" * 8 in listed
    assert not re.search(r"evidence\.json\s+\d", listed)
    assert not re.search(r"index\.html\s+\d", listed)


def test_noise_is_counted_and_a_log_of_nothing_else_is_there(tmp_path: Path) -> None:
    line = "qemu: terminating on signal 15 from pid 7"
    for count, words in ((1, "1 line of known harmless noise is left out"), (3, "3 lines of known harmless noise are")):
        folder = tmp_path / str(count)
        kinds(folder, {"timeline.json": STEP, "only.qemu.log": f"{line}\n" * count, "more.qemu.log": "it said\n"})
        page = text_of(folder / "index.html").partition("QEMU said")[2]
        assert "only.qemu.log" in page
        assert " ".join(words.split()) in " ".join(page.split())
        assert "it said" in page


def test_the_versions_are_those_of_all_that_took_part(tmp_path: Path) -> None:
    versions = {"vfio-user": "1.2", "python": "3.11", "kernel": "6.1", "qemu": {"version": [11, 1, 3]}, "more": "x"}
    booted = "[    0.0] Linux version 6.12.4-guest (a@b)\n"
    files = {"versions.json": json.dumps(versions), "left.dmesg.log": booted, "right.dmesg.log": "nothing"}
    kinds(tmp_path / "run", {**files, "timeline.json": STEP})
    head = text_of(tmp_path / "run" / "index.html").partition("What happened")[0]
    for words in ("vfio-user 1.2", "python 3.11", "kernel 6.1", "QEMU 11.1.3", "kernel of left 6.12.4-guest"):
        assert words in head, words
    assert "kernel of right" not in head
    assert "more x" not in head


# -- traces


def test_each_outcome_of_an_access_is_told_though_another_of_its_kind_came_before(tmp_path: Path) -> None:
    with Written(tmp_path / "dev.trace", REGISTERS) as trace:
        trace.write(UP, 1)
        trace.read(UP, 1)
        trace.ask(_write(1), None)
        trace.ask(_write(1), errno.EINVAL)
        trace.ask(_write(1), None, view=View.RECEIVED)
        trace.read(UP, None)
        trace.write(UP, 1)
    write_page(tmp_path / "dev.trace", tmp_path / "page.html")
    accesses = [each for each in happened(tmp_path / "page.html") if each.where[0] == "dev BAR0"]
    assert [(each.kind, each.short) for each in sorted(accesses, key=lambda each: each.record)] == [
        ("write", "0x1"),
        ("read", "0x1"),
        ("wrong", "never answered"),
        ("refused", "refused: EINVAL"),
        ("fault", "0x1"),
        ("wrong", "never answered"),
        ("write", "0x1"),
    ]
    assert [each.title for each in accesses if each.kind == "write"] == ["REGION_WRITE up = 0x1"] * 2
    [dropped] = [each for each in accesses if each.kind == "fault"]
    assert (dropped.lasted, dropped.fields["seen"]) == (0, "only received"), "nobody was to answer it"
    unanswered = [each for each in accesses if each.short == "never answered"]
    last = max(each.when for each in accesses)
    assert all(each.when + each.lasted >= last for each in unanswered), "nobody answers until the end"


def test_a_message_has_its_own_answer_or_none_and_a_note_all_that_it_says(tmp_path: Path) -> None:
    info = request(Command.GET_INFO, at_wire.DEVICE_INFO.pack(16, 0, 0, 0))
    with Written(tmp_path / "dev.trace", REGISTERS) as trace:
        trace.ask(info, at_wire.DEVICE_INFO.pack(16, 2, 9, 5))
        silent = trace.ask(info, None)
        trace.writer.note("fault", rule="late", acts=["delay", "drop"], nth=2, more={"a": 1})
        trace.ask(info, errno.EINVAL)
        trace.write(UP, 1)
    write_page(tmp_path / "dev.trace", tmp_path / "page.html")
    found = happened(tmp_path / "page.html")
    answers = {each.record: each.fields.get("answer", {}).get("num_irqs") for each in found if "GET_INFO" in each.title}
    assert sorted(answers.values(), key=str) == [5, None, None]
    assert answers[silent] is None
    assert "answer" not in next(each.fields for each in found if each.record == silent)
    assert [each.title for each in found if each.kind == "fault"] == ["fault rule=late acts=delay, drop nth=2"]


def test_an_access_says_its_value_also_where_that_is_0(tmp_path: Path) -> None:
    with Written(tmp_path / "dev.trace", REGISTERS) as trace:
        trace.write(UP, 0)
        trace.read(UP, 0)
    write_page(tmp_path / "dev.trace", tmp_path / "page.html")
    accesses = [each for each in happened(tmp_path / "page.html") if each.where[0] == "dev BAR0"]
    assert [each.title for each in accesses] == ["REGION_WRITE up = 0x0", "REGION_READ up = 0x0"]
    assert {each.fields["value"] for each in accesses} == {"0x0"}


def test_what_is_odd_is_told_with_records_and_without(tmp_path: Path) -> None:
    with Written(tmp_path / "dev.trace", REGISTERS) as trace:
        trace.write(UP, 1)
        trace.writer.raw(Direction.TO_SERVER, b"no message", BOTH)
    write_page(tmp_path / "dev.trace", tmp_path / "page.html")
    assert "10 bytes passed outside of any" in text_of(tmp_path / "page.html").partition("What is odd")[2][:400]


def test_names_of_registers_are_those_that_are_given_in_a_folder_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with Written(tmp_path / "run" / "dev.trace") as trace:
        trace.write(UP, 1)
    for registers, name in ((None, hex(UP)), (RegisterMap([NamedRegister(0, UP, "given")]), "given")):
        kinds(tmp_path / "run", {"timeline.json": STEP}, registers)
        rows = {each.where for each in happened(tmp_path / "run" / "index.html")}
        assert ("dev BAR0", name) in rows, name


def test_a_trace_that_is_none_is_named_and_hides_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "bad.trace").write_bytes(b"no trace at all")
    with Written(folder / "good.trace") as trace:
        trace.write(UP, 1)
    written = write_page(folder, folder / "index.html")
    assert [each.partition(":")[0] for each in written.truncated] == ["bad.trace"]
    assert any(each.where[0] == "good BAR0" for each in happened(folder / "index.html"))


def _write(value: int) -> Any:
    return write(0, UP, value.to_bytes(4, "little"))
