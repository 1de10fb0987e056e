"""Descriptors by which a front-end is told something: who fills one keeps nobody, and no other ring has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from threading import Thread
from typing import Any, cast

import pytest

from tests.cases import for_each
from tests.vhost.reverse import Reverse
from userdev.eventfd import drain
from vhost_user.backend import Server, Session
from vhost_user.backend.in_band import InBand
from vhost_user.backend.lifecycle import RingState
from vhost_user.backend.line import Line
from vhost_user.backend.vrings import Vrings
from vhost_user.device import model_of
from vhost_user.wire import BackEndRequest

FULL = (1 << 64) - 2
PATIENCE = 10


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def line(told: list[str]) -> Iterator[Line]:
    line = Line(lambda: told.append("in band"))
    yield line
    line.forget()


@pytest.fixture
def shared() -> Iterator[int]:
    """The front-end's own descriptor; the line has a duplicate."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_what_nothing_was_said_of_is_told_in_band(line: Line, shared: int, told: list[str]) -> None:
    ways = []
    for _ in range(2):
        ways.append(line.is_in_band)
        line.signal()
        line.set(os.dup(shared))
        ways.append(line.is_in_band)
        line.signal()
        assert (drain(shared), told) == (1, ["in band"])
        line.forget()
        told.clear()
    line.set(None)
    ways.append(line.is_in_band)
    line.signal()
    assert (drain(shared), told) == (0, [])
    assert ways == [True, False, True, False, False]


def test_the_one_before_is_closed(line: Line, shared: int) -> None:
    copies = [os.dup(shared) for _ in range(3)]
    for copy in copies:
        line.set(copy)
    for copy in copies[:2]:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(copy)
    line.signal()
    assert drain(shared) == 1
    line.forget()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(copies[2])


def block(line: Line, shared: int) -> Thread:
    """Somebody who signals it, and waits until there is room: the front-end has filled it and made it block."""
    line.set(os.dup(shared))
    os.eventfd_write(shared, FULL)
    os.set_blocking(shared, True)
    held = Thread(target=line.signal, daemon=True)
    held.start()
    return held


def test_who_waits_for_room_is_freed_and_it_is_left_alone_from_then_on(line: Line, shared: int) -> None:
    held = block(line, shared)
    line.unblock()
    held.join(PATIENCE)
    assert not held.is_alive()
    drain(shared)
    line.signal()
    assert drain(shared) == 0


def test_one_that_has_room_is_signalled_on(line: Line, shared: int) -> None:
    line.set(os.dup(shared))
    os.eventfd_write(shared, FULL - 1)
    line.unblock()
    assert drain(shared) == FULL - 1
    line.signal()
    assert drain(shared) == 1


@pytest.mark.usefixtures("front_end")
@pytest.mark.parametrize("which", ["call", "err"])
@pytest.mark.parametrize("index", [0, 1])
def test_every_line_of_every_ring_is_freed(server: Server, which: str, index: int, shared: int) -> None:
    session = server._session
    assert isinstance(session, Session)
    held = block(getattr(session._back_end.vrings[index], which), shared)
    session.free()
    held.join(PATIENCE)
    assert not held.is_alive()


@for_each(("nothing", "a descriptor", "none"))
def test_a_ring_tells_a_new_line_what_the_one_before_may_have_been_owed(said: str, shared: int) -> None:
    """A call where it runs, and alone there; an error where it is broken. In band where nothing was said of it."""
    asked: list[BackEndRequest] = []

    def lose(request: BackEndRequest, *_: object) -> bool:
        asked.append(request)
        return False

    nobody = cast(Any, None)
    vrings = Vrings(model_of(Reverse()), nobody, nobody, InBand(lose))
    vring = vrings[0]
    vrings.started = [vring]
    for state in RingState:
        vring.state = state
        for line, give, request, owed in (
            (vring.call, vrings.set_call, BackEndRequest.VRING_CALL, state is RingState.RUNNING),
            (vring.err, vrings.set_err, BackEndRequest.VRING_ERR, state.is_broken),
        ):
            if said != "nothing":
                give(vring, os.dup(shared) if said == "a descriptor" else None)
                assert drain(shared) == (owed and said == "a descriptor"), (state, request)
            vrings.tell_in_band()
            assert (request in asked) == (owed and said == "nothing"), (state, request)
            assert drain(shared) == 0, (state, request)
            asked.clear()
            line.forget()
