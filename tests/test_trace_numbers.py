"""One trace whose every number is known: each way to look at it has the same moments, durations, rates and bytes."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tests.interposer_bench import read
from tests.pages import happened
from tests.traced import CAUSES, DOWN, REGISTERS, UP, Written
from userdev.relay.direction import Direction
from userdev.trace.stats.tally import Tally
from userdev.trace.writer import TraceWriter
from vfio_user.cli import cli
from vfio_user.cli._trace_stats import FINDINGS, ROWS
from vfio_user.interposer.trace.files import NAME

STEP = 1_000_000
"""ns between two records."""
BEGAN, REALTIME = 5_000_000_000, 1_790_000_000_000_000_000


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Record k came k - 1 ms behind the header, which is the first: what each is says `RECORDS`."""
    now = itertools.count(BEGAN, STEP)
    monkeypatch.setattr("userdev.trace.writer.time.monotonic_ns", lambda: next(now))
    monkeypatch.setattr("userdev.trace.writer.time.time_ns", lambda: REALTIME)
    with Written(tmp_path / "t", REGISTERS) as written:
        written.write(UP, 0x5A, interrupt=True)
        written.read(CAUSES, 0x5A)
        written.write(DOWN, 0x5A)
        written.dma_read(0x1000, b"abcd")
        written.read(CAUSES, None, errno=22)
        written.writer.raw(Direction.TO_SERVER, b"\xff" * 30)
        written.writer.raw(Direction.TO_CLIENT, b"\xff" * 12)
        written.writer.note("mark")
    return tmp_path / "t"


@dataclass(frozen=True)
class Record:
    """What a record is: its direction, of a request how long it took in ms, of a reply its request."""

    what: str
    to_server: bool = True
    took: int | None = None
    request: int = 0


RECORDS = {
    1: Record("trace"),
    2: Record("REGION_WRITE", took=2),
    3: Record("interrupt"),
    4: Record("REGION_WRITE", False, request=2),
    5: Record("REGION_READ", took=1),
    6: Record("REGION_READ", False, request=5),
    7: Record("REGION_WRITE", took=1),
    8: Record("REGION_WRITE", False, request=7),
    9: Record("DMA_READ", False, took=1),
    10: Record("DMA_READ", request=9),
    11: Record("REGION_READ", took=1),
    12: Record("REGION_READ", False, request=11),
    13: Record("bytes"),
    14: Record("bytes", False),
    15: Record("mark"),
}
REQUESTS = {number: record for number, record in RECORDS.items() if record.took is not None}


def say(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, ["trace", *map(str, words)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def lines(path: Path, *words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in say("show", path, "--json", *words).splitlines()]


def test_a_line_has_the_moment_of_its_record_and_how_long_a_reply_took(trace: Path) -> None:
    text = say("show", trace).splitlines()
    for line, told, (number, record) in zip(text, lines(trace), list(RECORDS.items())[-len(text) :], strict=True):
        assert (told["record"], told["seconds"]) == (number, (number - 1) / 1000)
        assert line.split()[:2] == [str(number), f"{(number - 1) / 1000:.6f}"]
        assert told.get("request", 0) == record.request, number
        took = REQUESTS[record.request].took if record.request else None
        assert told.get("latency") == (took and took / 1000), number
        assert (f"[{took or 0}000.0 us, to record {record.request}]" in line) is (took is not None), number
        if record.took:
            assert told["answer"]["latency"] == record.took / 1000, number
        if "direction" in told:
            assert told["direction"] == ("to-server" if record.to_server else "to-client"), number


def test_a_moment_is_within_what_begins_or_ends_with_it(trace: Path) -> None:
    for number in list(RECORDS)[1:]:
        moment = str((number - 1) / 1000)
        numbers = [[line["record"] for line in lines(trace, option, moment)] for option in ("--since", "--until")]
        assert numbers[0] == list(range(number, 16))
        assert numbers[1][-1] == number
        assert [line["record"] for line in lines(trace, "--since", moment, "--until", moment)] == [number]


def test_an_export_for_programs_is_what_is_shown(trace: Path, tmp_path: Path) -> None:
    say("export", trace, "--format", "json", "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text()) == lines(trace)


def test_a_picture_has_each_request_at_its_moment_in_microseconds(trace: Path, tmp_path: Path) -> None:
    say("export", trace, "--format", "perfetto", "-o", tmp_path / "out")
    events = json.loads((tmp_path / "out").read_text())["traceEvents"]
    bars = {event["args"]["record"]: (event["ts"], event["dur"]) for event in events if event["ph"] == "X"}
    assert bars == {number: ((number - 1) * 1000, (record.took or 0) * 1000) for number, record in REQUESTS.items()}
    instants = [(event["name"].split()[0], event["ts"]) for event in events if event["ph"] == "i"]
    assert instants == [("interrupt", 2000), ("30", 12000), ("12", 13000), ("mark", 14000)]


def packets(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Of each packet the moment, its flags (1 came in, 2 went out) and its bytes."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 6:
            high, low, length = struct.unpack_from("<III", data, at + 12)
            flags = struct.unpack_from("<I", data, at + 28 + length + -length % 4 + 4)[0]
            yield high << 32 | low, flags, data[at + 28 : at + 28 + length]
        at += size


def test_packets_have_the_time_of_the_day_and_the_way_that_they_went(trace: Path, tmp_path: Path) -> None:
    """To the server is out, as whoever captures at a client has it."""
    say("export", trace, "--format", "pcapng", "-o", tmp_path / "out")
    found = {}
    for when, flags, data in packets((tmp_path / "out").read_bytes()):
        _, _, direction, _, _, _, _, _, number, request = struct.unpack_from(">4sBBBBBBHII", data)
        found[number] = when - REALTIME, flags, direction, request
    assert found == {
        number: ((number - 1) * STEP, 2 if record.to_server else 1, int(not record.to_server), record.request)
        for number, record in RECORDS.items()
        if number > 1
    }


def test_numbers_are_those_of_all_records(trace: Path) -> None:
    told = json.loads(say("stats", trace, "--json"))
    assert (told["records"], told["seconds"]) == (15, 0.014)
    for row in told["messages"]:
        mine = [record for record in REQUESTS.values() if record.what == row["message"]]
        assert row["count"] == len(mine)
        assert row["per_second"] == round(len(mine) / 0.014, 3)
        assert row["longest_ns"] == max(record.took or 0 for record in mine) * STEP
        assert row["errors"] == (row["message"] == "REGION_READ")
    [interrupt] = told["interrupts"]
    assert (interrupt["count"], interrupt["longest_ns"], interrupt["per_second"]) == (1, STEP, round(1 / 0.014, 3))
    assert {one["text"] for one in told["findings"] if one["kind"] == "no messages"} == {
        "42 bytes passed outside of any"
    }
    heading = say("stats", trace).splitlines()[0]
    assert heading == "15 records of vfio-user in 0.014 s"


def test_a_page_has_each_request_at_its_moment_and_as_long_as_it_took(trace: Path, tmp_path: Path) -> None:
    CliRunner().invoke(cli, ["show", str(trace), "--no-open", "-o", str(tmp_path / "page.html")])
    told = {one.record: (round(one.when * 1000), round(one.lasted * 1000)) for one in happened(tmp_path / "page.html")}
    assert told == {number: (number - 1, record.took or 0) for number, record in RECORDS.items() if not record.request}


def test_what_a_register_had_last_is_what_the_last_access_had(tmp_path: Path) -> None:
    """A read, or a write, of whichever the first was."""
    for index, order in enumerate(itertools.product("rw", repeat=3)):
        path = tmp_path / str(index)
        with Written(path, REGISTERS) as written:
            for value, access in enumerate(order, 1):
                (written.read if access == "r" else written.write)(UP, value)
        [row] = json.loads(say("stats", path, "--json"))["registers"]
        assert (row["last"], row["reads"], row["writes"]) == (3, order.count("r"), order.count("w")), order


def test_a_trace_is_cut_off_within_the_record_that_is_not_all_there(tmp_path: Path) -> None:
    """At any of its bytes, be it in the length before it."""
    ends: list[int] = []
    writer = TraceWriter(tmp_path / "t", NAME, {"dialect": "current"})
    for _ in range(3):
        writer.flush()
        ends.append(writer.size)
        writer.message(Direction.TO_SERVER, 3, read(0, 0, 4))
    writer.close()
    whole = (tmp_path / "t").read_bytes()
    for size in range(ends[0], len(whole) + 1):
        (tmp_path / "cut").write_bytes(whole[:size])
        record = 1 + sum(end <= size for end in ends)
        told = json.loads(say("stats", tmp_path / "cut", "--json"))
        assert told["truncated"] == ("" if size in (*ends, len(whole)) else f"cut off within record {record}"), size
        assert told["records"] == (record if size == len(whole) else record - 1), size


def test_all_rows_and_all_that_is_odd_are_there_for_who_wants_all(tmp_path: Path) -> None:
    """Else as many as fit, and how many more there are; at just so many there are no more."""
    for more in (0, 1, 7):
        path, count = tmp_path / str(more), max(ROWS, FINDINGS) + more
        with Written(path) as written:
            for number in range(count):
                written.read(4 * number, None, errno=22)
        whole, some = say("stats", path, "--all").splitlines(), say("stats", path).splitlines()
        assert sum(line.startswith("error: ") for line in whole) == count
        assert sum("+0x" in line and not line.startswith("error") for line in whole) == count
        assert sum(line.startswith("error: ") for line in some) == FINDINGS
        assert [line for line in some if line.startswith("...")] == [
            f"... and {left} more: --all" for left in (count - ROWS, count - FINDINGS) if left
        ]
        assert not [line for line in whole if line.startswith("...")]


def test_reads_are_a_run_while_they_give_the_same_and_nothing_is_written() -> None:
    """Each read is (its value, how many writes there were before); a run is (its value, first record, last, reads)."""
    for reads, longest in (
        ([(1, 0)] * 3, (1, 0, 2, 3)),
        ([(1, 0), (2, 0), (2, 0)], (2, 1, 2, 2)),
        ([(1, 0), (1, 0), (1, 5), (1, 5), (1, 5)], (1, 2, 4, 3)),
        ([(1, 0), (1, 1), (1, 2)], (1, 0, 0, 1)),
        ([(1, 0), (1, 0), (2, 0), (1, 0), (1, 0)], (1, 0, 1, 2)),
        ([(None, 0)] * 3, (None, 0, 0, 1)),
    ):
        tally = Tally()
        for number, (value, writes) in enumerate(reads):
            exchange: Any = SimpleNamespace(value=value, number=number, time=number * 10)
            tally.ran(exchange, writes)
        run = tally.longest_run
        assert (run.value, run.first, run.last, run.count) == longest, reads
        assert (run.began, run.ended) == (run.first * 10, run.last * 10), reads
