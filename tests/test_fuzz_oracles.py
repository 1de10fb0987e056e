"""The oracles of both fuzzers by themselves: what each sees, and what it has to pass over."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest

from userdev.errors import ProtocolError
from userdev.eventfd import drain
from userdev.fuzz import Found
from userdev.fuzz.process import Holdings, Watched
from userdev.transport import close_all
from vfio_user.client.errors import Disconnected, NoAnswer, RemoteError
from vfio_user.fuzz import dma, messages
from vfio_user.fuzz.encounter import Encounter, MappedRange
from vfio_user.fuzz.memory import GuardedMemory, offset_of
from vfio_user.fuzz.observation import Observation
from vfio_user.wire.constants import MigrationState
from vhost_user.frontend.memory import PAGE, GuestMemory
from vhost_user.frontend.queue import Completion, Request
from vhost_user.fuzz import encounter as vhost

PID, OTHER = 7, 8


def found_by(check: Callable[[], object]) -> Found | None:
    """What a check finds."""
    try:
        check()
    except Found as found:
        return found
    return None


def holding(monkeypatch: pytest.MonkeyPatch, *seen: Holdings | None) -> None:
    """What is seen of any process, one look after the other; the last again and again."""
    left = [*seen]
    monkeypatch.setattr(Holdings, "of", lambda pid: left.pop(0) if len(left) > 1 else left[0])


# -- what a process keeps ---------------------------------------------------------------------------------------------


def test_a_process_is_compared_with_the_least_that_it_had_and_another_process_with_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = Holdings(6, 1, 2 << 20)
    for noted, now, pid, wrong in (
        ([most], most, PID, ""),
        ([most], Holdings(5, 0, 0), PID, ""),
        ([most, Holdings(5, 1, 2 << 20), most], most, PID, "descriptors"),
        ([most, Holdings(6, 0, 2 << 20), most], most, PID, "mappings"),
        ([most], Holdings(7, 2, 1 << 30), PID, "descriptors"),
        ([most], Holdings(7, 2, 1 << 30), OTHER, ""),
        ([most], Holdings(7, 2, 1 << 30), None, ""),
        ([most], None, PID, ""),
        ([None], Holdings(7, 2, 1 << 30), PID, ""),
    ):
        watched = Watched()
        holding(monkeypatch, *noted)
        watched.note(PID, lambda: None)
        holding(monkeypatch, now)
        found = found_by(partial(watched.check, pid))
        assert (found.oracle.id if found else "") == wrong, (noted, now, pid)


def test_a_process_that_gives_back_late_is_asked_again_and_one_that_does_not_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    watched = Watched()
    first, more = Holdings(5, 0, 0), Holdings(6, 0, 0)
    holding(monkeypatch, first)
    watched.note(PID, lambda: None)
    holding(monkeypatch, *[more] * 80, first)
    monkeypatch.setattr("userdev.fuzz.process.CLOSING_SECONDS", 60)
    watched.check_again(PID, lambda: asked.append(1))
    assert len(asked) == 80
    monkeypatch.setattr("userdev.fuzz.process.CLOSING_SECONDS", 0.01)
    holding(monkeypatch, more)
    with pytest.raises(Found):
        watched.check_again(PID, lambda: asked.append(1))


# -- memory of a client -----------------------------------------------------------------------------------------------


def with_maps(*maps: MappedRange) -> Encounter:
    """An encounter whose server has taken these maps."""
    client = SimpleNamespace(memory=SimpleNamespace(remove=lambda iova, size: None))
    made = Encounter(cast(Any, client), cast(Any, None), cast(Any, None), GuardedMemory())
    for each in maps:
        made.maps[each.iova] = each
        if each.rights & 2:
            made.memory.give(each.shared, each.offset, each.size)
    return made


def test_memory_is_the_devices_as_long_as_one_map_gives_it_for_writing() -> None:
    read, write = 1, 3
    for shared in (True, False):
        one, other = MappedRange(0, 0x1000, shared, 0x2000, write), MappedRange(0x8000, 0x1000, shared, 0x2000, write)
        reads = MappedRange(0x8000, 0x1000, shared, 0x2000, read)
        for maps, gone, may in (
            ((one,), (), True),
            ((one,), (one,), False),
            ((one, other), (one,), True),
            ((one, other), (other,), True),
            ((one, other), (one, other), False),
            ((one, reads), (one,), False),
            ((one, reads), (reads,), True),
            ((reads,), (), False),
        ):
            made = with_maps(*maps)
            for each in gone:
                made.forget_map(each.iova)
            memory = made.memory.memory if shared else made.memory.private
            memory.view[0x2FFF] ^= 1
            found = found_by(made.memory.check)
            assert (found is None) is may, (shared, maps, gone)
            assert found is None or "0x2fff" in str(found)
            made.memory.close()


def test_what_was_written_while_a_map_gave_it_stays_right_behind_the_map() -> None:
    one = MappedRange(0, 0x1000, True, 0x2000, 3)
    made = with_maps(one)
    made.memory.memory.view[0x2000] ^= 1
    made.forget_map(0)
    made.memory.check()
    made.memory.close()


def test_memory_of_a_map_that_was_refused_is_not_the_devices() -> None:
    for accessible, refused in ((True, False), (False, True)):
        made = with_maps()
        client: Any = made.client
        client.channel, client.dma_tables = SimpleNamespace(carries_fds=True), False
        client.memory.add = lambda mapping: None
        made.state = MigrationState.RUNNING if accessible else MigrationState.STOP
        reply = SimpleNamespace(failed=refused, errno=22)
        made.ask = lambda *_, reply=reply: reply  # type: ignore[method-assign]
        dma.give(made, slot=0, page=0, pages=1, shift=0, rights=3, shared=1)
        assert bool(made.maps) is not refused
        made.memory.memory.view[offset_of(0)] ^= 1
        assert (found_by(made.memory.check) is not None) is refused
        made.memory.close()


# -- what can be seen of a device -------------------------------------------------------------------------------------


def test_a_device_is_otherwise_where_a_byte_is_that_stays_by_itself() -> None:
    before = Observation({(7, 0): bytes(16), (0, 0): b"\1\2\3\4", (0, 4): b""})
    for places, but, said in (
        ({}, (), ""),
        ({(0, 0): b"\1\2\7\4"}, (), "region 0 at 0x2 is 0x07, and was 0x03"),
        ({(0, 0): b"\1\2\7\4"}, ((0, 2),), ""),
        ({(0, 0): b"\1\2\7\7"}, ((0, 2),), "region 0 at 0x3 is 0x07, and was 0x04"),
        ({(0, 0): b"\1\2\7\4"}, ((7, 2),), "region 0 at 0x2"),
        ({(7, 0): bytes(6) + b"\1\1" + bytes(8)}, (), ""),
        ({(7, 0): bytes(4) + b"\1" + bytes(11)}, (), "configuration space at 0x4"),
        ({(0, 4): b"\0\0\0\0"}, (), "region 0 at 0x4"),
    ):
        found = before.difference(Observation({**before.places, **places}), but=frozenset(but))
        assert bool(found) == bool(said), (places, but, found)
        assert said in found


# -- connections ------------------------------------------------------------------------------------------------------


def test_a_second_client_is_closed_whatever_became_of_it_and_the_first_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = RemoteError.__new__(RemoteError)
    for error, level, is_found in (
        (None, "reference", False),
        (refusal, "reference", False),
        (Disconnected("it has gone"), "reference", False),
        (ProtocolError("no message"), "reference", False),
        (NoAnswer("it says nothing"), "reference", True),
        (NoAnswer("it says nothing"), "must", False),
    ):
        done: list[str] = []

        def negotiate(minor: int, error: Exception | None = error) -> None:
            if error is not None:
                raise error

        other = SimpleNamespace(negotiate=negotiate, close=lambda done=done: done.append("close"))
        monkeypatch.setattr(messages, "Client", lambda *_, other=other, **__: other)
        target = SimpleNamespace(pid=PID, connect=lambda: None)
        encounter: Any = SimpleNamespace(
            bench=SimpleNamespace(target=target, timeout=1.0),
            client=SimpleNamespace(dialect=None),
            level=level,
            ask=lambda *_, done=done: done.append("ask"),
        )
        if is_found:
            with pytest.raises(Found, match="neither served nor refused"):
                messages.second(encounter, 0)
            assert done == ["close"]
        else:
            messages.second(encounter, 0)
            assert done == ["close", "ask"], error


def test_the_next_client_looks_at_the_state_that_the_device_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for migrates in (True, False):
        found = SimpleNamespace(negotiate=lambda minor: None, migration_state=lambda: MigrationState.STOP)
        monkeypatch.setattr("vfio_user.fuzz.encounter.Client", lambda *_, found=found, **__: found)
        made: Any = with_maps()
        made.client = SimpleNamespace(close=lambda: None, dialect=None)
        made.ground = SimpleNamespace(migrates=migrates)
        made.bench = SimpleNamespace(target=SimpleNamespace(connect=lambda: None), timeout=1.0)
        made.rejoin()
        assert made.client is made.bench.client is found
        assert made.state is (MigrationState.STOP if migrates else MigrationState.RUNNING)
        made.memory.close()


# -- vhost-user's -----------------------------------------------------------------------------------------------------


def test_every_page_that_was_written_has_to_be_marked() -> None:
    for at, length, pages in (
        (0, 0, []),
        (0, 1, [0]),
        (PAGE - 1, 1, [0]),
        (PAGE - 1, 2, [0, 1]),
        (PAGE, PAGE, [1]),
        (PAGE, PAGE + 1, [1, 2]),
        (PAGE + 5, 3 * PAGE, [1, 2, 3, 4]),
    ):
        made = vhost.Encounter.__new__(vhost.Encounter)
        for missing in (None, *pages):
            marked = {page for page in pages if page != missing}
            made.log = cast(Any, SimpleNamespace(pages=lambda marked=marked: marked))
            if missing is None:
                made._look_at_log([(at, length)])
            else:
                with pytest.raises(Found, match=f"page {missing} was written"):
                    made._look_at_log([(at, length)])
        made.log = None
        made._look_at_log([(at, length)])


def test_a_call_from_before_a_request_does_not_tell_of_it() -> None:
    done = Completion(0, 0, b"")
    for told in (False, True):
        with ExitStack() as until:
            front_end, back_end = socket.socketpair()
            call, err = (os.eventfd(value, os.EFD_NONBLOCK) for value in (1, 0))
            until.callback(close_all, [call, err])
            memory = GuestMemory(PAGE)
            for each in (front_end, back_end, memory):
                until.callback(each.close)
            made = vhost.Encounter.__new__(vhost.Encounter)
            made.front_end = cast(Any, SimpleNamespace(memory=memory, stream=front_end, queues=()))
            made.timeout, made.device, made.log, made.journal = 0.0, None, None, []
            queue: Any = SimpleNamespace(
                call_fd=call,
                err_fd=err,
                driver=SimpleNamespace(ask_for_call=lambda: None),
                wait_call=lambda seconds, call=call: drain(call),
                put=lambda *_, **__: Request(0, ()),
                kick=lambda call=call, told=told: os.eventfd_write(call, told),
                take_used=lambda: [done],
            )
            found = found_by(partial(made.served, queue, 1))
            assert (found is None) is told, found
            assert told or "the driver is not called" in str(found)
