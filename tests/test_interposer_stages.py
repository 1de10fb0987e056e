"""What stages and watchers of a session are given, and that several of either do not get in each other's way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.interposer_bench import Bench, answer, read, write
from userdev.relay.direction import Direction
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.trace import MessageRecord, read_trace
from vfio_user.wire import Message


class Watching:
    """Remembers what it is told."""

    def __init__(self, session: ForwardedSession, *, keeps: bool = False) -> None:
        self.session = session
        self.keeps = keeps
        self.passings: list[Passing] = []
        self.told: list[str] = []

    def passed(self, passing: Passing) -> None:
        self.passings.append(replace(passing))

    def server_gone(self) -> bool:
        self.told.append("server gone")
        if self.keeps:
            self.session.lose_server()
        return self.keeps

    def closed(self) -> None:
        self.told.append("closed")


class Remembering:
    """A stage that changes nothing, or takes what it sees."""

    def __init__(self, *, takes: bool = False) -> None:
        self.takes = takes
        self.passings: list[Passing] = []
        self.records: list[int] = []
        self.times_closed = 0

    def __call__(self, passing: Passing) -> Message | None:
        self.passings.append(passing)
        passing.afterwards(lambda: self.records.append(passing.record))
        return None if self.takes else passing.message

    def closed(self) -> None:
        self.times_closed += 1


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with Bench(trace=tmp_path / "trace") as bench:
        yield bench


def ask(bench: Bench) -> None:
    """The client reads, the server answers."""
    bench.client.send(read(0, 8))
    bench.server.send(answer(bench.server.receive(), b"data"))
    bench.client.receive()


def test_all_watchers_are_shown_what_passes(bench: Bench) -> None:
    watchers = [Watching(bench.session), Watching(bench.session)]
    for watcher in watchers:
        bench.session.watch(watcher)
    ask(bench)
    for watcher in watchers:
        assert [(one.direction, one.message.is_reply) for one in watcher.passings] == [
            (Direction.TO_SERVER, False),
            (Direction.TO_CLIENT, True),
        ]


@pytest.mark.parametrize("first_keeps", [True, False])
def test_one_that_keeps_the_session_alive_does_not_hide_the_end_from_others(bench: Bench, first_keeps: bool) -> None:
    watchers = [Watching(bench.session, keeps=keeps) for keeps in (first_keeps, not first_keeps)]
    for watcher in watchers:
        bench.session.watch(watcher)
    bench.server.close()
    bench.settle()
    assert not bench.ended
    assert [watcher.told for watcher in watchers] == [["server gone"], ["server gone"]]
    bench.session.close()
    assert [watcher.told for watcher in watchers] == [["server gone", "closed"]] * 2


def test_without_one_that_keeps_it_a_session_ends_with_its_server(bench: Bench) -> None:
    watcher = Watching(bench.session)
    bench.session.watch(watcher)
    bench.server.close()
    assert bench.client.at_end()
    bench.client.close()
    bench.until(lambda: bench.ended or None)
    assert watcher.told == ["server gone", "closed"]


def test_a_stage_knows_which_request_a_reply_answers(bench: Bench, tmp_path: Path) -> None:
    stage = Remembering()
    bench.session.add_stage(stage, Direction.TO_CLIENT)
    ask(bench)
    bench.close()
    request, reply = (entry for entry in read_trace(tmp_path / "trace").entries if isinstance(entry, MessageRecord))
    assert [passing.pair for passing in stage.passings] == [request.number] == [reply.pair]
    assert stage.records == [reply.number]


def test_what_a_stage_has_taken_is_recorded_before_it_acts(bench: Bench, tmp_path: Path) -> None:
    stage = Remembering(takes=True)
    bench.session.add_stage(stage, *Direction)
    bench.client.send(read(0, 8))
    bench.until(lambda: stage.records or None)
    assert bench.server.is_silent()
    bench.close()
    taken = [entry for entry in read_trace(tmp_path / "trace").entries if isinstance(entry, MessageRecord)]
    assert stage.records == [record.number for record in taken]
    assert stage.times_closed == 1  # although it is in both directions


def test_a_later_stage_sees_what_an_earlier_one_made_of_a_message(bench: Bench) -> None:
    class Changing(Remembering):
        def __call__(self, passing: Passing) -> Message:
            return replace(passing.message, payload=passing.message.payload[:-4] + b"more")

    later = Remembering()
    bench.session.add_stage(Changing(), Direction.TO_SERVER)
    bench.session.add_stage(later, Direction.TO_SERVER)
    bench.client.send(write(0, 8, b"some"))
    assert bench.server.receive().payload[-4:] == b"more"
    assert later.passings[0].message.payload[-4:] == b"more"


def test_a_request_that_was_held_is_as_old_as_when_the_client_sent_it(bench: Bench) -> None:
    watcher = Watching(bench.session)
    bench.session.watch(watcher)
    bench.session.holding.hold()
    bench.client.send(read(0, 8))
    bench.until(lambda: len(bench.session.holding) or None)
    came_before = time.monotonic()
    bench.session.holding.resume()
    bench.server.send(answer(bench.server.receive(), b"data"))
    bench.client.send(read(0, 12))
    bench.server.receive()
    held, _, not_held = watcher.passings
    assert held.since is not None
    assert held.since <= came_before
    assert not_held.since is None
