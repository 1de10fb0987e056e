"""`trace diff`: every difference between two traces is told with the records of both, and nothing that is only time."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import for_each_row
from tests.interposer_bench import request, write
from tests.traced import CAUSES, DOWN, REGISTERS, UP, Written, flag_at_work
from tests.vhost.between import Between, R, V
from userdev.errors import UserError, VerdictError
from userdev.trace.diff import alignment
from userdev.trace.diff.alignment import hunks
from userdev.transport import close_all
from vfio_user.cli import cli
from vfio_user.wire import Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqIndex
from vhost_user.wire.payloads import VringState


def diff(a: Path, b: Path, *options: str) -> dict[str, Any]:
    """What `--json` says; the exit status is that of whether there are differences."""
    result = CliRunner().invoke(cli, ["trace", "diff", str(a), str(b), "--json", *options])
    if result.exception is not None and not isinstance(result.exception, VerdictError):
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    assert bool(found["differences"]) == isinstance(result.exception, VerdictError)
    return found


def differences(a: Path, b: Path, *options: str) -> list[tuple[str, str, int, int]]:
    found = diff(a, b, *options)["differences"]
    return [(one["kind"], one["text"], one["a_record"], one["b_record"]) for one in found]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    flag_at_work(tmp_path / "good", 60)
    return tmp_path / "good"


# -- the same


def test_a_trace_does_not_differ_from_itself(good: Path) -> None:
    assert diff(good, good) == {"same": 240, "polled": 0, "differences": [], "truncated": {}}


def test_ids_and_times_are_no_difference(good: Path, tmp_path: Path) -> None:
    """And neither are the numbers of records: a note more is nobody's request."""
    with Written(tmp_path / "other", REGISTERS) as trace:
        trace._ids = 1000
        trace.writer.note("mark", text="here")
        for _ in range(60):
            trace.write(UP, 0x5A, interrupt=True)
            trace.read(CAUSES, 0x5A)
            trace.write(DOWN, 0x5A)
            trace.read(CAUSES, 0)
    assert not differences(good, tmp_path / "other")


def test_how_often_a_guest_polls_is_time(good: Path, tmp_path: Path) -> None:
    flag_at_work(tmp_path / "slow", 60, polls=7)
    found = diff(good, tmp_path / "slow")
    assert (found["differences"], found["polled"]) == ([], 60)
    polled = differences(good, tmp_path / "slow", "--polls")
    assert len(polled) == 60
    assert polled[0][:2] == ("repeats", "REGION_READ causes -> 0x5a: once in A, 7 times in B")


# -- what differs


def test_an_answer_that_differs_is_told_with_both_records(good: Path, tmp_path: Path) -> None:
    records = flag_at_work(tmp_path / "stale", 60, stale=33)
    [(kind, text, _, b)] = differences(good, tmp_path / "stale")
    assert (kind, text) == ("answer", "REGION_READ causes: 0x0 in A, 0x5a in B")
    assert b == records["stale"]


def test_all_differences_are_told_also_behind_one_that_shifts_the_rest(good: Path, tmp_path: Path) -> None:
    with Written(tmp_path / "other", REGISTERS) as trace:
        for number in range(60):
            if number == 10:
                trace.write(0x68, 1)
                continue
            trace.write(UP, 0x5A if number != 20 else 0x5B, interrupt=True)
            trace.read(CAUSES, 0x5A)
            if number != 30:
                trace.write(DOWN, 0x5A)
            trace.read(CAUSES, 0 if number != 40 else 2)
    assert [(kind, text) for kind, text, _, _ in differences(good, tmp_path / "other")] == [
        ("interrupts", "MSIX 0: 60 times in A, 59 times in B"),
        ("only in A", "REGION_WRITE up = 0x5a"),
        ("only in B", "REGION_WRITE BAR0+0x68 = 0x1"),
        ("only in A", "REGION_READ causes -> 0x5a"),
        ("only in A", "REGION_WRITE down = 0x5a"),
        ("only in A", "REGION_READ causes -> 0x0"),
        ("asked", "REGION_WRITE up: 0x5a in A, 0x5b in B"),
        ("only in A", "REGION_WRITE down = 0x5a"),
        ("answer", "REGION_READ causes: 0x0 in A, 0x2 in B"),
    ]


def test_an_error_differs_from_a_value_and_from_silence(tmp_path: Path) -> None:
    for name, last in (("a", {"value": 1}), ("b", {"value": None, "errno": 22}), ("c", {"value": None})):
        with Written(tmp_path / name, REGISTERS) as trace:
            trace.read(CAUSES, **last)
    [(_, text, _, _)] = differences(tmp_path / "a", tmp_path / "b")
    assert text == "REGION_READ causes: 0x1 in A, EINVAL in B"
    [(_, text, _, _)] = differences(tmp_path / "a", tmp_path / "c")
    assert text == "REGION_READ causes: 0x1 in A, nothing in B"


def test_of_other_messages_the_fields_that_differ_are_told(tmp_path: Path) -> None:
    for name, vectors in (("a", 1), ("b", 1), ("c", 4)):
        with Written(tmp_path / name) as trace:
            trace.ask(
                request(Command.GET_INFO, at.DEVICE_INFO.pack(16, 0, 0, 0)), at.DEVICE_INFO.pack(16, 2, 9, vectors)
            )
    assert not differences(tmp_path / "a", tmp_path / "b")
    [(_, text, _, _)] = differences(tmp_path / "a", tmp_path / "c")
    assert text == "DEVICE_GET_INFO: num_irqs=1 in A, num_irqs=4 in B"


def test_a_lost_interrupt_is_told_with_the_write_that_it_did_not_come_behind(good: Path, tmp_path: Path) -> None:
    records = flag_at_work(tmp_path / "lossy", 60, lost=31)
    total, lost = differences(good, tmp_path / "lossy")
    assert total[:2] == ("interrupts", "MSIX 0: 60 times in A, 59 times in B")
    assert lost[0:2] == ("interrupt", "MSIX 0 behind REGION_WRITE up = 0x5a: one in A, none in B")
    assert lost[3] == records["lost"]


@for_each_row([(2, 1, ("2", "one")), (0, 1, ("none", "one")), (1, 3, ("one", "3"))])
def test_interrupts_behind_a_write_are_counted(in_a: int, in_b: int, often: tuple[str, str], tmp_path: Path) -> None:
    for name, count in (("a", in_a), ("b", in_b)):
        with Written(tmp_path / name, REGISTERS) as trace:
            up = trace.write(UP, 0x5A)
            for _ in range(count):
                trace.interrupt()
            trace.write(DOWN, 0x5A)
    _, behind = differences(tmp_path / "a", tmp_path / "b")
    assert behind[:3] == ("interrupt", "MSIX 0 behind REGION_WRITE up = 0x5a: {} in A, {} in B".format(*often), up)


def test_what_the_server_asks_is_compared_by_itself(tmp_path: Path) -> None:
    """When it asks between two of the client's requests is time, what it reads is not."""
    for name, early, data in (("a", True, b"abcd"), ("b", False, b"abcd"), ("c", True, b"abce")):
        with Written(tmp_path / name, REGISTERS) as trace:
            if early:
                trace.dma_read(0x1000, data)
            trace.write(UP, 1)
            if not early:
                trace.dma_read(0x1000, data)
    assert not differences(tmp_path / "a", tmp_path / "b")
    [(kind, text, _, _)] = differences(tmp_path / "a", tmp_path / "c")
    assert (kind, text) == ("answer", "DMA_READ: data=61626364 in A, data=61626365 in B")


def test_long_data_is_told_from_where_it_differs_and_cut(tmp_path: Path) -> None:
    """A page of it was two lines of 8 KiB; what differs may be at its end."""
    base = bytes(4096)
    for at_byte, told in {
        0: f"DMA_READ: data[4096] {'5a' + '00' * 63}... in A, data[4096] {'00' * 64}... in B",
        4090: f"DMA_READ: data[4096] from 0xffa on: {'5a' + '00' * 5} in A, data[4096] from 0xffa on: {'00' * 6} in B",
    }.items():
        changed = base[:at_byte] + b"\x5a" + base[at_byte + 1 :]
        for name, data in (("a", changed), ("b", base)):
            with Written(tmp_path / name) as trace:
                trace.dma_read(0x1000, data)
        [(kind, text, *_)] = differences(tmp_path / "a", tmp_path / "b")
        assert (kind, text) == ("answer", told), at_byte
    with Written(tmp_path / "none") as trace:
        trace.write(UP, 1)
    only = [text for kind, text, *_ in differences(tmp_path / "a", tmp_path / "none") if kind == "only in A"]
    assert only == [f"DMA_READ -> address=0x1000 length=4096 data[4096] {'00' * 64}..."]


def test_a_back_end_is_compared_too(tmp_path: Path) -> None:
    for name, size in (("a", 256), ("b", 128)):
        with Between(tmp_path / name) as between:
            between.negotiate(V.VERSION_1 | V.PROTOCOL_FEATURES | V(1 << 6))
            between.tell(R.SET_VRING_NUM, VringState(1, size))
    [(kind, text, _, _)] = differences(tmp_path / "a", tmp_path / "b")
    assert (kind, text) == ("asked", "SET_VRING_NUM ring 1: num=256 in A, num=128 in B")


_Side = tuple[Message, bytes | int | None, Sequence[int], Sequence[int]]
"""A request, what it is answered, and the descriptors of either."""


def test_whatever_one_side_alone_has_is_told_of_whichever_it_is(tmp_path: Path) -> None:
    """What only one has is a difference: a field, data, descriptors, the answer behind another question."""
    version, eventfd, another, memory = b"\0\0\1\0", os.eventfd(0), os.eventfd(0), os.memfd_create("memory")
    info = at.DEVICE_INFO.pack(16, 2, 9, 1)
    done = at.REGION_ACCESS.pack(UP, 0, 4)

    def irqs(data: bytes = b"") -> Message:
        return request(Command.SET_IRQS, at.IRQ_SET.pack(20 + len(data), 0x24, 2, 0, 1) + data)

    def register(value: int) -> Message:
        return write(0, UP, value.to_bytes(4, "little"))

    cases: dict[str, tuple[_Side, _Side, list[str]]] = {
        "a capability": (
            (request(Command.VERSION, version), version + b"{}\0", (), ()),
            (request(Command.VERSION, version), version + b'{"capabilities":{}}\0', (), ()),
            ["answer"],
        ),
        "data of a request": ((irqs(), b"", (), ()), (irqs(b"\1"), b"", (), ()), ["asked"]),
        "data of an answer": (
            (request(Command.GET_INFO, bytes(16)), info, (), ()),
            (request(Command.GET_INFO, bytes(16)), info + b"more", (), ()),
            ["answer"],
        ),
        "a descriptor of a request": ((irqs(), b"", (), ()), (irqs(), b"", (eventfd,), ()), ["asked"]),
        "a second descriptor": ((irqs(), b"", (eventfd,), ()), (irqs(), b"", (eventfd, eventfd), ()), ["asked"]),
        "a descriptor of an answer": (
            (request(Command.GET_INFO, bytes(16)), info, (), ()),
            (request(Command.GET_INFO, bytes(16)), info, (), (memory,)),
            ["answer"],
        ),
        "a refusal": ((register(1), done, (), ()), (register(1), 22, (), ()), ["answer"]),
        "a refusal of another value": ((register(1), done, (), ()), (register(2), 22, (), ()), ["asked", "answer"]),
        "no answer to another value": ((register(1), done, (), ()), (register(2), None, (), ()), ["asked", "answer"]),
        "another value": ((register(1), done, (), ()), (register(2), done, (), ()), ["asked"]),
        "another descriptor": ((irqs(), b"", (eventfd,), ()), (irqs(), b"", (another,), ()), []),
        "another kind of one": ((irqs(), b"", (eventfd,), ()), (irqs(), b"", (memory,), ()), ["asked"]),
    }
    for case, (of_a, of_b, kinds) in cases.items():
        for name, (asked, answered, fds, reply_fds) in (("a", of_a), ("b", of_b)):
            with Written(tmp_path / name, REGISTERS) as trace:
                trace.ask(replace(asked, fds=list(fds)), answered, reply_fds=reply_fds)
        for one, other in (("a", "b"), ("b", "a")):
            told = diff(tmp_path / one, tmp_path / other)["differences"]
            assert [each["kind"] for each in told] == kinds, f"{case}: {told}"
            assert all(each["a"] != each["b"] for each in told), f"{case}: {told}"
    close_all([eventfd, another, memory])


def test_what_an_answer_only_says_again_is_told_once(tmp_path: Path) -> None:
    """Another range was unmapped: that the answer repeats it is no second difference."""
    for name, size in (("a", 4096), ("b", 8192)):
        with Written(tmp_path / name) as trace:
            unmap = at.DMA_UNMAP.pack(24, 0, 0x1000, size)
            trace.ask(request(Command.DMA_UNMAP, unmap), unmap)
    assert {kind for kind, *_ in differences(tmp_path / "a", tmp_path / "b")} == {"asked"}


def test_a_difference_is_a_line_whatever_is_in_it_and_has_the_names_that_were_given(tmp_path: Path) -> None:
    """Also where only one trace has it."""
    (tmp_path / "map.json").write_text(json.dumps({"registers": REGISTERS}))
    for name, value in (("a", b"{}\n\0"), ("b", b'{\n"x": 1\n}\n\0')):
        with Written(tmp_path / name) as trace:
            trace.ask(request(Command.VERSION, b"\0\0\1\0" + value), b"\0\0\1\0")
            if name == "b":
                trace.read(CAUSES, 1)
    for one, other in (("a", "b"), ("b", "a")):
        words = ["trace", "diff", str(tmp_path / one), str(tmp_path / other), "--registers", str(tmp_path / "map.json")]
        lines = CliRunner().invoke(cli, words).stdout.splitlines()
        assert [line.split()[0] for line in lines if line] == ["what", "asked", "only", "2"], lines
        assert "REGION_READ causes" in lines[2], lines


# -- asked for


def test_what_is_ignored_has_to_be_in_one_of_the_two(good: Path, tmp_path: Path) -> None:
    flag_at_work(tmp_path / "other", 60)
    with Written(tmp_path / "more", REGISTERS) as trace:
        trace.ask(request(Command.GET_INFO, at.DEVICE_INFO.pack(16, 0, 0, 0)), at.DEVICE_INFO.pack(16, 2, 9, 1))
    for a, b in ((good, tmp_path / "more"), (tmp_path / "more", good)):
        assert not any("DEVICE_GET_INFO" in text for _, text, _, _ in differences(a, b, "--ignore", "DEVICE_GET_INFO"))
        with pytest.raises(UserError, match="neither trace has"):
            diff(a, b, "--ignore", "DEVICE_GET_INF")


def test_what_is_ignored_is_no_difference(good: Path, tmp_path: Path) -> None:
    flag_at_work(tmp_path / "other", 60, stale=33, lost=3)
    everything = differences(good, tmp_path / "other")
    assert len(everything) == 3
    for names, left in (
        (["causes"], 2),
        (["MSIX 0"], 1),
        (["BAR0+0x24"], 2),
        (["BAR0:0x24", "MSIX:0"], 0),
        (["REGION_READ", "MSIX 0"], 0),
        (["BAR0"], 1),
    ):
        options = [word for name in names for word in ("--ignore", name)]
        assert len(differences(good, tmp_path / "other", *options)) == left


def test_an_interrupt_of_each_index_is_left_out_by_either_way_to_say_it(tmp_path: Path) -> None:
    for index in IrqIndex:
        for name, count in (("a", 1), ("b", 2)):
            with Written(tmp_path / name, REGISTERS) as trace:
                trace.write(UP, 0x5A)
                trace.writer.note("interrupt", index=int(index), vector=0, count=count)
        assert differences(tmp_path / "a", tmp_path / "b"), index
        for words in (f"{index.name}:0", f"{index.name}:0x0", f"{index.name} 0"):
            assert not differences(tmp_path / "a", tmp_path / "b", "--ignore", words), words


def test_a_place_is_left_out_by_each_way_to_say_its_offset(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        with Written(tmp_path / name) as trace:
            trace.write(UP, value)
    assert differences(tmp_path / "a", tmp_path / "b")
    for words in (f"BAR0:{UP}", f"BAR0:{UP:#x}", f"BAR0:{UP:#o}", f"BAR0+{UP:#x}"):
        assert not differences(tmp_path / "a", tmp_path / "b", "--ignore", words), words
    for words in (f"BAR0:{UP:x}", "BAR0:-1", "BAR0:", "BAR0:x"):
        with pytest.raises(UserError):
            diff(tmp_path / "a", tmp_path / "b", "--ignore", words)


def test_a_name_that_neither_trace_has_is_refused(good: Path) -> None:
    with pytest.raises(UserError) as refused:
        diff(good, good, "--ignore", "cause")
    assert "'causes'" in refused.value.hint


def test_traces_of_two_protocols_are_refused(good: Path, tmp_path: Path) -> None:
    with Between(tmp_path / "t"):
        pass
    with pytest.raises(UserError, match="vhost-user"):
        diff(good, tmp_path / "t")


def test_a_trace_that_was_cut_off_is_compared_up_to_there(good: Path, tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(good.read_bytes()[:-100])
    found = diff(good, tmp_path / "cut")
    assert str(tmp_path / "cut") in found["truncated"]
    assert {one["kind"] for one in found["differences"]} <= {"only in A", "answer"}


def test_people_get_a_line_for_each(good: Path, tmp_path: Path) -> None:
    records = flag_at_work(tmp_path / "stale", 60, stale=33)
    result = CliRunner().invoke(cli, ["trace", "diff", str(good), str(tmp_path / "stale")])
    lines = result.stdout.splitlines()
    assert lines[1].split()[:3] == ["answer", str(records["stale"]), str(records["stale"])]
    assert lines[-1] == "1 difference; 239 exchanges without one"


# -- aligned


@pytest.mark.parametrize("small", [0, 1 << 16], ids=["by the program", "by the table"])
@settings(max_examples=25)
@given(a=st.lists(st.integers(0, 3), max_size=30), b=st.lists(st.integers(0, 3), max_size=30))
def test_what_is_outside_of_the_hunks_is_the_same(small: int, a: list[int], b: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "SMALL", small)
        found = hunks(a, b)
    rest_a, rest_b = list(a), list(b)
    for hunk in reversed(found):
        del rest_a[hunk.a_from : hunk.a_to]
        del rest_b[hunk.b_from : hunk.b_to]
    assert rest_a == rest_b
    assert bool(found) == (a != b)


@given(a=st.lists(st.integers(0, 3), max_size=30), b=st.lists(st.integers(0, 3), max_size=30))
def test_as_much_as_can_be_is_the_same(a: list[int], b: list[int]) -> None:
    lengths = [0] * (len(b) + 1)
    for one in a:
        before = 0
        for place, other in enumerate(b, 1):
            before, lengths[place] = lengths[place], before + 1 if one == other else max(lengths[place - 1 : place + 1])
    assert len(a) - sum(hunk.a_to - hunk.a_from for hunk in hunks(a, b)) == lengths[-1]


def test_without_the_program_long_traces_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(alignment, "SMALL", 0)
    with pytest.raises(UserError) as refused:
        hunks([1], [2])
    assert "diffutils" in refused.value.hint


def test_an_interrupt_is_missed_behind_a_write_that_itself_differs(tmp_path: Path) -> None:
    """What is about the same place belongs together, though another value was written."""
    ups = []
    for name, value, count in (("a", 1, 2), ("b", 2, 1)):
        with Written(tmp_path / name, REGISTERS) as trace:
            trace.write(DOWN, 0x5A)
            ups.append(trace.write(UP, value))
            for _ in range(count):
                trace.interrupt()
            trace.write(DOWN, 0x5A)
    told = differences(tmp_path / "a", tmp_path / "b")
    assert sorted(one[0] for one in told) == ["asked", "interrupt", "interrupts"], told
    assert told[-1][2:] == tuple(ups)


def test_interrupts_that_a_note_has_several_of_are_counted_as_several(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 3)):
        with Written(tmp_path / name, REGISTERS) as trace:
            trace.write(UP, 0x5A)
            trace.writer.note("interrupt", index=2, vector=0, count=count)
    total, behind = differences(tmp_path / "a", tmp_path / "b")
    assert total[1] == "MSIX 0: 5 times in A, 3 times in B"
    assert behind[1] == "MSIX 0 behind REGION_WRITE up = 0x5a: 5 in A, 3 in B"
