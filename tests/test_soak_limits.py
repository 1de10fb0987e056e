"""Where a soak ends and what has grown in it: at the edges of each bound and figure, and after an interruption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.soak_kit import Pretended, soak
from vfio_user.soak import Done, Failed, Happening, Journal, Until
from vfio_user.soak.loop import LAST
from vfio_user.soak.measuring import WATCHED, trends
from vfio_user.soak.summary import summary_of

NOON = datetime(2026, 3, 1, 12, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "soak.jsonl"


# -- until when


def test_a_time_of_the_day_that_it_is_now_is_tomorrows() -> None:
    assert Until.parse(["12:00"], NOON) == Until(run_seconds=86400)


def test_a_night_in_which_the_clocks_are_changed_is_an_hour_longer_or_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as there:
            there.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
            time.tzset()
            for evening, hours in ((datetime(2026, 10, 24, 22), 10), (datetime(2026, 3, 28, 22), 8)):
                assert Until.parse(["07:00"], evening) == Until(run_seconds=hours * 3600.0), evening
    finally:
        time.tzset()


@for_each_row(
    [
        (Until(seconds=100), 0.5, 50.0),
        (Until(run_seconds=40), 0.25, 30.0),
        (Until(events=10), 0.4, 75.0),
        (Until(seconds=100, run_seconds=40, events=10), 0.5, 30.0),
        (Until(seconds=20), 1.0, 0.0),
        (Until(run_seconds=5), 1.0, 0.0),
        (Until(events=2), 1.0, 0.0),
        (Until(first_failure=True), 0.0, None),
    ]
)
def test_how_far_it_is_and_how_long_it_will_take_is_told_of_each_bound(
    until: Until, part: float, left: float | None
) -> None:
    """After 50 s in all, 10 of them in this run, and 4 events; whatever is over is done, and takes no time."""
    done = Done(50, 4)
    assert (until.part(done, 10), until.left(done, 10)) == (part, left)


def test_before_the_first_event_nobody_knows_how_long_events_take() -> None:
    assert Until(events=10).left(Done(), 0) is None


# -- what has grown


def values(name: str, first: float, last: float, count: int = 20) -> list[dict[str, Any]]:
    return [{name: first if number < count // 2 else last} for number in range(count)]


@for_each(WATCHED)
def test_a_figure_has_grown_beyond_its_factor_and_what_it_may_have_beside(name: str) -> None:
    """Also from nothing: that is a figure too."""
    factor, more = WATCHED[name]
    for first in (0.0, 1000.0):
        allowed = first * factor + more
        assert trends(values(name, first, allowed)) == []
        assert trends(values(name, allowed + 1, first)) == []
        [told] = trends(values(name, first, allowed + 1))
        assert told.startswith(f"{name} grew from {first:g} ")


@for_each_row([(19, False), (20, True)])
def test_a_trend_needs_enough_values_and_those_that_are_none_do_not_count(count: int, told: bool) -> None:
    some = values("harness_fds", 10, 100, count)
    some[1:1] = [{"harness_fds": None}, {}] * 30
    assert bool(trends(some)) is told


def test_descriptors_of_what_the_next_hop_needs_are_no_growth_and_those_that_stay_are() -> None:
    def soaked(hops_first: bool, leak: int = 0) -> list[dict[str, Any]]:
        """Hops one after the other, and pauses between as many others; which of both comes first is said."""
        in_pairs = [("hop", 34)] * 60
        alone = [("hop", 24), ("pause-qemu", 24)] * 30
        whole = [*in_pairs, *alone] if hops_first else [*alone, *in_pairs]
        return [{"event": event, "harness_fds": fds + number * leak} for number, (event, fds) in enumerate(whole)]

    for hops_first in (True, False):
        assert trends(soaked(hops_first)) == []
        assert [told.partition(" grew")[0] for told in trends(soaked(hops_first, leak=1))] == ["harness_fds"]


# -- what is kept of it


def test_what_a_journal_has_of_failures_is_there_for_the_next_run(path: Path) -> None:
    """What they were reduced to, that their numbers are over, and the time until then."""
    one = Journal(path, {"devices": ["edu"]}, 7)
    one.event({"number": 1, "event": "hop", "target": "", "at": 10.0})
    one.failure({"number": 2, "event": "kill", "target": "edu", "check": "work", "at": 500.0})
    one.reduced({"reduced": [1, 2], "reproduced": True})
    for _ in range(2):
        one.note("the clock jumped")
    again = Journal(path, {"devices": ["edu"]}, 7)
    assert again.failures == one.failures
    assert again.failures[0]["reduced"] == [1, 2]
    assert (again.next_number, again.notes) == (3, ["the clock jumped"])
    assert (again.done.events, again.done.failures) == (2, 1)
    assert 500 <= again.done.seconds < 600


def test_downtimes_are_told_of_events_that_had_one_be_it_none_at_all(path: Path) -> None:
    journal = Journal(path, {"devices": ["edu"]}, 7)
    for number, downtime in enumerate((0.0, 0.0, 4.0, None), 1):
        journal.event({"number": number, "event": "hop", "target": "", "whole": 1.0 * number, "downtime": downtime})
    found = summary_of(journal, {}, {}, "")
    assert found["downtime"] == {"median": 0.0, "longest": 4.0}
    assert found["by_event"] == {"hop": {"count": 4, "failed": 0, "median": 2.5, "longest": 4.0}}


# -- failures


def fails_at(*numbers: int, check: str = "work") -> Pretended:
    """Guests that lose something at each of these events, however often it is tried."""

    def loses(lived: Sequence[Happening]) -> str:
        return check if lived[-1].number in numbers else ""

    return Pretended(loses)


@pytest.mark.parametrize("also", ["check", "event"])
def test_only_the_same_check_of_the_same_event_is_the_same_failure(also: str, path: Path) -> None:
    """Another is reduced too, though half of it is alike."""
    one = soak(path, fails_at(3), Until(events=3))
    order = [one_event for one_event in _order(one, 40) if one_event.number > 3]
    third = _order(one, 3)[-1]
    alike = next(each for each in order if (each.event == third.event) is (also == "event"))

    def loses(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 3:
            return "work"
        return ("work" if also == "check" else "another") if lived[-1].number == alike.number else ""

    path.unlink()
    two = soak(path, Pretended(loses), Until(events=alike.number))
    two.run()
    assert [failure["seen_before"] for failure in two.journal.failures] == [False, False]
    assert all(failure["reproduced"] for failure in two.journal.failures)


def _order(one: Any, count: int) -> list[Happening]:
    from tests.soak_kit import POSSIBLE, WEIGHTS
    from vfio_user.soak import Order

    order = Order(one.journal.seed, WEIGHTS, POSSIBLE)
    return [order.happening(number) for number in range(1, count + 1)]


def test_a_failure_has_the_last_events_before_it_and_the_folder_of_its_shortest_try(path: Path) -> None:
    pretended = fails_at(LAST + 9)
    one = soak(path, pretended, Until(first_failure=True))
    one.run()
    [failure] = one.journal.failures
    assert [int(each.split()[0]) for each in failure["last"]] == [*range(10, LAST + 10)]
    assert failure["reduced"] == [LAST + 9]
    assert Path(failure["tried_in"]).name == "failure1-try1"
    assert Path(failure["folder"]).name == "guest1"


class WrongInTheEnd(Pretended):
    """Guests whose work turns out to be wrong when it is ended."""

    def __call__(self, folder: Path, *, recorded: bool = False):  # type: ignore[no-untyped-def]
        self.recorded = [*getattr(self, "recorded", []), recorded]
        life = super().__call__(folder, recorded=recorded)

        def finish() -> None:
            raise Failed("work", "its last round was wrong")

        class Life:
            def __enter__(self) -> Any:
                guest = life.__enter__()
                guest.finish = finish  # type: ignore[method-assign]
                return guest

            def __exit__(self, *error: Any) -> Any:
                return life.__exit__(*error)

        return Life()


def test_work_that_is_wrong_in_the_end_is_a_failure_and_so_it_is_when_it_is_repeated(path: Path) -> None:
    """And a life that is short is recorded."""
    pretended = WrongInTheEnd()
    one = soak(path, pretended, Until(events=3))
    one.run()
    [failure] = one.journal.failures
    assert (failure["check"], failure["reproduced"]) == ("work", True)
    assert pretended.recorded == [False, *[True] * (len(pretended.recorded) - 1)]
    lost = soak(path.with_name("again.jsonl"), WrongInTheEnd(), Until(events=1)).repeat([1, 2])
    assert lost is not None
    assert lost.check == "work"
