"""Where what is odd about a trace begins, and what of two traces differs: at the edges, and in both directions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.interposer_bench import answer, read, request, write
from tests.test_trace_diff import diff
from tests.test_trace_stats import found, run, stats
from tests.traced import BOTH, CAUSES, DOWN, REGISTERS, UP, Written
from userdev.relay.direction import Direction
from userdev.trace import View
from userdev.trace.stats.findings import ENOUGH, SPIN_INTERVAL, SPINS
from userdev.trace.stats.tally import EXAMPLES
from vfio_user.cli._trace_stats import FINDINGS, ROWS
from vfio_user.wire import Command
from vfio_user.wire import layouts as at


def steady(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have each record of a trace come so many ns behind the one before."""
    now = itertools.count(1_000_000_000, step)
    monkeypatch.setattr("userdev.trace.writer.time.monotonic_ns", lambda: next(now))


@for_each_row([(*row, value) for row in [(SPINS - 1, False), (SPINS, True)] for value in [0, 0x80]])
def test_so_many_reads_are_a_loop(reads: int, spins: bool, value: int, tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for _ in range(reads):
            trace.read(CAUSES, value)
    assert bool(found(tmp_path / "t", "spinning")) is spins


@for_each_row([(SPIN_INTERVAL, True), (SPIN_INTERVAL * 6 // 5, False)])
def test_what_a_timer_reads_is_no_loop(
    interval: int, spins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steady(monkeypatch, interval // 2)  # a reply behind each
    with Written(tmp_path / "t", REGISTERS) as trace:
        for _ in range(2 * SPINS):
            trace.read(CAUSES, 0x80)
    assert bool(found(tmp_path / "t", "spinning")) is spins


def test_reads_that_are_refused_are_no_loop_of_reading_the_same(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for _ in range(2 * SPINS):
            trace.read(CAUSES, None, errno=22)
    assert not found(tmp_path / "t", "spinning")


def test_what_is_refused_again_and_again_hides_no_loop_of_reading_the_same(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for value, reads in ((1, SPINS + 5), (None, 2 * SPINS), (2, SPINS)):
            for _ in range(reads):
                trace.read(CAUSES, value, errno=22 if value is None else 0)
    [odd] = found(tmp_path / "t", "spinning")
    assert odd["text"].startswith(f"causes was read {SPINS + 5} times and gave 0x1 each time")


def test_the_longest_loop_is_told_first(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for place, reads in ((CAUSES, SPINS + 5), (DOWN, SPINS + 50)):
            for _ in range(reads):
                trace.read(place, 1)
    assert [one["text"].split()[0] for one in found(tmp_path / "t", "spinning")] == ["down", "causes"]


@for_each_row(
    [
        (*row, kind)
        for row in [
            (ENOUGH - 1, 1, False),
            (ENOUGH, 1, True),
            (ENOUGH, 2, True),
            (ENOUGH, 3, False),
            (ENOUGH, 0, False),
        ]
        for kind in ["seldom", "not read back", "no interrupt"]
    ]
)
def test_what_is_usual_has_happened_often_enough_and_nearly_each_time(
    total: int, odd: int, told: bool, kind: str, tmp_path: Path
) -> None:
    """`total` times, `odd` of them otherwise: those between, so that another write stands behind each."""
    with Written(tmp_path / "t", REGISTERS) as trace:
        for number in range(total + (kind == "no interrupt")):  # behind the last none comes, nor is known to be lost
            is_odd = 3 <= number < 3 + odd
            if kind == "seldom":
                trace.write(DOWN, 0x5A)
                trace.read(CAUSES, int(is_odd))
            elif kind == "not read back":
                trace.write(DOWN, number + 1)
                trace.read(DOWN, number + (not is_odd))
            else:
                trace.write(UP, 0x5A, interrupt=not is_odd and number < total)
    assert bool(found(tmp_path / "t", kind)) is told


@for_each([1, 2, 4], [False, True])
def test_a_register_is_read_back_at_the_width_that_was_written(width: int, narrower: bool, tmp_path: Path) -> None:
    """What was written in pieces of another size says nothing of it."""
    with Written(tmp_path / "t", REGISTERS) as trace:
        for number in range(2 * ENOUGH):
            trace.write(DOWN, number, width=8 if narrower else width)
            trace.read(DOWN, number + (number == 3), width=width)
    assert bool(found(tmp_path / "t", "not read back")) is not narrower


@for_each(["note", "raw"])
def test_a_trace_lasts_to_whatever_is_its_last(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady(monkeypatch, 1_000_000_000)
    with Written(tmp_path / "t") as trace:
        if last == "note":
            trace.writer.note("mark")
        else:
            trace.writer.raw(Direction.TO_SERVER, b"no message")
    assert stats(tmp_path / "t")["seconds"] == 1


@for_each(["error", "unanswered", "not passed on"])
def test_of_what_happened_often_a_few_records_are_named_and_all_are_counted(kind: str, tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        numbers = [
            trace.read(CAUSES, None, errno=22)
            if kind == "error"
            else trace.ask(read(0, CAUSES), None)
            if kind == "unanswered"
            else trace.ask(read(0, CAUSES), 22, replied=View.RECEIVED)
            for _ in range(EXAMPLES + 2)
        ]
    [odd] = found(tmp_path / "t", kind)
    assert odd["records"] == numbers[:EXAMPLES]
    assert str(EXAMPLES + 2) in odd["text"]


def test_a_request_that_did_not_go_on_as_it_was_is_not_waited_for(tmp_path: Path) -> None:
    """It was changed: what it became is the request that is answered, or not."""
    with Written(tmp_path / "t", REGISTERS) as trace:
        asked = read(0, CAUSES)
        trace.writer.message(Direction.TO_SERVER, View.RECEIVED, asked)
        sent = trace.writer.message(Direction.TO_SERVER, View.SENT, asked)
        trace.writer.message(Direction.TO_CLIENT, BOTH, answer(asked, b"\1\0\0\0"), sent)
    assert stats(tmp_path / "t")["findings"] == []


def test_a_read_that_was_refused_leaves_the_value_that_there_was(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.read(CAUSES, 7)
        trace.read(CAUSES, None, errno=22)
    [row] = stats(tmp_path / "t")["registers"]
    assert (row["reads"], row["last"]) == (2, 7)


# -- of two


INFO = request(Command.GET_INFO, at.DEVICE_INFO.pack(16, 0, 0, 0))
INFO_SAID = at.DEVICE_INFO.pack(16, 2, 9, 1)


@for_each(["a", "b"])
def test_that_another_message_was_refused_is_told_beside_what_it_said(refused_in: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Written(tmp_path / name, REGISTERS) as trace:
            trace.ask(INFO, 22 if name == refused_in else INFO_SAID)
    [odd] = diff(tmp_path / "a", tmp_path / "b")["differences"]
    assert f"EINVAL in {refused_in.upper()}" in odd["text"]
    assert "num_irqs=1" in odd["text"]


def errors_apart(trace: Written, one: bool) -> None:
    trace.read(CAUSES, None, errno=22 if one else 5)


def asked_by_the_server(trace: Written, one: bool) -> None:
    trace.read(CAUSES, 1)
    if one:
        trace.dma_read(0x1000, b"abcd")


def interrupted(trace: Written, one: bool) -> None:
    trace.read(CAUSES, 1)
    if one:
        trace.interrupt(3)


def written_and_refused(trace: Written, one: bool) -> None:
    trace.read(CAUSES, 1)
    if one:
        trace.ask(write(0, UP, bytes(4)), 22)


def asked_twice(trace: Written, one: bool) -> None:
    for _ in range(1 + one):
        trace.ask(INFO, INFO_SAID)


def written_twice(trace: Written, one: bool) -> None:
    for _ in range(1 + one):
        trace.write(UP, 1)


@for_each_row(
    [
        (errors_apart, "REGION_READ causes: EINVAL in A, EIO in B"),
        (asked_by_the_server, "DMA_READ"),
        (interrupted, "MSIX 3"),
        (written_and_refused, "REGION_WRITE up = 0x0 -> EINVAL"),
        (asked_twice, "DEVICE_GET_INFO"),
        (written_twice, "REGION_WRITE up = 0x1"),
    ]
)
def test_what_only_one_of_two_traces_has_is_told_whichever_that_is(happens: Any, told: str, tmp_path: Path) -> None:
    for name, one in (("a", True), ("b", False)):
        with Written(tmp_path / name, REGISTERS) as trace:
            happens(trace, one)
    for first, second in (("a", "b"), ("b", "a")):
        [odd, *_] = diff(tmp_path / first, tmp_path / second)["differences"]
        in_words = told.replace("EINVAL in A, EIO in B", "EIO in A, EINVAL in B") if first == "b" else told
        assert odd["text"].startswith(in_words)


@for_each(["a", "b"])
def test_what_only_one_has_is_told_with_its_request_and_its_reply(side: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Written(tmp_path / name, REGISTERS) as trace:
            if name == side:
                asked = trace.read(CAUSES, 1)
    [odd] = diff(tmp_path / "a", tmp_path / "b")["differences"]
    other = "b" if side == "a" else "a"
    assert (odd[f"{side}_record"], odd[f"{side}_reply"]) == (asked, asked + 1)
    assert (odd[f"{other}_record"], odd[f"{other}_reply"]) == (0, 0)


def test_a_table_says_how_many_more_there_are_only_where_there_are(tmp_path: Path) -> None:
    """Rows, and what is odd: each up to what is shown, and one more."""
    for most, errno in ((ROWS, 0), (FINDINGS, 22)):
        for more in (0, 1):
            with Written(tmp_path / "t") as trace:
                for number in range(most + more):
                    trace.read(4 * number, None if errno else 1, errno=errno)
            shown, everything = run(tmp_path / "t").splitlines(), run(tmp_path / "t", "--all").splitlines()
            told = [line for line in (shown[-1:] if errno else shown) if "--all" in line]
            assert told == ["... and 1 more: --all"] * more, (most, more)
            assert not any("--all" in line for line in everything), (most, more)


def test_a_register_is_odd_in_one_way_that_reads_otherwise_once_behind_the_same_write(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for number in range(100):
            trace.write(DOWN, 0x5A)
            trace.read(DOWN, 0x5A if number != 70 else 0)
    assert [one["kind"] for one in stats(tmp_path / "t")["findings"]] == ["seldom"]
