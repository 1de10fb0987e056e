"""Work that is planned for later is done in the order of its time, however much of it was forgotten meanwhile."""

from __future__ import annotations

import os
import random
import threading
from functools import partial

import pytest

from tests.cases import for_each
from userdev.serving import worker
from userdev.serving.worker import FORGOTTEN, Worker

LONG = 10.0


@for_each(range(3))
def test_what_is_left_of_many_plans_is_done_by_its_time_and_nothing_else(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(worker, "monotonic", lambda: now[0])
    order, over = random.Random(seed), threading.Event()
    done: list[int] = []
    planner = Worker(lambda work: work())
    times = list(range(1, 8 * FORGOTTEN))
    order.shuffle(times)
    forget = {time: planner.call_later(time, partial(done.append, time)) for time in times}
    kept = set(order.sample(times, FORGOTTEN // 2))
    for time in times:
        if time not in kept:
            forget[time]()
            forget[time]()  # idempotent
    assert len(planner._later) <= 2 * len(kept) + FORGOTTEN
    for until in (4 * FORGOTTEN, max(times)):
        now[0] = float(until)
        over.clear()
        planner.call_soon(lambda: None)  # it looks at the clock
        planner.call_later(0, over.set)
        assert over.wait(LONG)
        assert done == sorted(time for time in kept if time <= until), until
    planner.close()


def test_a_descriptor_that_is_watched_anew_is_told_to_who_asked_last() -> None:
    """Another may have its number meanwhile."""
    told, seen = [threading.Event() for _ in range(2)], list[int]()
    watcher, fd = Worker(lambda work: work()), os.eventfd(0)

    def ready(number: int) -> None:
        seen.append(number)
        os.eventfd_read(fd)
        told[number].set()

    for number in range(2):
        watcher.watch(fd, partial(ready, number))
        os.eventfd_write(fd, 1)
        assert told[number].wait(LONG)
    watcher.unwatch(fd)
    watcher.close()
    os.close(fd)
    assert seen == [0, 1]
