"""Recorded sessions, played again without the guest; failing ones, shortened."""

from __future__ import annotations

import json
import re
import resource
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.conftest import PATIENCE
from tests.faulty_edu import MAGIC
from tests.flagged import CAUSES as FLAGS
from tests.flagged import DOWN, UP, flag, work
from tests.interposed import EDU
from tests.interposer_bench import read, request, write
from tests.recorded_edu import COMPUTE, RAISE, a_bit_of_everything, record, server
from tests.traced import Written
from userdev.errors import UserError, VerdictError
from userdev.relay.direction import Direction
from userdev.trace import TraceReader
from userdev.trace.cutting import FIRST
from vfio_user.cli import cli
from vfio_user.client import Client, EventFd, GuestMemory
from vfio_user.interposer.replay import load_script
from vfio_user.interposer.replay import minimize as minimize_impatiently
from vfio_user.interposer.replay import replay as replay_impatiently
from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome, What
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.replay.steps import is_interrupt, is_servers_request
from vfio_user.interposer.trace import MessageRecord, Note, read_trace
from vfio_user.interposer.trace.decode import DecodedMessage, describe
from vfio_user.interposer.trace.files import PROTOCOL
from vfio_user.wire import CURRENT, Capabilities, Command, encode_version
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqIndex, IrqSetFlags

# A slow server is no finding: tests that wait for what never comes say for how long.
replay = partial(replay_impatiently, patience=PATIENCE)
minimize = partial(minimize_impatiently, patience=PATIENCE)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recorded"), a_bit_of_everything)


def test_captured_dma_and_interrupts_are_in_the_trace(trace: Path) -> None:
    entries = read_trace(trace).entries
    names = [
        read_trace(trace).dialect.command(entry.message.command)
        for entry in entries
        if isinstance(entry, MessageRecord)
    ]
    assert {"DMA_READ", "DMA_WRITE"} <= {name.value for name in names if name is not None}
    assert b"guest" in b"".join(entry.message.payload for entry in entries if isinstance(entry, MessageRecord))
    assert [entry.details["vector"] for entry in entries if isinstance(entry, Note) and entry.event == "interrupt"] == [
        0
    ]


def test_captured_dma_really_reaches_the_guest(tmp_path: Path) -> None:
    def act(client: Client, ram: GuestMemory, interrupt: EventFd) -> None:
        a_bit_of_everything(client, ram, interrupt)
        assert bytes(ram.view[0x2000:0x2005]) == b"guest"

    record(tmp_path, act)


def test_the_same_server_does_the_same(trace: Path) -> None:
    outcome = replay(trace, EDU)
    outcome.check()
    assert outcome.sent > 15
    assert outcome.interrupts == [(IrqIndex.MSIX, 0)]
    assert len(outcome.dma_writes) == 1
    assert not outcome.memory_was_mapped
    recorded, played = (asked_by_the_server(script) for script in (load_script(trace), outcome.played))
    assert played == recorded
    assert len(played) == 2
    recorded, played = (answered_by_the_server(script) for script in (load_script(trace), outcome.played))
    assert played == recorded
    assert all(asked for asked, _ in played)


def answered_by_the_server(script: Script) -> list[tuple[int, int]]:
    """Its replies: the number of the record of what each answers, and the command."""
    steps = [step for step in script.steps if isinstance(step, MessageRecord)]
    return [
        (step.pair, step.message.command)
        for step in steps
        if step.direction is Direction.TO_CLIENT and step.message.is_reply
    ]


def asked_by_the_server(script: Script) -> list[tuple[int, int]]:
    """Its requests: the number of each record, and the command."""
    steps = [step for step in script.steps if isinstance(step, MessageRecord)]
    return [
        (step.number, step.message.command)
        for step in steps
        if step.direction is Direction.TO_CLIENT and not step.message.is_reply
    ]


def test_the_manuals_test_of_a_recorded_bug_is_one(trace: Path) -> None:
    """It passes with the server that was recorded, and fails with one that has the bug."""
    manual = (Path(__file__).parent.parent / "docs" / "interposer.md").read_text()
    text = next(block for block in re.findall(r"```python\n(.*?)```", manual, re.DOTALL) if "def test_" in block)
    for command, fails in ((EDU, False), (server("Corrupting"), True)):
        names: dict[str, Any] = {}
        ours = text.replace("traces/doorbell.trace", str(trace)).replace("vfio-user serve mydevice --fd {fd}", command)
        exec(ours, names)
        with pytest.raises(VerdictError) if fails else nullcontext():
            names["test_the_doorbell_that_was_lost"]()


@pytest.mark.parametrize(
    ("name", "what", "beside"),
    [
        ("Corrupting", What.DMA_WRITE, PATIENCE),
        ("Silent", What.INTERRUPT_MISSING, 0.05),
    ],
)
def test_a_server_that_does_otherwise_is_found_out(trace: Path, name: str, what: What, beside: float) -> None:
    outcome = replay(trace, server(name), beside=beside)
    assert outcome.difference is not None
    assert outcome.difference.what is what
    with pytest.raises(VerdictError):
        outcome.check()


def test_a_servers_start_is_not_counted_as_its_silence(trace: Path, tmp_path: Path) -> None:
    """Its socket is there before it is."""
    slow = tmp_path / "slow.sh"
    slow.write_text(f"#!/bin/sh\nsleep 2.5\nexec {EDU.replace('{fd}', '$1')}\n")
    slow.chmod(0o755)
    replay(trace, f"{slow} {{fd}}", patience=2).check()


def test_a_register_that_may_differ_can_be_left_out(tmp_path: Path) -> None:
    def act(client: Client, ram: GuestMemory, interrupt: EventFd) -> None:
        client.store(0, RAISE, 4, 3)
        client.store(0, COMPUTE, 4, 5)
        client.load(0, COMPUTE, 4)

    path = record(tmp_path, act)
    outcome = replay(path, server("WrongAnswer"))
    assert outcome.difference is not None
    assert outcome.difference.what is What.REPLY
    assert replay(path, server("WrongAnswer"), ignore=[f"BAR0:{COMPUTE:#x}"]).same


def slowly(script: Script, seconds: float) -> Script:
    """The script as if each of its messages had come so many seconds after the one before."""
    step = int(seconds * 1e9)
    return replace(script, steps=tuple(replace(one, time=place * step) for place, one in enumerate(script.steps)))


def test_recorded_timing_takes_as_long_as_it_took(trace: Path) -> None:
    script = load_script(trace)
    pauses = len(script.steps) - 1
    assert replay(slowly(script, 0.4 / pauses), EDU, timing="recorded").seconds >= 0.39
    replay(slowly(script, 3600), EDU).check()  # at once: nobody would wait for its end


def test_memory_that_was_not_captured_is_told_of(tmp_path: Path) -> None:
    path = record(tmp_path, a_bit_of_everything, capture=False)
    assert replay(path, EDU).memory_was_mapped


def test_what_cannot_be_replayed_is_refused(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        replay(trace)
    with pytest.raises(UserError):
        load_script(trace, 7)
    with Written(tmp_path / "header.trace"):
        pass
    with pytest.raises(UserError, match="nothing was recorded"):
        load_script(tmp_path / "header.trace")
    with pytest.raises(UserError):
        replay(tmp_path / "none", EDU)


def test_a_trace_that_ends_within_its_session_is_said_to_where_it_is_played(trace: Path, tmp_path: Path) -> None:
    """Of the rest nothing is known: that all before it is the same says nothing of that."""
    cut, rest = tmp_path / "cut.trace", tmp_path / "rest.trace"
    data = trace.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    rest.write_bytes(data + data[8:16])  # what comes behind the session
    assert "cut off within record" in load_script(cut).truncated
    assert (load_script(trace).truncated, load_script(rest).truncated) == ("", "")
    for words in (["minimize", str(cut), "--check", "false {trace}"], ["replay", str(cut), "--server-command", EDU]):
        done = CliRunner().invoke(cli, [*words, *["-o", str(tmp_path / "out")] * (words[0] == "minimize")])
        assert done.exit_code == 0, done.output
        assert load_script(cut).truncated in done.stderr, words[0]


def test_what_a_server_does_behind_the_end_of_a_trace_that_was_cut_off_is_no_difference(
    trace: Path, tmp_path: Path
) -> None:
    """Wherever that is, be it between two records: the very server that was recorded was blamed for it."""
    data, cut = trace.read_bytes(), tmp_path / "cut.trace"
    with open(trace, "rb") as stream:
        sizes = [len(record) for record in TraceReader(stream, "", PROTOCOL).records()]
    begins = list(accumulate(sizes, initial=len(data) - sum(sizes)))  # of records, from that behind the header
    asked = [step.number for step in load_script(trace).steps if is_servers_request(step) or is_interrupt(step)]
    assert len(asked) >= 3
    left_out = 0
    for number in asked:
        cut.write_bytes(data[: begins[number - FIRST]])
        script = replace(load_script(cut), all_interrupts=True)
        assert script.truncated == f"cut off behind record {number - 1}, before the session's end"
        replay(script, EDU).check()
        left_out += not replay(replace(script, unknown_behind=0), EDU).same
    assert left_out


def test_a_server_that_does_more_than_was_recorded_is_seen_before_the_end_of_a_trace_that_was_cut_off(
    trace: Path, tmp_path: Path
) -> None:
    script = load_script(trace)
    interrupt = next(step for step in script.steps if is_interrupt(step))
    script = replace(script, steps=tuple(step for step in script.steps if step is not interrupt), all_interrupts=True)
    last = max(step.number for step in script.requests)
    assert [each.what for each in replay(replace(script, unknown_behind=last), EDU).differences] == [
        What.INTERRUPT_UNEXPECTED
    ]


def test_an_interrupt_that_does_not_say_which_is_none(tmp_path: Path) -> None:
    with Written(tmp_path / "edited.trace") as written:
        written.writer.note("interrupt", index="MSIX")
        written.read(0, 1)
    assert not any(map(is_interrupt, load_script(tmp_path / "edited.trace").steps))


@for_each([5, [[1]], "3", {"3": 4}])
def test_an_extract_that_says_of_no_records_that_they_count_is_refused(compared: object, tmp_path: Path) -> None:
    with Written(tmp_path / "edited.trace") as written:
        written.writer.note("extract", compared=compared)
        written.read(0, 1)
    with pytest.raises(UserError, match="record 2"):
        load_script(tmp_path / "edited.trace")


def test_a_request_for_more_vectors_than_there_can_be_costs_no_memory(tmp_path: Path) -> None:
    with Written(tmp_path / "rubbish.trace") as written:
        flags = IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER
        number = written.ask(
            request(Command.SET_IRQS, at.IRQ_SET.pack(at.IRQ_SET.size, flags, 2, 0, (1 << 32) - 1)), 22
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
    try:
        assert load_script(tmp_path / "rubbish.trace").causes.closure({number}) == {number}
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work(tmp_path_factory.mktemp("flagged"), flag(), 3)


def test_every_difference_is_reported_with_the_record_that_it_is_of(flagged: Path) -> None:
    """A lost interrupt does not keep the stale reads after it from being found, nor the other way round."""
    faulty = flag("--stale 2 --lost 2")
    outcome = replay(flagged, faulty, beside=0.05)
    entries = {entry.number: entry for entry in read_trace(flagged).entries}
    found = [(each.what, type(entries[each.record]), each.place) for each in outcome.differences]
    stale = (What.REPLY, MessageRecord, "REGION_READ BAR0 0x24 causes")
    assert found == [stale, (What.INTERRUPT_MISSING, Note, "MSIX vector 0"), stale, stale]
    assert (outcome.unplayed, outcome.fate) == (0, "")
    assert outcome.text().count("REGION_READ reply") == 2, "what differs alike is told once"
    assert f"2 more like it, at records {found_records(outcome)}" in outcome.text()


def found_records(outcome: ReplayOutcome) -> str:
    return ", ".join(str(each.record) for each in outcome.differences[2:])


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        (["BAR0:0x24"], {What.INTERRUPT_MISSING}),
        (["bar0:0x20-0x27"], {What.INTERRUPT_MISSING}),
        (["BAR0"], {What.INTERRUPT_MISSING}),
        (["region_read"], {What.INTERRUPT_MISSING}),
        (["causes"], {What.INTERRUPT_MISSING}),
        (["MSIX"], {What.REPLY}),
        (["MSIX:0", "CONFIG"], {What.REPLY}),
        (["MSIX:1", "BAR1", "BAR0:0x28"], {What.REPLY, What.INTERRUPT_MISSING}),
        (["MSIX", "DEVICE_GET_IRQ_INFO", "BAR0"], set()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_may_differ_is_left_out(flagged: Path, ignored: list[str], left: set[What]) -> None:
    outcome = replay(flagged, flag("--stale 2 --lost 2"), ignore=ignored, beside=0.05)
    assert {each.what for each in outcome.differences} == left
    assert outcome.ignored or left == {What.REPLY, What.INTERRUPT_MISSING}


def test_what_an_index_of_interrupts_is_like_can_be_left_out_with_it() -> None:
    asked = [
        request(Command.GET_IRQ_INFO, at.IRQ_INFO.pack(at.IRQ_INFO.size, 0, index, 0))
        for index in (IrqIndex.INTX, IrqIndex.MSI, IrqIndex.MSIX)
    ]
    script = Script.of([request(Command.VERSION, encode_version(CURRENT, 0, Capabilities())), *asked])
    expected = replay(script, EDU).played
    places = {each.place for each in replay(expected, flag()).differences}
    assert places == {"DEVICE_GET_IRQ_INFO"}
    assert replay(expected, flag(), ignore=["device_get_irq_info"]).same
    assert replay(expected, flag(), ignore=["INTX", "MSI", "MSIX"]).same
    assert not replay(expected, flag(), ignore=["ERR", "MSIX:0"]).same, "what is said of all is not one vector's"


@pytest.mark.parametrize("word", ["BARO", "cause", "BAR0:x", "MSIX:first", "REGION_REED", ""])
def test_a_word_that_names_nothing_is_refused(trace: Path, word: str) -> None:
    with pytest.raises(UserError):
        replay(trace, EDU, ignore=[word])


def test_differences_are_told_to_programs_too(trace: Path) -> None:
    command = ["replay", str(trace), "--json", "--server-command"]
    good = CliRunner().invoke(cli, [*command, EDU])
    assert (good.exit_code, json.loads(good.stdout)["same"]) == (0, True)
    bad = CliRunner().invoke(cli, [*command, server("Corrupting")])
    assert bad.exit_code == 1
    (difference,) = json.loads(bad.stdout)["differences"]
    assert difference["what"] == "DMA_WRITE"
    assert entry_of(trace, difference["record"]).command == "DMA_WRITE"


def entry_of(trace: Path, record: int) -> DecodedMessage:
    (found,) = [each for each in read_trace(trace).entries if each.number == record]
    assert isinstance(found, MessageRecord)
    return describe(read_trace(trace).dialect, found.message)


def test_how_a_server_ended_is_told_even_if_nothing_waited_for_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A posted write is the last message; that nobody asked anything afterwards does not make it harmless.

    A process that dies has no connection any more before it has ended: on a busy machine that is a while.
    """
    monkeypatch.setattr("vfio_user.interposer.replay.player.DYING_SECONDS", 0.0)
    path = tmp_path / "posted.trace"
    with Written(path) as written:
        written.ask(request(Command.VERSION, encode_version(CURRENT, 0, Capabilities())), None)
        written.write(RAISE, MAGIC, posted=True)
    outcome = replay(path, server("Crashing"))
    assert [each.what for each in outcome.differences] == [What.CLOSED]
    assert outcome.fate == "exited with status 3"
    assert replay(path, EDU).same


def test_one_that_never_interrupts_is_not_waited_for_each_time(flagged: Path) -> None:
    script = load_script(flagged)
    interrupts = [step for step in script.steps if is_interrupt(step)]
    often = replace(script, steps=(*script.steps, *interrupts * 9))
    outcome = replay(often, flag("--lost 1"), beside=0.5)
    assert [each.what for each in outcome.differences] == [What.INTERRUPT_MISSING] * 30
    assert outcome.sent == len(script.requests)
    assert outcome.seconds < 30 * 0.5


def test_what_another_server_did_can_be_what_is_expected() -> None:
    """A script without answers is given those of a reference, for another to be compared with."""
    made_up = Script.of(
        [
            request(Command.VERSION, encode_version(CURRENT, 0, Capabilities())),
            write(0, UP, b"\x5a\0\0\0"),
            read(0, FLAGS, 4),
            write(0, DOWN, b"\x5a\0\0\0"),
            read(0, FLAGS, 4),
        ]
    )
    expected = replay(made_up, flag()).played
    assert replay(expected, flag()).same
    (difference,) = replay(expected, flag("--stale 2")).differences
    assert difference.record == 6, "the header is record 1"


def test_a_server_that_ends_at_once_is_told_of(trace: Path) -> None:
    """Whether it ends before it is connected to or after."""
    told = set()
    for _ in range(5):
        try:
            told.add(replay(trace, "false {fd}").fate)
        except UserError as error:
            told.add(str(error))
    assert all("exited with status 1" in fate for fate in told)


def test_the_command_line_reports_what_differs(trace: Path) -> None:
    good = CliRunner().invoke(cli, ["replay", str(trace), "--device", "edu"])
    assert good.exit_code == 0, good.output
    silent = CliRunner().invoke(cli, ["replay", str(trace), "--server-command", EDU, "--quiet"])
    assert (silent.exit_code, silent.output) == (0, "")
    bad = CliRunner().invoke(cli, ["replay", str(trace), "--server-command", server("Corrupting"), "--quiet"])
    assert isinstance(bad.exception, VerdictError)
    assert "DMA_WRITE" in bad.exception.evidence


def test_a_difference_names_records_of_the_trace_that_it_is_told_of() -> None:
    """Of a trace that was reduced: the record itself, and the one before what was not recorded."""
    what = What.INTERRUPT_UNEXPECTED
    found = Difference(what, record=7, after=5).renumbered({5: 2, 7: 3})
    assert found == Difference(what, record=3, after=2)
    assert Difference(what, record=7, after=5).renumbered({}) == Difference(what, record=0)


def test_an_access_that_touches_a_byte_which_may_differ_is_not_compared() -> None:
    for first, last in ((8, 8), (8, 11), (9, 10)):
        ignored = Ignored(places=((0, first, last),))
        for offset in range(4, 16):
            for size in (1, 2, 4, 8):
                asked = DecodedMessage("REGION_READ", "request", region=0, offset=offset, size=size)
                touches = bool({*range(offset, offset + size)} & {*range(first, last + 1)})
                assert ignored.value(asked) is touches, (first, last, offset, size)
                assert not ignored.value(replace(asked, region=1))
