"""An NVMe controller without PCI: no BAR, no registers, no session; what it does with commands and keeps of them."""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.cases import for_each, for_each_row
from tests.nvme_bench import CQ, DATA, ENTRIES, SQ, VECTOR, Bench
from userdev.errors import ProtocolError
from userdev_servers.block.backing import Backing, WouldBlock
from userdev_servers.nvme import engine, io_commands
from userdev_servers.nvme.controller import Controller
from userdev_servers.nvme.model import REQUEST_LIMIT
from userdev_servers.nvme.pointers import Buffers, buffers_of
from userdev_servers.nvme.queues import Command, CompletionQueue, Shadow, SubmissionQueue
from userdev_servers.nvme.spec import Admin, Csts, EventType, Failure, Feature, HealthEvent, Io, LogPage, Status
from vfio_user.device import Dma, Quiesce
from vfio_user.testing import RecordingLink, memory_file


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_a_command_is_carried_out_counted_and_told_by_the_vector_of_its_queue(bench: Bench) -> None:
    bench.port.guest.memory[DATA : DATA + 512] = b"data" * 128
    bench.do(1, Io.WRITE, nsid=1)
    bench.do(1, Io.READ, 8, nsid=1, prp1=DATA + 0x1000)
    assert bench.port.guest.memory[DATA + 0x1000 : DATA + 0x1200] == b"data" * 128
    assert bench.answers(1) == [(7, 0, 0), (8, 0, 0)]
    assert bench.port.triggered == [VECTOR, VECTOR]
    done = bench.state.statistics
    assert (done.reads, done.writes, done.sectors_read, done.sectors_written, done.errors) == (1, 1, 1, 1, 0)


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The disk takes as long for a flush as until this is set."""
    done = threading.Event()

    def sync(_: Backing) -> None:
        assert done.wait(60)

    monkeypatch.setattr(Backing, "sync", sync)
    return done


def test_a_command_that_waits_for_the_disk_ends_in_a_turn_of_its_own(bench: Bench, flushed: threading.Event) -> None:
    bench.do(1, Io.FLUSH, nsid=1)
    flushed.set()
    bench.controller.background.wait()
    assert bench.answers(1) == []
    assert bench.under_way() == 1
    bench.port.turn()
    assert bench.answers(1) == [(7, 0, 0)]
    assert bench.under_way() == 0


def test_who_waits_for_it_to_stand_still_hears_when_the_guest_knows_of_all_commands(
    bench: Bench, flushed: threading.Event
) -> None:
    bench.do(1, Io.FLUSH, nsid=1)
    waiting = bench.engine.halt()
    assert waiting is not None
    flushed.set()
    bench.controller.background.wait()
    known: list[int] = []
    waiting.then(lambda: known.append(len(bench.answers(1))))
    assert known == []
    bench.port.turn()
    assert known == [1]
    bench.do(1, Io.READ, nsid=1)
    assert len(bench.answers(1)) == 1, "nothing is begun meanwhile"
    bench.engine.go_on()
    bench.port.turn()
    assert len(bench.answers(1)) == 2


def test_a_failure_leaves_its_entry_in_the_log_and_nothing_else(bench: Bench) -> None:
    bench.do(1, Io.READ, nsid=9)
    assert bench.answers(1) == [(7, Status.INVALID_NAMESPACE, 0)]
    assert (bench.state.statistics.errors, len(bench.state.errors)) == (1, 1)
    assert bench.state.statistics.reads == 0


def test_requests_for_events_are_bounded_and_each_event_takes_one(bench: Bench) -> None:
    for cid in range(REQUEST_LIMIT + 1):
        bench.do(0, Admin.ASYNC_EVENT_REQUEST, cid)
    assert bench.answers(0) == [(REQUEST_LIMIT, Status.TOO_MANY_EVENT_REQUESTS, 0)]
    bench.controller.events.add(EventType.ERROR, 1, LogPage.ERRORS)
    bench.controller.events.add(EventType.ERROR, 1, LogPage.ERRORS)
    assert bench.answers(0)[1:] == [(0, 0, LogPage.ERRORS << 16 | 1 << 8)]
    assert bench.state.event_requests == [1, 2, 3]
    bench.controller.events.seen(LogPage.ERRORS)
    assert bench.state.event_requests == [2, 3], "the log was read: the next of its type is told"


def test_a_reset_forgets_events_and_who_asked_for_them(bench: Bench) -> None:
    for cid in (1, 2):
        bench.do(0, Admin.ASYNC_EVENT_REQUEST, cid)
    for _ in range(2):  # one is told, one waits until the log is read
        bench.controller.events.add(EventType.ERROR, 1, LogPage.ERRORS)
    bench.state.forget_what_the_guest_set()
    bench.do(0, Admin.ASYNC_EVENT_REQUEST, 3)
    assert [cid for cid, _, _ in bench.answers(0)] == [1]
    bench.controller.events.add(EventType.ERROR, 1, LogPage.ERRORS)
    assert [cid for cid, _, _ in bench.answers(0)] == [1, 3]


def test_an_event_that_found_no_room_is_told_and_interrupts_once_there_is_some(bench: Bench) -> None:
    bench.do(0, Admin.ASYNC_EVENT_REQUEST, 99)
    for cid in range(ENTRIES - 1):
        bench.do(0, Admin.GET_FEATURES, cid, cdw10=Feature.ASYNC_EVENT_CONFIG)
    bench.controller.events.add(EventType.ERROR, 1, LogPage.ERRORS)
    assert 99 not in [cid for cid, _, _ in bench.answers(0)]
    bench.port.triggered.clear()
    bench.engine.ring(1, 4)
    assert 99 in [cid for cid, _, _ in bench.answers(0)]
    assert bench.port.triggered == [0]


def test_a_request_for_events_is_not_aborted_where_the_queue_has_no_room_to_say_so(bench: Bench) -> None:
    bench.do(0, Admin.ASYNC_EVENT_REQUEST, 99)
    for cid in range(ENTRIES - 2):
        bench.do(0, Admin.GET_FEATURES, cid, cdw10=Feature.ASYNC_EVENT_CONFIG)
    bench.do(0, Admin.ABORT, 50, cdw10=99 << 16)
    told = bench.answers(0)
    assert (50, 0, 1) in told, "bit 0: it was not aborted"
    assert [cid for cid, _, _ in told if cid != 50] == list(range(ENTRIES - 2)), "nothing untaken is overwritten"
    assert bench.state.event_requests == [99]


def test_data_is_counted_in_thousands_of_sectors_rounded_up(bench: Bench) -> None:
    done = bench.state.statistics
    for sectors, units in ((0, 0), (1, 1), (1000, 1), (1001, 2), (2_000_000, 2000), (2_000_001, 2001)):
        done.sectors_read, done.sectors_written = sectors, 3000 + sectors
        bench.do(0, Admin.GET_LOG_PAGE, cdw10=127 << 16 | LogPage.SMART)
        log = bench.port.guest.memory[DATA : DATA + 512]
        assert [int.from_bytes(log[at : at + 16], "little") for at in (32, 48)] == [units, units + 3]


def test_a_warning_is_for_whoever_asked_for_it(bench: Bench) -> None:
    bench.do(0, Admin.ASYNC_EVENT_REQUEST)
    bench.controller.events.warn(HealthEvent.TEMPERATURE)
    assert bench.answers(0) == []
    bench.controller.settings[Feature.ASYNC_EVENT_CONFIG] = 0b10
    bench.controller.events.warn(HealthEvent.TEMPERATURE)
    assert [cid for cid, _, _ in bench.answers(0)] == [7]


def test_the_line_is_up_while_there_is_something_that_the_guest_has_not_taken(tmp_path: Path) -> None:
    bench = Bench(tmp_path, active="intx")
    bench.do(1, Io.READ, nsid=1)
    assert bench.port.line()
    bench.state.interrupt_mask = 1
    bench.controller.queues.update_line()
    assert not bench.port.line()
    bench.state.interrupt_mask = 0
    bench.engine.ring(3, 1)
    assert not bench.port.line(), "it has taken it"
    bench.close()


def test_comparing_counts_as_reading_once(bench: Bench) -> None:
    bench.do(1, Io.COMPARE, nsid=1)
    bench.do(1, Io.COMPARE, 8, nsid=1)
    bench.finish()
    assert [status for _, status, _ in bench.answers(1)] == [0, 0]
    done = bench.state.statistics
    assert (done.reads, done.writes, done.sectors_read, done.sectors_written) == (2, 0, 2, 0)


def test_after_a_failure_that_is_fatal_nothing_more_of_the_batch_is_begun(bench: Bench) -> None:
    bench.controller.queues.completion[1].base = 1 << 40  # where the guest has no memory
    for cid in range(4):
        bench.put(1, Io.READ, cid, nsid=1)
    bench.do(1, Io.READ, 4, nsid=1)
    assert bench.state.status & Csts.FATAL
    assert bench.state.statistics.reads == 1
    bench.do(1, Io.READ, 5, nsid=1)
    assert bench.state.statistics.reads == 1
    assert not bench.port.work, "and it does not go on trying"


def test_what_is_noted_makes_the_same_controller_elsewhere(bench: Bench, tmp_path: Path) -> None:
    bench.do(1, Io.READ, nsid=1)
    bench.controller.namespaces[0].attached = False
    bench.controller.note_parts()
    (tmp_path / "b").mkdir()
    other = Bench(tmp_path / "b")
    other.state.saved_queues, other.state.saved_namespaces = bench.state.saved_queues, bench.state.saved_namespaces
    other.controller.load()
    assert not other.controller.namespaces[0].active
    assert other.controller.queues.save() == bench.controller.queues.save()
    other.close()


def test_nothing_that_was_due_before_a_reset_comes_behind_it(bench: Bench) -> None:
    """A completion whose interrupt is due, a doorbell that was rung, a turn that was asked for."""
    queues = bench.controller.queues
    queues.answer(queues.submission[1], 7, 0)
    bench.put(1, Io.FLUSH, nsid=1)
    bench.engine.ring(2, bench.tails[1])
    bench.engine.reset()
    bench.engine.open((SQ, ENTRIES), (CQ, ENTRIES))
    bench.port.turn()
    queues.interrupt()
    assert bench.port.triggered == []
    assert bench.under_way() == 0


def test_a_guest_that_has_more_to_do_than_one_turn_allows_is_served_in_several(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "COMMANDS_AT_ONCE", 4)
    for number in (1, 0):
        for cid in range(ENTRIES - 1):
            bench.put(number, Io.FLUSH if number else Admin.GET_FEATURES, cid, nsid=9 * number, cdw10=7)
        bench.engine.ring(2 * number, bench.tails[number])
    turns = 0
    while bench.port.work:
        bench.port.work.pop(0)()
        turns += 1
    assert turns > 1
    assert [[cid for cid, _, _ in bench.answers(number)] for number in (0, 1)] == [list(range(ENTRIES - 1))] * 2


class Hurried:
    """A guest's memory whose driver rings again just before it could know that it has to, so many times."""

    def __init__(self, times: int) -> None:
        self.words = {VALUE: 0, EVENT: 0}
        self.left = times

    def read(self, at: int, size: int) -> bytes:
        return self.words[at].to_bytes(size, "little")

    def write(self, at: int, data: bytes) -> None:
        self.words[at] = int.from_bytes(data, "little")
        if self.left:
            self.left -= 1
            self.words[VALUE] += 1


VALUE, EVENT = 0x100, 0x200


@for_each([0, 1, 2, 7])
def test_a_guest_that_rings_while_it_is_asked_to_tell_is_heard(times: int) -> None:
    guest = Hurried(times)
    assert Shadow(VALUE, EVENT).settle(guest, 16, 0) == times  # type: ignore[arg-type]
    assert guest.words == {VALUE: times, EVENT: times}


def test_shadow_doorbells_that_are_not_in_guest_memory_are_fatal_where_the_line_depends_on_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, active="intx")
    behind = len(bench.port.guest.memory)
    bench.controller.queues.completion[1].shadow = Shadow(behind, behind + 4)
    bench.do(0, Admin.GET_FEATURES, cdw10=7)
    assert bench.state.status & Csts.FATAL
    bench.close()


class Late(Shadow):
    """A doorbell whose driver puts one more command just before it could know that it has to ring for it."""

    def __init__(self, bench: Bench, value: int, event: int) -> None:
        super().__init__(value, event)
        self._bench, self._at = bench, value

    def ask_at(self, dma: Dma, value: int) -> None:
        if self._bench.tails[1] == 1:
            self._bench.put(1, Io.FLUSH, 8, nsid=9)
            dma.write(self._at, (2).to_bytes(4, "little"))
        super().ask_at(dma, value)


def test_a_command_that_comes_while_the_controller_asks_to_be_told_needs_no_doorbell(bench: Bench) -> None:
    bench.controller.queues.submission[1].shadow = Late(bench, 0x6000, 0x6100)
    bench.put(1, Io.FLUSH, 7, nsid=9)
    bench.port.dma.write(0x6000, (1).to_bytes(4, "little"))
    bench.engine.ring(2, 1)
    bench.port.turn()
    assert [cid for cid, _, _ in bench.answers(1)] == [7, 8]


@pytest.mark.parametrize("opcode", [Admin.FORMAT_NVM, Admin.NAMESPACE_MANAGEMENT])
@pytest.mark.parametrize(
    ("number", "status"), [(errno.EIO, Status.WRITE_FAULT), (errno.ENOSPC, Status.CAPACITY_EXCEEDED)]
)
def test_blocks_that_cannot_be_cleared_fail_the_command_for_what_is_wrong_with_the_disk(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, opcode: Admin, number: int, status: Status
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(number, "the disk refuses")

    namespace = bench.controller.namespaces[0]
    if opcode == Admin.NAMESPACE_MANAGEMENT:
        bench.port.guest.memory[DATA : DATA + 16] = (8).to_bytes(8, "little") * 2
        namespace.exists = namespace.attached = False
    monkeypatch.setattr(namespace.backing, "discard", refuse)
    bench.do(0, opcode, nsid=1)
    bench.finish()
    assert [answer for _, answer, _ in bench.answers(0)] == [status]
    assert bench.state.statistics.media_errors == (number == errno.EIO)


def test_the_line_is_up_for_what_is_not_masked_whatever_else_is(tmp_path: Path) -> None:
    """Each queue has a vector, which it may have from a time with MSI-X."""
    bench = Bench(tmp_path, active="intx")
    queues = bench.controller.queues
    queues.completion[1].vector = 1
    bench.do(1, Io.FLUSH, nsid=1)
    bench.finish()
    for mask in (0b00, 0b01, 0b10, 0b11, 0b100):
        bench.state.interrupt_mask = mask
        queues.update_line()
        assert bench.port.line() is not bool(mask & 0b10), mask
    bench.close()


def test_a_queue_is_mapped_where_all_is_that_belongs_to_it() -> None:
    """Its entries, its completions, and the doorbells of both where the guest keeps them in memory."""
    completions = CompletionQueue(1, 0x2000, 16)
    queue = SubmissionQueue(1, 0x1000, 16, completions)
    queue.shadow, completions.shadow = Shadow(0x3000, 0x4000), Shadow(0x5000, 0x6000)
    places = range(0x1000, 0x7000, 0x1000)
    for left_out in (None, *places):
        dma = Dma()
        dma.link = RecordingLink()
        for place in places:
            if place != left_out:
                dma.map(place, 0x1000, 3, None, 0)
        assert queue.is_mapped(dma) is (left_out is None), left_out


def test_who_has_waited_for_it_to_stand_still_is_not_kept(bench: Bench, flushed: threading.Event) -> None:
    gone: list[weakref.ref[Quiesce]] = []
    for cid in range(3):
        flushed.clear()
        bench.do(1, Io.FLUSH, cid, nsid=1)
        waiting = bench.engine.halt()
        assert waiting is not None
        flushed.set()
        gone.append(weakref.ref(waiting))
        del waiting
        bench.finish()
        bench.engine.go_on()
    assert [each() for each in gone] == [None] * 3


def no_data() -> Exception | None:
    raise ProtocolError("not in guest memory", errno=errno.EFAULT)


@for_each_row(
    [
        (lambda: None, 0),
        (lambda: Failure(Status.WRITE_FAULT), Status.WRITE_FAULT),
        (lambda: OSError(errno.EIO, "the disk refuses"), Status.INTERNAL_ERROR),
        (no_data, Status.DATA_TRANSFER_ERROR),
    ],
    ids=["good", "a failure", "an error", "its data cannot be brought"],
)
def test_a_command_that_waited_ends_whatever_becomes_of_it_then(
    outcome: Callable[[], Exception | None], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(controller: Controller, command: Command) -> None:
        controller.later(command, lambda: None, lambda _: outcome())

    monkeypatch.setitem(io_commands.HANDLERS, Io.FLUSH, begin)
    bench = Bench(tmp_path)
    bench.do(1, Io.FLUSH, nsid=1)
    bench.finish()
    assert [answer for _, answer, _ in bench.answers(1)] == [status]
    assert bench.under_way() == 0
    bench.close()


@for_each_row(
    [
        (Io.READ, {}, 0),
        (Io.READ, {"try_read": OSError(errno.EIO, "at once")}, Status.UNRECOVERED_READ_ERROR),
        (Io.READ, {"try_read": WouldBlock()}, 0),
        (Io.READ, {"try_read": WouldBlock(), "read": OSError(errno.EIO, "later")}, Status.UNRECOVERED_READ_ERROR),
        (Io.COMPARE, {}, 0),
        (Io.COMPARE, {"read_bytes": Failure(Status.COMPARE_FAILURE)}, Status.COMPARE_FAILURE),
        (Io.COMPARE, {"read_bytes": OSError(errno.EIO, "later")}, Status.UNRECOVERED_READ_ERROR),
        (Io.WRITE, {}, 0),
        (Io.WRITE, {"write": OSError(errno.EIO, "at once")}, Status.WRITE_FAULT),
    ]
)
def test_a_command_gives_guest_memory_up_however_it_ends(
    opcode: Io, disk: dict[str, Exception], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[memoryview] = []

    def noted(*args: Any, **kwargs: Any) -> Buffers:
        views.extend((made := buffers_of(*args, **kwargs)).pieces)
        return made

    monkeypatch.setattr(io_commands, "buffers_of", noted)
    bench = Bench(tmp_path)
    for does, error in disk.items():
        monkeypatch.setattr(bench.controller.namespaces[0].backing, does, Mock(side_effect=error))
    dma = bench.port.dma
    dma.unmap_all()
    dma.map(0, DATA, 3)
    dma.map(DATA, 0x1000, 3, memory_file(0x1000))
    bench.do(1, opcode, nsid=1)
    bench.finish()
    assert [answer for _, answer, _ in bench.answers(1)] == [status]
    assert views
    for view in views:
        with pytest.raises(ValueError, match="released"):
            bytes(view)
    dma.unmap_all()
    bench.close()
