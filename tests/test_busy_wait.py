"""Whether a thread looks for a moment before it sleeps: where that pays, and where nobody else wants its core."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from userdev import busy_wait
from userdev.busy_wait import AGAIN, GOOD, SELDOM, SHORT_NS, VAIN, WANTED_NS, YIELDED_NS, BusyWait
from userdev.relay import Loop
from userdev.transport import Stream
from userdev_servers.edu import Edu
from vfio_user.client import Channel, Client
from vfio_user.server import Server
from vfio_user.server.connection import ServerConnection
from vfio_user.wire import CURRENT, NO_REPLY, Command, Message

SHORT, LONG = 1_000, 1_000_000_000
BOTH_WOKEN_NS = 190_000
"""From a reply until the next request, where client and server sleep in between: longer than it takes without."""
MESSAGE = Message(1, CURRENT.number(Command.DEVICE_RESET), NO_REPLY).encode()


def eager(turns: int = 0) -> BusyWait:
    made = BusyWait(turns)
    sleep(made, AGAIN)
    return made


def looks(made: BusyWait) -> bool:
    return made.is_worth_while


def sleep(made: BusyWait, times: int) -> None:
    for _ in range(times):
        made.slept(SHORT)


def find(made: BusyWait, times: int = 1) -> None:
    for _ in range(times):
        assert made.until(lambda: True)


def look_in_vain(made: BusyWait) -> None:
    assert made.until(lambda: False) is None


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else wants this core: a clock that goes on by 1 us whenever it is looked at."""
    clock = count(step=1000)
    monkeypatch.setattr(busy_wait, "perf_counter_ns", lambda: next(clock))


def test_it_looks_after_short_sleeps_and_not_after_a_long_one() -> None:
    made = BusyWait()
    assert not looks(made)
    sleep(made, AGAIN - 1)
    assert not looks(made)
    made.slept(SHORT)
    assert looks(made)
    made.slept(LONG)
    assert not looks(made)


@pytest.mark.parametrize("turns", [0, 1, 32])
def test_what_else_is_waited_for_has_its_turn_however_often_it_finds_something(turns: int) -> None:
    made = eager(turns)
    looks = [made.is_worth_while for _ in range(2 * turns + 2)]
    assert looks == ([True] * turns + [False]) * 2 if turns else [True] * 2


def test_it_tells_what_it_has_found_and_gives_up_after_a_while() -> None:
    assert eager().until(lambda: "something") == "something"
    assert eager().until(lambda: "") is None


@pytest.mark.usefixtures("quiet")
def test_what_comes_after_as_long_as_a_guest_without_kvm_needs_is_found() -> None:
    looks = count()  # each is 2 us later than the one before
    assert eager().until(lambda: next(looks) > 140)


@pytest.mark.usefixtures("quiet")
def test_one_look_in_vain_among_many_that_find_something_changes_nothing() -> None:
    made = eager()
    for _ in range(10):
        find(made, VAIN)
        look_in_vain(made)
        assert made.is_worth_while


@pytest.mark.usefixtures("quiet")
def test_looks_in_vain_are_tried_more_and_more_seldom_until_they_find_something_again() -> None:
    made = eager()
    tried: list[int] = []
    while len(tried) < 12:
        look_in_vain(made)
        slept = 0
        while not made.is_worth_while:
            made.slept(SHORT)
            slept += 1
        tried.append(slept)
    assert tried == [min(AGAIN << number, SELDOM) for number in range(1, 13)]
    find(made, GOOD)
    for _ in range(GOOD // VAIN + 1):
        look_in_vain(made)
    sleep(made, 2 * AGAIN)
    assert made.is_worth_while


@pytest.mark.usefixtures("quiet")
def test_after_a_pause_it_tries_as_soon_as_at_first() -> None:
    made = eager()
    for _ in range(10):
        look_in_vain(made)
    sleep(made, AGAIN)
    assert not made.is_worth_while
    made.slept(LONG)
    sleep(made, AGAIN)
    assert made.is_worth_while


@pytest.mark.parametrize(("away", "gives_way"), [(WANTED_NS // 4, False), (WANTED_NS, True)])
def test_a_core_that_others_want_for_long_is_left_to_them_and_not_one_that_they_want_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, away: int, gives_way: bool
) -> None:
    now = 0

    def run_others() -> None:
        nonlocal now
        now += away if now < away else 0

    monkeypatch.setattr(busy_wait, "perf_counter_ns", lambda: now)
    monkeypatch.setattr(os, "sched_yield", run_others)
    made = eager()
    find(made, GOOD)
    answers = iter([False, False, True])
    assert bool(made.until(lambda: next(answers))) is not gives_way
    assert made.is_worth_while is not gives_way


@pytest.mark.parametrize(("yielded", "gives_way"), [(YIELDED_NS, False), (YIELDED_NS + 1, True)])
def test_what_a_yield_takes_by_itself_is_nobody_who_wants_the_core(
    monkeypatch: pytest.MonkeyPatch, yielded: int, gives_way: bool
) -> None:
    clock = count(step=yielded)
    now = next(clock)

    def run_others() -> None:
        nonlocal now
        now = next(clock)

    monkeypatch.setattr(busy_wait, "perf_counter_ns", lambda: now)
    monkeypatch.setattr(os, "sched_yield", run_others)
    looks = iter([False] * (WANTED_NS // YIELDED_NS + 1) + [True])
    assert bool(eager().until(lambda: next(looks))) is not gives_way


Sleeper = Callable[[], bool]
"""What waits for the other end of a socket; whether something was there."""


def serving(near: socket.socket, held: ExitStack) -> Sleeper:
    """A server's session that waits for its client."""
    connection = ServerConnection(Stream(near), 1 << 20, BusyWait())
    connection.limit_receives(0.2)

    def wait() -> bool:
        try:
            return connection.receive()
        except BlockingIOError:
            return False

    return wait


def relaying(near: socket.socket, held: ExitStack) -> Sleeper:
    """An interposer that waits for either side."""
    loop = Loop()
    held.callback(loop.close)

    def ready(_: int) -> None:
        near.recv(16)

    loop.watch(near.fileno(), ready)
    return lambda: loop.turn(0.2)


def asking(near: socket.socket, held: ExitStack) -> Sleeper:
    """A client that waits for its server."""
    came = 0

    def serve(_: Message) -> None:
        nonlocal came
        came += 1

    channel = Channel(Stream(near), serve, timeout=1, busy_wait=BusyWait())

    def wait() -> bool:
        before = came
        return channel.serve_until(lambda: came > before, timeout=0.2)

    return wait


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


@pytest.mark.parametrize("waiting", [serving, relaying, asking])
@pytest.mark.parametrize(("sleep", "looks"), [(BOTH_WOKEN_NS, True), (SHORT_NS + 1, False)])
def test_who_was_woken_late_looks_for_what_would_have_been_there_without_that(
    monkeypatch: pytest.MonkeyPatch,
    pair: tuple[socket.socket, socket.socket],
    waiting: Callable[[socket.socket, ExitStack], Sleeper],
    sleep: int,
    looks: bool,
) -> None:
    near, far = pair
    clock, yields = count(step=sleep), list[int]()
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    monkeypatch.setattr("vfio_user.server.connection.perf_counter_ns", lambda: next(clock))
    monkeypatch.setattr(os, "sched_yield", lambda: yields.append(far.send(MESSAGE)))
    with ExitStack() as held:
        wait = waiting(near, held)
        for _ in range(AGAIN):
            far.send(MESSAGE)
            assert wait()
        assert wait() is looks  # nothing is there but for who looks
    assert len(yields) == looks, "what is there is found by the next look"


def test_a_servers_next_session_begins_with_what_the_last_ones_have_learnt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One alone may be over before it knows that looking pays."""
    learning: list[BusyWait] = []

    class Noting(BusyWait):
        def slept(self, ns: int) -> None:
            learning.append(self)

    monkeypatch.setattr("vfio_user.server.server.BusyWait", Noting)
    with Server(Edu(), str(tmp_path / "s")):
        for _ in range(2):
            with Client.connect(str(tmp_path / "s")) as client:
                client.device_info()
    assert len(learning) > 2
    assert all(each is learning[0] for each in learning)
