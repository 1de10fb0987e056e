"""`trace stats`: what is counted, how fast and slow it was, and what is odd is named with its records."""

from __future__ import annotations

import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each
from tests.interposer_bench import answer, read, request
from tests.pages import happened
from tests.traced import BOTH, CAUSES, DOWN, REGISTERS, UP, Written, flag_at_work
from tests.vhost.between import B, Between, R, V, channel
from userdev.errors import UserError
from userdev.relay.direction import Direction
from userdev.trace import TraceReader, TraceWriter, View
from userdev.trace.exchanges import Exchange
from userdev.trace.stats import Stats, report
from userdev.trace.stats.latencies import Latencies
from userdev.trace.stats.stats import MOST_PENDING
from userdev.trace.view import TraceView, opened
from vfio_user.cli import cli, vhost_user_cli
from vfio_user.interposer.trace.files import NAME, PROTOCOL
from vfio_user.interposer.trace.registers import HEADER_KEY
from vfio_user.page.document import write_page
from vfio_user.traces import open_trace, shown_by
from vfio_user.wire import DRAFT_V6, Command, Message
from vfio_user.wire import layouts as at
from vhost_user.wire import acknowledge, encode_request
from vhost_user.wire.payloads import Config, VringState


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, ["trace", "stats", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.output


def stats(path: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(path, "--json", *options))
    return found


def found(path: Path, kind: str, *options: str) -> list[dict[str, Any]]:
    return [one for one in stats(path, *options)["findings"] if one["kind"] == kind]


def exchanges(view: TraceView) -> list[Exchange]:
    return [event for event in view.events() if isinstance(event, Exchange)]


# -- counted


def test_messages_registers_and_interrupts_are_counted(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 30)
    counted = stats(tmp_path / "t")
    assert {row["message"]: row["count"] for row in counted["messages"]} == {"REGION_WRITE": 60, "REGION_READ": 60}
    rows = {row["register"]: (row["reads"], row["writes"], row["last"]) for row in counted["registers"]}
    assert rows == {"up": (0, 30, 0x5A), "down": (0, 30, 0x5A), "causes": (60, 0, 0)}
    assert [(row["interrupt"], row["count"]) for row in counted["interrupts"]] == [("MSIX 0", 30)]
    assert counted["findings"] == []


def test_registers_without_names_are_told_by_where_they_are(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        trace.read(0x10, 1)
        trace.read(0x10, 1, width=2)
        trace.read(0x10, 1, region=7)
    rows = {(row["where"], row["bytes"]): row["register"] for row in stats(tmp_path / "t")["registers"]}
    assert rows == {("BAR0+0x10", 4): "", ("BAR0+0x10", 2): "", ("CONFIG+0x10", 4): "bar0"}


def test_names_that_are_given_are_taken_instead_of_the_traces_own(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 1)
    (tmp_path / "map.yaml").write_text("- {region: 0, offset: 0x24, name: status}\n")
    names = {row["register"] for row in stats(tmp_path / "t", "--registers", str(tmp_path / "map.yaml"))["registers"]}
    assert names == {"status", ""}


def test_the_times_of_requests_are_those_between_them_and_their_replies(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 20)
    took = [one.latency for one in exchanges(open_trace(tmp_path / "t")) if one.place.register == "causes"]
    [row] = [row for row in stats(tmp_path / "t")["registers"] if row["register"] == "causes"]
    assert row["longest_ns"] == max(each for each in took if each is not None)
    assert 0 < row["median_ns"] <= row["p90_ns"] <= row["p99_ns"] <= row["longest_ns"]


@given(st.lists(st.integers(0, 1 << 40), min_size=1), st.floats(0, 1))
def test_a_percentile_is_right_to_within_one_percent(times: list[int], share: float) -> None:
    latencies = Latencies()
    for ns in times:
        latencies.add(ns)
    exact = next(ns for place, ns in enumerate(sorted(times), 1) if place >= share * len(times))
    told = latencies.percentile(share)
    assert told is not None
    assert exact <= told <= min(exact * 1.01, max(times))


def test_percentiles_of_several_are_those_of_all_of_them(tmp_path: Path) -> None:
    parts = Latencies(), Latencies()
    whole = Latencies()
    for number in range(1, 1000):
        parts[number % 2].add(number)
        whole.add(number)
    parts[0].update(parts[1])
    assert [parts[0].percentile(share) for share in (0.1, 0.5, 0.99)] == [
        whole.percentile(share) for share in (0.1, 0.5, 0.99)
    ]
    assert (parts[0].count, parts[0].longest) == (999, 999)


def test_a_message_that_is_an_interrupt_is_one_behind_the_clients_last_write(tmp_path: Path) -> None:
    """As the draft has them."""

    def asked(command: Command, payload: bytes) -> Message:
        return Message(1, DRAFT_V6.number(command), payload=payload)

    writer = TraceWriter(tmp_path / "t", NAME, {"dialect": DRAFT_V6.name, HEADER_KEY: REGISTERS})
    write = at.REGION_ACCESS.pack(UP, 0, 4, tail=bytes(4))
    for _ in range(2):
        writer.message(Direction.TO_SERVER, BOTH, asked(Command.REGION_WRITE, write))
        writer.message(Direction.TO_CLIENT, BOTH, asked(Command.VM_INTERRUPT, at.VM_INTERRUPT.pack(3)))
    writer.close()
    [row] = stats(tmp_path / "t")["interrupts"]
    assert (row["interrupt"], row["count"]) == ("vector 3", 2)
    with opened(tmp_path / "t", PROTOCOL) as view:
        counted = Stats(view, shown_by(view.header).reading())
        counted.take()
    [followed] = counted.followed.values()
    assert (followed.by, followed.nearest) == ({"vector 3": 1}, {"vector 3": 2})


def test_a_message_that_was_changed_on_the_way_is_counted_once(tmp_path: Path) -> None:
    """It has two records, as it came and as it went on; what the guest saw is what was sent to it."""
    asked = read(0, CAUSES)
    came, went = answer(asked, b"\1\0\0\0"), answer(asked, b"\7\0\0\0")
    both = View.RECEIVED | View.SENT
    with Written(tmp_path / "t", REGISTERS) as trace:
        record = trace.writer.message
        record(Direction.TO_SERVER, View.RECEIVED, asked)
        sent = record(Direction.TO_SERVER, View.SENT, asked)
        record(Direction.TO_CLIENT, both, came, sent)
        again = record(Direction.TO_SERVER, both, asked)
        record(Direction.TO_CLIENT, View.RECEIVED, came, again)
        record(Direction.TO_CLIENT, View.SENT, went, again)
    [row] = stats(tmp_path / "t")["registers"]
    assert (row["reads"], row["last"]) == (2, 7)


def test_what_the_interposer_asks_itself_is_answered_by_a_reply_that_goes_no_further(tmp_path: Path) -> None:
    """It has no other: a client's request would be unanswered, or not passed on."""
    asked = read(0, CAUSES)
    with Written(tmp_path / "t", REGISTERS) as trace:
        sent = trace.writer.message(Direction.TO_SERVER, View.SENT, asked)
        trace.writer.message(Direction.TO_CLIENT, View.RECEIVED, answer(asked, b"\5\0\0\0"), sent)
    found = stats(tmp_path / "t")
    assert [(row["reads"], row["last"]) for row in found["registers"]] == [(1, 5)]
    assert found["findings"] == []


def test_a_place_of_a_frame_buffer_is_not_kept_for_each_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.interposer.trace.reading.MOST_PLACES", 10)
    with Written(tmp_path / "t", REGISTERS) as trace:
        for offset in range(0x1000, 0x1100, 4):
            trace.write(offset, 0)
        trace.read(CAUSES, 1)
    counted = stats(tmp_path / "t")
    assert len(counted["registers"]) == 11
    assert {row["message"]: row["count"] for row in counted["messages"]} == {
        "REGION_WRITE": 10,
        "REGION_WRITE BAR0 elsewhere": 54,
        "REGION_READ": 1,
    }


def test_nor_for_each_pixel_that_came_with_others_in_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfio_user.interposer.trace.reading.MOST_PLACES", 11)
    entries = [at.WRITE_MULTI_ENTRY.struct.pack(offset, 0, 4, bytes(4)) for offset in range(0x1000, 0x1100, 4)]
    with Written(tmp_path / "t", REGISTERS) as trace:
        for some in (entries[first : first + 4] for first in range(0, len(entries), 4)):
            trace.ask(request(Command.REGION_WRITE_MULTI, at.WRITE_MULTI.pack(4, tail=b"".join(some))), bytes(8))
    with opened(tmp_path / "t", PROTOCOL) as reader:
        counted = Stats(reader, shown_by(reader.header, None).reading())
        counted.take()
        found = report(counted)
    assert len(counted.tallies) == 12, "ten, elsewhere, and the messages themselves"
    assert len(found.registers.rows) == 10
    assert {row["message"]: row["count"] for row in found.messages.rows} == {
        "REGION_WRITE_MULTI": 16,
        "REGION_WRITE BAR0 elsewhere posted": 54,
    }
    write_page(tmp_path / "t", tmp_path / "page.html")
    multi = [each for each in happened(tmp_path / "page.html") if each.title.startswith("REGION_WRITE_MULTI")]
    assert len(multi) == 16


def test_writes_that_come_in_one_message_are_their_registers(tmp_path: Path) -> None:
    """As QEMU writes to servers that take several at once; the message itself is one."""
    writes = [(UP, 0, 4, b"\x5a\0\0\0"), (DOWN, 0, 4, b"\x10\0\0\0"), (UP, 0, 2, b"\1\0")]
    entries = b"".join(at.WRITE_MULTI_ENTRY.struct.pack(*write) for write in writes)
    with Written(tmp_path / "t", REGISTERS) as trace:
        for _ in range(30):
            trace.ask(request(Command.REGION_WRITE_MULTI, at.WRITE_MULTI.pack(3, tail=entries)), at.WRITE_MULTI.pack(3))
            trace.interrupt()
    counted = stats(tmp_path / "t")
    rows = {(row["register"], row["bytes"]): (row["writes"], row["last"]) for row in counted["registers"]}
    assert rows == {("up", 4): (30, 0x5A), ("down", 4): (30, 0x10), ("up", 2): (30, 1)}
    assert {row["message"]: row["count"] for row in counted["messages"]} == {"REGION_WRITE_MULTI": 30}


@for_each([b"", b"\1", bytes(23), bytes(25)])
def test_several_writes_that_are_cut_are_one_message(tail: bytes, tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        trace.ask(request(Command.REGION_WRITE_MULTI, at.WRITE_MULTI.pack(1, tail=tail)), 22)
        trace.read(CAUSES, 1)
    rows = {row["message"]: row["errors"] for row in stats(tmp_path / "t")["messages"]}
    assert rows == {"REGION_WRITE_MULTI": 1, "REGION_READ": 0}


# -- odd


def test_a_guest_that_reads_the_same_status_again_and_again_spins(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.write(UP, 1)
        first = trace.read(CAUSES, 0x80)
        for _ in range(5_000):
            last = trace.read(CAUSES, 0x80)
        trace.read(CAUSES, 0)
    [spin] = found(tmp_path / "t", "spinning")
    assert spin["records"] == [first, last]
    assert re.search(r"causes .*5,001 times .*0x80", spin["text"])


def test_reads_between_which_something_is_written_are_work(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for _ in range(500):
            trace.write(UP, 1)
            for _ in range(4):
                trace.read(CAUSES, 0x80)
    assert not found(tmp_path / "t", "spinning")


def test_a_read_that_is_stale_once_in_fifty_is_named_with_its_record(tmp_path: Path) -> None:
    records = flag_at_work(tmp_path / "t", 50, stale=33)
    [seldom] = found(tmp_path / "t", "seldom")
    assert seldom["records"] == [records["stale"]]
    assert re.search(r"causes reads 0x0 .* 0x5a to down, and 0x5a in 1 of 50", seldom["text"])


def test_a_register_that_once_does_not_read_back_what_was_written_is_named(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for number in range(100):
            trace.write(DOWN, number)
            last = trace.read(DOWN, number if number != 70 else number - 1)
            if number == 70:
                wrong = last
    [odd] = found(tmp_path / "t", "not read back")
    assert odd["records"] == [wrong]


def test_an_interrupt_that_was_lost_once_in_two_hundred_is_named_with_the_write(tmp_path: Path) -> None:
    """And with no other register's, though all of them were written as often; of as many writes as its table has."""
    records = flag_at_work(tmp_path / "t", 201, lost=99)
    [lost] = found(tmp_path / "t", "no interrupt")
    assert lost["records"] == [records["lost"]]
    assert re.search(r"MSIX 0 .* up but 1 of 201$", lost["text"])
    with Written(tmp_path / "open", REGISTERS) as trace:  # nobody knows whether the last one's would have come
        for number in range(201):
            trace.write(UP, 1, interrupt=number not in (99, 200))
    [lost] = found(tmp_path / "open", "no interrupt")
    assert re.search(r"MSIX 0 .* up but 1 of 200, without the last", lost["text"])


def test_of_too_many_registers_that_were_written_the_one_is_given_up_that_was_written_longest_ago(
    tmp_path: Path,
) -> None:
    """What is written again and again is waited for, however many were written once."""
    with Written(tmp_path / "t") as trace:
        for number in range(2 * MOST_PENDING):
            trace.write(0x1000 + 4 * number, 1)
        written = [trace.write(0x60, 1, interrupt=number != 50) for number in range(101)]
    [told] = found(tmp_path / "t", "no interrupt")
    assert told["records"] == [written[50]]


def test_latencies_together_have_the_longest_of_all_and_as_many() -> None:
    for times in permutations(((), (5,), (900, 30), (70, 80, 90))):
        together = Latencies()
        for some in times:
            one = Latencies()
            for ns in some:
                one.add(ns)
            together.update(one)
        assert (together.longest, together.count) == (900, 6), times
        assert [together.percentile(share) for share in (0.0, 0.5, 1.0)] == [5, 70, 900], times


def test_an_interrupt_is_expected_behind_the_register_that_it_comes_behind_most_often(tmp_path: Path) -> None:
    """Not behind the first that it came behind."""
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.write(DOWN, 1, interrupt=True)
        lost = []
        for number in range(201):
            up = trace.write(UP, 0x5A, interrupt=number not in (50, 99))
            trace.write(DOWN, 0x5A)
            lost += [up] * (number in (50, 99))
    [told] = found(tmp_path / "t", "no interrupt")
    assert told["records"] == lost
    assert re.search(r"MSIX 0 .* up but 2 of 20", told["text"])


def test_interrupts_of_requests_that_are_under_way_together_are_not_lost(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        for number in range(100):
            for _ in range(1 + (number % 20 == 7)):
                trace.write(UP, 1)
            for _ in range(1 + (number % 20 == 7)):
                trace.interrupt()
    assert not found(tmp_path / "t", "no interrupt")


def test_errors_are_named_with_what_was_asked(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.read(CAUSES, 0)
        wrong = trace.read(CAUSES, None, errno=22)
    [error] = found(tmp_path / "t", "error")
    assert error["records"] == [wrong]
    assert re.search(r"REGION_READ causes .*EINVAL.* 1 of 2", error["text"])


def test_accesses_where_no_register_is_are_named(tmp_path: Path) -> None:
    """Only in regions whose registers have names: of others nobody knows."""
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.read(0x100, 0xFFFFFFFF)
        trace.read(0x100, 0, region=1)
        trace.read(0x60, 0)
    [odd] = found(tmp_path / "t", "not modelled")
    assert "BAR0+0x100" in odd["text"]


def test_a_request_without_an_answer_is_named(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        lost = trace.read(CAUSES, None)
        trace.write(UP, 1, posted=True)
        trace.read(CAUSES, 0)
    [odd] = found(tmp_path / "t", "unanswered")
    assert odd["records"] == [lost]


# -- read


def test_exchanges_have_the_value_that_was_written_or_read(tmp_path: Path) -> None:
    with Written(tmp_path / "t", REGISTERS) as trace:
        trace.write(UP, 0x1234, posted=True)
        trace.read(CAUSES, 0x99)
        trace.dma_read(0x4000, b"abcd")
    told = [(one.place.title, one.value, bool(one.reply)) for one in exchanges(open_trace(tmp_path / "t"))]
    assert told == [("REGION_WRITE up", 0x1234, False), ("REGION_READ causes", 0x99, True), ("DMA_READ", None, True)]


def test_a_growing_file_is_read_on_from_where_it_ended(tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 10)
    whole = (tmp_path / "t").read_bytes()
    growing = tmp_path / "growing"
    growing.write_bytes(whole[:1001])
    with open(growing, "rb") as stream:
        reader = TraceReader(stream, "growing", PROTOCOL)
        counted = Stats(reader, shown_by(reader.header).reading())
        counted.take()
        assert "cut off" in reader.truncated
        with open(growing, "ab") as more:
            more.write(whole[1001:])
        counted.take()
    assert not reader.truncated
    told = report(counted).json()
    assert {**told, "file": str(tmp_path / "t")} == stats(tmp_path / "t")


@for_each([1, 30, 200])
def test_a_trace_that_was_cut_off_is_counted_up_to_there(cut: int, tmp_path: Path) -> None:
    flag_at_work(tmp_path / "t", 10)
    data = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(data[:-cut])
    counted = stats(tmp_path / "t")
    assert "cut off" in counted["truncated"]
    assert 40 > sum(row["count"] for row in counted["messages"]) >= 30


def test_exchanges_are_what_the_lines_say(tmp_path: Path) -> None:
    """The two ways to read a trace, fast and whole, agree on every request."""
    flag_at_work(tmp_path / "t", 5, stale=2, lost=3)
    view = open_trace(tmp_path / "t")
    by_lines = {
        line.entry.number: (line.decoded.title, line.answer and line.answer.entry.number)
        for line in view.lines()
        if line.decoded is not None and line.decoded.kind == "request"
    }
    assert {one.number: (one.place.title, one.reply) for one in exchanges(view)} == by_lines


def test_bytes_that_are_no_message_are_counted(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        trace.writer.raw(Direction.TO_SERVER, b"\xff" * 30)
    [odd] = found(tmp_path / "t", "no messages")
    assert "30" in odd["text"]


# -- vhost-user


def test_messages_of_vhost_user_are_counted_by_ring(tmp_path: Path) -> None:
    with Between(tmp_path / "t") as between:
        between.negotiate(V.VERSION_1 | V.PROTOCOL_FEATURES | V(1 << 6))
        between.ask(R.GET_CONFIG, Config(0, 4, 0, bytes(4)), Config(0, 4, 0, b"\1\2\3\4"))
        between.tell(R.SET_VRING_NUM, VringState(1, 256))
        between.acknowledged(R.SET_VRING_ENABLE, VringState(1, 1), error=22)
    result = CliRunner().invoke(vhost_user_cli, ["trace", "stats", str(tmp_path / "t"), "--json"])
    counted = json.loads(result.output)
    rows = {row["message"]: (row["count"], row["errors"]) for row in counted["messages"]}
    assert rows["SET_VRING_NUM ring 1 posted"] == (1, 0)
    assert rows["SET_VRING_ENABLE ring 1"] == (1, 1)
    [config] = counted["registers"]
    assert (config["where"], config["reads"], config["last"]) == ("config+0x0", 1, 0x04030201)
    assert [one["kind"] for one in counted["findings"]] == ["error"]


def test_the_back_ends_channel_is_counted_too(tmp_path: Path) -> None:
    with Between(tmp_path / "t") as between:
        between.negotiate(V.VERSION_1 | V.PROTOCOL_FEATURES | V(1 << 6))
        with channel(between) as (front_end, back_end):
            back_end.send(encode_request(B.CONFIG_CHANGE_MSG, need_reply=True))
            front_end.receive()
            front_end.send(acknowledge(B.CONFIG_CHANGE_MSG))
            back_end.receive()
    rows = {row["message"]: row["count"] for row in stats(tmp_path / "t")["messages"]}
    assert rows["BACKEND_CONFIG_CHANGE_MSG"] == 1


# -- shown


def test_people_get_tables_with_the_most_frequent_first(tmp_path: Path) -> None:
    records = flag_at_work(tmp_path / "t", 50, stale=33, polls=3)
    lines = run(tmp_path / "t").splitlines()
    [registers] = [number for number, line in enumerate(lines) if line.startswith("register")]
    assert lines[registers + 1].split()[:3] == ["causes", "BAR0+0x24", "4"]
    assert any(f"record {records['stale']}" in line for line in lines)


def test_what_only_this_device_has_stands_before_what_all_have(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        for _ in range(10):
            trace.read(0, 1, region=7)
        trace.read(0x30, 1)
    assert [row["where"] for row in stats(tmp_path / "t")["registers"]] == ["BAR0+0x30", "CONFIG+0x0"]


def test_long_tables_are_cut_and_say_so(tmp_path: Path) -> None:
    with Written(tmp_path / "t") as trace:
        for offset in range(0, 200, 4):
            trace.read(offset, 0)
    with Written(tmp_path / "odd") as trace:
        for offset in range(0, 4 * 40, 4):
            trace.read(offset, None, errno=22)
    assert len(re.findall("^error: ", run(tmp_path / "odd"), re.MULTILINE)) == 30
    assert "10 more" in run(tmp_path / "odd")
    assert len(re.findall("^error: ", run(tmp_path / "odd", "--all"), re.MULTILINE)) == 40
    assert "30 more" in run(tmp_path / "t")
    assert "more" not in run(tmp_path / "t", "--all")
    assert "BAR0+0xc4" in run(tmp_path / "t", "--all")


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\x7fELF and so on")
    for wrong in (tmp_path / "t", tmp_path / "missing", tmp_path):
        with pytest.raises(UserError):
            run(wrong)


def test_no_record_can_be_read_of_an_empty_trace(tmp_path: Path) -> None:
    with Written(tmp_path / "t"):
        pass
    assert stats(tmp_path / "t")["messages"] == []
    assert run(tmp_path / "t")


# -- watched
