"""The loop by itself: futures, tasks and timers, in the order and with the ends that their users count on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from userdev.relay.loop import Future, Loop, Task, TaskCancelled


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_a_task_that_is_cancelled_runs_its_finally_at_once() -> None:
    ran: list[str] = []

    async def work() -> None:
        try:
            await Future[None]()
            ran.append("on")
        finally:
            ran.append("finally")

    task = Task(work())
    task.cancel()
    assert ran == ["finally"]
    assert task.done
    with pytest.raises(TaskCancelled):
        task.result()


def test_a_task_that_is_cancelled_may_cancel_what_it_waits_for() -> None:
    async def inner() -> None:
        await Future()

    async def outer() -> None:
        waited = Task(inner())
        begun.append(waited)
        try:
            await waited
        finally:
            waited.cancel()

    begun: list[Task[None]] = []
    task = Task(outer())
    task.cancel()
    assert (task.done, begun[0].done) == (True, True)


def test_a_cancelled_sleep_leaves_no_timer_that_fires(loop: Loop) -> None:
    task = Task(loop.sleep(0))
    task.cancel()
    assert not loop.turn(0.01)


def test_what_a_cancelled_task_waited_for_does_not_wake_it() -> None:
    future: Future[int] = Future()
    woken: list[int] = []

    async def work() -> None:
        woken.append(await future)

    task = Task(work())
    task.cancel()
    future.resolve(1)
    assert not woken


def test_timers_fire_by_their_time_and_those_of_one_time_as_they_were_set(loop: Loop) -> None:
    fired: list[str] = []
    loop.at(2, lambda: fired.append("second"))
    loop.at(1, lambda: fired.append("first"))
    loop.at(2, lambda: fired.append("third"))
    assert loop.turn(1)
    assert fired == ["first", "second", "third"]


def test_a_timer_may_cancel_another_of_the_same_turn(loop: Loop) -> None:
    fired: list[str] = []

    def first() -> None:
        fired.append("first")
        second.cancel()

    loop.at(1, first)
    second = loop.at(2, lambda: fired.append("second"))
    loop.turn(1)
    assert fired == ["first"]
    assert not second.active


def test_a_timer_fires_once(loop: Loop) -> None:
    fired: list[int] = []
    timer = loop.after(0, lambda: fired.append(1))
    loop.turn(1)
    loop.turn(0)
    assert fired == [1]
    assert not timer.active


def test_the_first_of_resolve_and_fail_counts() -> None:
    good: Future[int] = Future()
    good.resolve(1)
    good.fail(ValueError("too late"))
    good.resolve(2)
    assert good.result() == 1
    bad: Future[int] = Future()
    bad.fail(ValueError("first"))
    bad.resolve(1)
    with pytest.raises(ValueError, match="first"):
        bad.result()


def test_what_fails_is_raised_where_it_is_awaited() -> None:
    future: Future[int] = Future()

    async def work() -> str:
        try:
            await future
        except KeyError:
            return "caught"
        return "missed"

    task = Task(work())
    future.fail(KeyError("x"))
    assert task.result() == "caught"


def test_who_comes_after_the_end_is_told_at_once() -> None:
    future: Future[int] = Future()
    future.resolve(3)
    told: list[int] = []
    future.when_done(lambda: told.append(future.result()))
    assert told == [3]


def test_a_value_that_is_late_is_a_timeout_that_says_for_what(loop: Loop) -> None:
    with pytest.raises(TimeoutError, match="an answer"):
        loop.finish(loop.within(0.01, Future[int](), "an answer"))


def test_a_value_in_time_leaves_no_timer(loop: Loop) -> None:
    future: Future[int] = Future()
    future.resolve(4)
    assert loop.finish(loop.within(0, future, "an answer")) == 4
    assert not loop.turn(0.01)


def test_an_error_of_a_task_that_nobody_awaits_ends_the_loop(loop: Loop) -> None:
    async def fail() -> None:
        await loop.sleep(0)
        raise KeyError("nobody waits")

    loop.spawn(fail())
    with pytest.raises(KeyError, match="nobody waits"):
        loop.run()


def test_of_several_errors_the_first_is_told(loop: Loop) -> None:
    """Others in its turn may come of it."""

    async def fail(name: str) -> None:
        await loop.sleep(0)
        raise KeyError(name)

    for name in ("first", "second"):
        loop.spawn(fail(name))
    with pytest.raises(KeyError, match="first"):
        loop.run()


def test_an_error_that_somebody_knows_what_to_do_about_does_not(loop: Loop) -> None:
    told: list[Exception] = []

    def know(error: Exception) -> bool:
        told.append(error)
        return True

    def fail() -> None:
        raise KeyError("known")

    loop.on_error = know
    loop.after(0, fail)
    loop.after(0, loop.stop)
    loop.run()
    assert [type(error) for error in told] == [KeyError]


def test_a_descriptor_that_is_forgotten_in_its_turn_is_not_called(loop: Loop) -> None:
    called: list[int] = []
    pipes = [os.pipe() for _ in range(2)]

    def ready(which: int) -> None:
        called.append(which)
        loop.forget(pipes[1 - which][0])

    for which, (read, write) in enumerate(pipes):
        loop.watch(read, lambda _, which=which: ready(which))  # type: ignore[misc]
        os.write(write, b"x")
    loop.turn(1)
    assert len(called) == 1
    for pipe in pipes:
        for fd in pipe:
            loop.forget(fd)
            os.close(fd)


def test_forgetting_what_is_not_watched_is_harmless(loop: Loop) -> None:
    loop.forget(0)
