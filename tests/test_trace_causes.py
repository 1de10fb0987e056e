"""What goes together when a trace is cut down: what the protocol says, and what the recording lets one see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases import for_each_row
from tests.interposer_bench import dma_map, read, request, write
from tests.traced import CAUSES, DOWN, UP, Written
from userdev.descriptors import FdInfo, FdKind
from userdev.reduction import Reduction
from vfio_user.client import EventFd
from vfio_user.interposer.replay import Script, load_script, reduce_script
from vfio_user.interposer.replay.evidence import Evidence
from vfio_user.interposer.replay.steps import is_interrupt, is_servers_request
from vfio_user.wire import CURRENT, REGION_MIGRATION, Capabilities, Command, Message, encode_version
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import (
    DirtyPagesFlags,
    Feature,
    FeatureFlags,
    IrqIndex,
    IrqSetFlags,
    MigrationState,
    UnmapFlags,
)

NOISE = 0x4
DOORBELL = 0x10
EVENTFD = FdInfo(FdKind.EVENTFD, 0, 0)
PAGE = 0x1000
Asked = Message | tuple[Message, tuple[FdInfo, ...]]


def version() -> Message:
    return request(Command.VERSION, encode_version(CURRENT, 0, Capabilities()))


def unmap(iova: int, *, everything: bool = False) -> Message:
    flags = UnmapFlags.ALL if everything else 0
    return request(Command.DMA_UNMAP, at.DMA_UNMAP.pack(at.DMA_UNMAP.size, flags, iova, PAGE))


def irqs(flags: IrqSetFlags, vector: int = 0) -> Message:
    return request(Command.SET_IRQS, at.IRQ_SET.pack(at.IRQ_SET.size, flags, IrqIndex.MSIX, vector, 1))


SET_UP = irqs(IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER), (EVENTFD,)
MASK = irqs(IrqSetFlags.DATA_NONE | IrqSetFlags.MASK)


def feature(which: Feature, operation: FeatureFlags, data: bytes = b"") -> Message:
    return request(Command.DEVICE_FEATURE, at.FEATURE.pack(at.FEATURE.size + len(data), which | operation) + data)


def state(to: MigrationState) -> Message:
    return feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, at.DEVICE_STATE.pack(to, 0))


MIG_DATA = request(Command.MIG_DATA_READ, at.MIGRATION_DATA.pack(at.MIGRATION_DATA.size, 16))
LOG = feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, at.LOGGING_CONTROL.pack(PAGE, 0, 0))
END_OF_LOG = feature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET)
REPORT = feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, at.LOGGING_REPORT.pack(0, PAGE, PAGE))


@for_each_row(
    [
        ([dma_map(0, PAGE), dma_map(PAGE, PAGE), unmap(PAGE)], [3, 4]),
        ([dma_map(0, PAGE), unmap(0), dma_map(0, PAGE), unmap(0)], [4, 5]),
        ([dma_map(0, PAGE), dma_map(PAGE, PAGE), unmap(0, everything=True)], [4]),
        ([SET_UP, MASK], [2, 3]),
        ([irqs(IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER, 1), MASK], [3]),
        ([state(MigrationState.STOP), state(MigrationState.STOP_COPY), MIG_DATA], [2, 3, 4]),
        ([LOG, write(0, NOISE, b"1234"), REPORT], [2, 4]),
        ([LOG, write(0, NOISE, b"1234"), END_OF_LOG], [2, 4]),
        ([LOG, END_OF_LOG, LOG, END_OF_LOG], [4, 5]),
        ([write(0, NOISE, b"1234"), read(0, NOISE)], [3]),
    ],
    ids=[
        "unmap",
        "second unmap",
        "unmap all",
        "mask",
        "mask of another",
        "migration data",
        "dirty log",
        "log's end",
        "second end",
        "registers",
    ],
)
def test_the_last_request_is_left_with_what_it_needs(what: list[Asked], stays: list[int]) -> None:
    script = Script.of([version(), *what])
    last = script.requests[-1].number
    found = reduce_script(script, lambda _: True, keep=[last])
    assert [step.number for step in found.script.requests] == [2, *(number + 1 for number in stays)]


def test_what_a_request_needs_is_never_left_out_without_it() -> None:
    """However the search goes: whoever asks never sees an unmap without its map."""
    what = [message for page in range(8) for message in (dma_map(page * PAGE, PAGE), unmap(page * PAGE))]
    script = Script.of([version(), *what])
    seen: list[list[int]] = []

    def fails(part: Script) -> bool:
        numbers = [step.number for step in part.requests]
        seen.append(numbers)
        return 8 in numbers  # an unmap's

    assert [step.number for step in reduce_script(script, fails).script.requests] == [2, 7, 8]
    assert all(number - 1 in numbers for numbers in seen for number in numbers[1:] if number % 2 == 0)


@pytest.fixture
def doorbells(tmp_path: Path) -> Script:
    """A doorbell makes the device read memory and interrupt, after noise and now and then before some."""
    path = tmp_path / "doorbells.trace"
    with Written(path) as trace, EventFd() as interrupt:
        trace.ask(version())
        trace.ask(dma_map(0, PAGE))
        trace.ask(dma_map(PAGE, PAGE))
        trace.ask(replace(SET_UP[0], fds=[interrupt.fd]))
        for turn in range(4):
            trace.write(NOISE, turn)
            trace.write(DOORBELL, turn)
            if turn % 2:
                trace.write(NOISE, turn)
            trace.dma_read(PAGE, b"data")
            trace.interrupt()
            trace.read(CAUSES, turn)
    return load_script(path)


def test_what_a_server_does_by_itself_goes_with_the_request_that_makes_it(doorbells: Script) -> None:
    bells = [step.number for step in doorbells.requests if b"\x10" in step.message.payload[:1]]  # type: ignore[union-attr]
    assert len(bells) == 4
    for kept in bells:
        part = doorbells.only(doorbells.causes.closure([kept]))
        assert sum(map(is_servers_request, part.steps)) == 1
        assert not any(map(is_interrupt, part.steps)), "nobody asked for any"
        maps = [step for step in part.requests if step.message.command == CURRENT.number(Command.DMA_MAP)]  # type: ignore[union-attr]
        assert [at.DMA_MAP.unpack(step.message.payload).addr for step in maps] == [PAGE]  # type: ignore[union-attr]
    whole = doorbells.only(doorbells.causes.closure([*bells, *set_ups(doorbells)]))
    assert sum(map(is_interrupt, whole.steps)) == 4


def set_ups(script: Script) -> Iterator[int]:
    number = CURRENT.number(Command.SET_IRQS)
    return (step.number for step in script.requests if step.message.command == number)  # type: ignore[union-attr]


def flags(path: Path, act: Callable[[Written], object]) -> tuple[Script, Evidence]:
    with Written(path) as trace:
        trace.ask(version())
        act(trace)
        last = trace.read(CAUSES, 0)
    script = load_script(path)
    return script, Evidence(script, last)


def offsets(script: Script, numbers: set[int]) -> list[int]:
    kept = [step for step in script.requests if step.number in numbers]
    return [int.from_bytes(step.message.payload[:8], "little") for step in kept]  # type: ignore[union-attr]


def test_a_flag_that_was_cleared_is_not_left_set(tmp_path: Path) -> None:
    def act(trace: Written) -> None:
        for _ in range(3):
            trace.write(UP, 1)
            trace.write(NOISE, 1)
            trace.read(CAUSES, 1)
            trace.read(CAUSES, 1)
            trace.write(DOWN, 1)
            trace.read(CAUSES, 0)
            trace.write(NOISE, 1)
            trace.read(CAUSES, 0)

    script, evidence = flags(tmp_path / "flags.trace", act)
    moves = {number for number, offset in named(script) if offset in (UP, DOWN)}
    assert {*evidence.moves} == moves, "noise between two reads that are the same moves nothing"
    assert offsets(script, evidence.closed([])) == [UP, DOWN]
    first, *_, last = sorted(moves)
    assert offsets(script, evidence.closed([first])) == [UP, DOWN]
    for gone in moves:
        kept = evidence.closed(moves - {gone})
        assert offsets(script, kept) in ([UP, DOWN] * 3, [UP, DOWN] * 2), "one alone never"
    assert last in evidence.closed(moves - {first})


def values_between(path: Path, values: str) -> Evidence:
    """A register that read so before the first of some writes that move it, the next and so on, and in the end.

    Where there is a "-" nobody has read it.
    """
    with Written(path) as trace:
        trace.ask(version())
        for turn, value in enumerate(values):
            if turn:
                trace.write(UP, 1)
            if value != "-":
                last = trace.read(CAUSES, int(value))
    return Evidence(load_script(path), last)


def test_the_fewest_come_back_or_go_with_which_a_register_reads_as_it_did(tmp_path: Path) -> None:
    """Of the moves, by their places in line: what is left out first, and what is in the end."""
    for number, (values, out, stays) in enumerate(
        [
            ("010", "0", ""),  # with what undoes it
            ("010", "1", ""),  # with what it undoes
            ("01010", "3", "01"),
            ("01010", "0", "23"),
            ("01010", "1", "03"),  # either way: with what is behind
            ("010510", "1", "234"),  # before is nearer
            ("03101", "2", "01"),  # behind is nearer
            ("0120", "0", ""),  # not where it reads something else
            ("0120", "1", "012"),
            ("012", "0", "01"),  # nothing undoes it
            ("-1-0", "0", "012"),  # that nobody has read it twice says nothing
            ("0-1", "0", "01"),
            ("01-0", "1", "012"),
            ("0102", "012", "2"),  # the last alone
            ("0232", "012", "0"),  # the first alone
            ("0105232", "01345", "23"),  # of the second part alone
            ("0202", "012", "2"),
            ("0123", "012", "012"),
            ("0120", "012", ""),
            ("01", "", "0"),
        ]
    ):
        evidence = values_between(tmp_path / str(number), values)
        moves = evidence.moves
        assert len(moves) == len(values) - 1
        kept = evidence.closed([move for place, move in enumerate(moves) if str(place) not in out])
        assert "".join(str(moves.index(move)) for move in sorted(kept)) == stays, (values, out)


def named(script: Script) -> list[tuple[int, int]]:
    return [(step.number, int.from_bytes(step.message.payload[:8], "little")) for step in script.requests]  # type: ignore[union-attr]


def test_a_register_that_moves_by_itself_needs_no_write(tmp_path: Path) -> None:
    def act(trace: Written) -> None:
        trace.read(CAUSES, 1)
        trace.read(CAUSES, 2)
        trace.write(UP, 1)
        trace.read(CAUSES, 3)

    _, evidence = flags(tmp_path / "clock.trace", act)
    assert evidence.moves == []


def test_what_is_written_to_a_register_itself_stays(tmp_path: Path) -> None:
    script, evidence = flags(tmp_path / "stored.trace", lambda trace: (trace.write(UP, 1), trace.write(CAUSES, 0)))
    assert offsets(script, evidence.closed([])) == [CAUSES]


def test_pieces_are_taken_of_one_kind_too() -> None:
    """Of two kinds that take turns one is needed whole; no piece of the sequence is of the other alone."""
    items = [(kind, number) for number in range(64) for kind in ("read", "write")]
    search = Reduction(items, lambda part: sum(kind == "read" for kind, _ in part) == 64, alike=lambda item: item[0])
    search.run()
    assert [kind for kind, _ in search.best] == ["read"] * 64
    assert search.minimal
    plain = Reduction(items, lambda part: sum(kind == "read" for kind, _ in part) == 64)
    plain.run()
    assert plain.best == search.best
    assert plain.tries > 1.5 * search.tries


def test_what_is_told_of_a_search_is_what_is_left_by_then_and_how_often_it_was_tried() -> None:
    told: list[tuple[int, int, int]] = []
    search = Reduction(range(40), {3, 17, 31}.issubset, progress=lambda *said: told.append((*said, len(search.best))))
    search.run()
    assert search.best == (3, 17, 31)
    assert [tries for _, tries, _ in told] == [*range(1, search.tries + 1)]
    left = [count for count, _, _ in told]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 3
    # told of a try before the search has taken what it came to
    assert all(count <= best for count, _, best in told)


START, STOP, GET_BITMAP = DirtyPagesFlags.START, DirtyPagesFlags.STOP, DirtyPagesFlags.GET_BITMAP


@for_each_row([([START, GET_BITMAP], [2, 3]), ([START, STOP], [2, 3]), ([START, STOP, START, STOP], [4, 5])])
def test_a_question_for_dirty_pages_is_left_with_what_has_begun_to_note_them(
    flags: list[DirtyPagesFlags], stays: list[int]
) -> None:
    """In the protocol's first revision."""
    number = REGION_MIGRATION.number(Command.DIRTY_PAGES)
    asked = [Message(0, number, payload=at.DIRTY_PAGES.pack(at.DIRTY_PAGES.size, flag)) for flag in flags]
    script = Script.of([version(), *asked], dialect=REGION_MIGRATION.name)
    found = reduce_script(script, lambda _: True, keep=[script.requests[-1].number])
    assert [step.number for step in found.script.requests] == [2, *(number + 1 for number in stays)]
