"""How a soak goes: until it is enough, on after an interruption, with a fresh guest after each failure."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests import soak_kit
from tests.cases import for_each
from tests.soak_kit import WEIGHTS, Loses, Pretended, PretendedGuest, order_of, soak
from userdev.errors import UserError, VerdictError
from vfio_user.harness.hosts.host import HostFailure
from vfio_user.soak import Failed, Happening, Journal, Until
from vfio_user.soak.measuring import Clock
from vfio_user.soak.summary import summary_of

FOREVER = Until(events=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "soak.jsonl"


def loses_after(*wanted: str) -> Loses:
    """A guest loses something when these have happened to it one after the other, whatever was between."""

    def loses(lived: Sequence[Happening]) -> str:
        rest = iter([happening.event for happening in lived])
        return "what was kept" if all(name in rest for name in wanted) else ""

    return loses


def test_it_goes_on_until_so_many_events_are_done_and_the_work_is_judged_in_the_end(path: Path) -> None:
    pretended = Pretended()
    one = soak(path, pretended, Until(events=20))
    one.run()
    assert [line["number"] for line in one.journal.events] == [*range(1, 21)]
    assert [guest.finished for guest in pretended.guests] == [True]


def test_at_each_event_it_is_known_what_comes_next_and_at_the_last_that_nothing_does(path: Path) -> None:
    pretended = Pretended(loses_after("kill", "reboot"))
    one = soak(path, pretended, Until(events=20))
    one.run()
    one.repeat([3, 4, 9])
    assert len(pretended.guests) > 3, "some failed, and were tried again"
    for guest in pretended.guests:
        *before, last = guest.expected
        assert before == guest.lived[1:]
        assert last is None or not guest.finished, "it was to go on, and has failed"


def test_what_was_not_asked_for_is_not_told_of_as_left_out(path: Path) -> None:
    for weights, told in ((WEIGHTS | {"flr": 1.0}, True), (WEIGHTS | {"flr": 0.0}, False)):
        seen: list[Mapping[str, str]] = []
        pretended = Pretended()
        pretended.begins = lambda order, left_out: seen.append(left_out)  # type: ignore[method-assign]  # noqa: B023
        one = replace(soak(path.with_name(str(told)), pretended, Until(events=1)), weights=weights)
        one.run()
        assert [bool(left_out) for left_out in seen] == [told], weights


def test_where_nothing_can_happen_it_is_told_first_what_was_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak_kit, "POSSIBLE", {})
    pretended = Pretended()
    with pytest.raises(UserError, match="nothing of what is wanted"):
        soak(path, pretended, Until(events=3)).run()
    assert pretended.told == ["begins"]


def test_the_same_seed_gives_the_same_soak(path: Path, tmp_path: Path) -> None:
    soaks = [soak(tmp_path / f"{number}.jsonl", Pretended(), Until(events=20)) for number in range(2)]
    for one in soaks:
        one.run()
    assert order_of(soaks[0].journal) == order_of(soaks[1].journal)


def interrupted_at(number: int) -> Pretended:
    def loses(lived: Sequence[Happening]) -> str:
        if lived[-1].number == number:
            raise KeyboardInterrupt
        return ""

    return Pretended(loses)


def test_an_interrupted_soak_goes_on_as_if_it_had_not_been(path: Path, tmp_path: Path) -> None:
    whole = soak(tmp_path / "whole.jsonl", Pretended(), Until(events=20))
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        soak(path, interrupted_at(9), Until(events=20)).run()
    again = soak(path, Pretended(), Until(events=20), seed=None)
    assert again.journal.resumed
    again.run()
    assert order_of(again.journal) == order_of(whole.journal)
    assert [line["number"] for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == "event"] == [
        *range(1, 21)
    ]


def test_the_time_of_the_runs_before_counts(path: Path) -> None:
    one = Journal(path, {"devices": ["edu"]}, 7)
    one.event({"number": 1, "event": "hop", "target": "", "at": 3600.0})
    again = soak(path, Pretended(), Until(seconds=3600))
    again.run()
    assert len(again.journal.events) == 1
    assert again.journal.done.seconds >= 3600


def test_a_soak_of_something_else_or_of_another_seed_begins_anew(path: Path) -> None:
    soak(path, Pretended(), Until(events=3)).run()
    for other in (Journal(path, {"devices": ["nvme"]}, 7), Journal(path, {"devices": ["edu"]}, 8)):
        assert not other.resumed
        assert other.events == []


def test_in_what_an_unfinished_soak_was_another_is_known(path: Path) -> None:
    soak(path, Pretended(), Until(events=3)).run()
    assert Journal(path, {"devices": ["edu"], "memory": 512}, 8).unlike == ["memory", "seed"]
    assert Journal(path, {"devices": ["edu"], "memory": 512}, 8).unlike == []
    assert Journal(path, {"devices": ["nvme"], "memory": 512}).unlike == ["devices"]


def test_a_soak_that_has_ended_is_not_gone_on_with_and_its_lines_stay(path: Path) -> None:
    one = soak(path, Pretended(), Until(events=3))
    one.run()
    one.journal.end("nothing was lost")
    assert not Journal(path, {"devices": ["edu"]}, 7).resumed
    assert path.read_text().count('"event"') >= 3


def test_a_soak_that_has_ended_is_gone_on_with_where_more_of_it_is_wanted(path: Path) -> None:
    """By bounds of all its runs: one of a run alone, or one that is reached, begins anew and says so."""
    one = soak(path, Pretended(), Until(events=3))
    one.run()
    one.journal.end("nothing was lost")
    ended = path.read_bytes()
    for until, goes_on in (
        (Until(events=5), True),
        (Until(seconds=7200.0, first_failure=True), True),
        (Until(events=3), False),
        (Until(seconds=7200.0, events=3), False),
        (Until(events=5, run_seconds=60.0), False),
        (Until(run_seconds=60.0), False),
        (Until(first_failure=True), False),
    ):
        path.write_bytes(ended)
        journal = Journal(path, {"devices": ["edu"]}, more=until.goes_beyond)
        assert (journal.resumed, journal.finished) == (goes_on, 0 if goes_on else 3), until
        assert journal.next_number == (4 if goes_on else 1), until
        assert (journal.seed == 7) is goes_on, until
        other = Journal(path, {"devices": ["nvme"]}, begin=False, more=until.goes_beyond)
        assert (other.resumed, other.finished) == (False, 0), until


def test_one_that_was_gone_on_with_after_its_end_can_be_interrupted_again(path: Path) -> None:
    one = soak(path, Pretended(), Until(events=3))
    one.run()
    one.journal.end("nothing was lost")
    again = Journal(path, {"devices": ["edu"]}, more=Until(events=9).goes_beyond)
    again.event({"number": 4, "event": "hop", "target": "", "whole": 1.0})
    assert Journal(path, {"devices": ["edu"]}).next_number == 5
    assert Journal(path, {"devices": ["nvme"]}, begin=False).unlike == ["devices"]


def test_one_that_ended_of_too_many_failures_begins_anew(path: Path) -> None:
    one = soak(path, Pretended(lambda _: "all"), Until(events=1000), tries=0)
    one.run()
    one.journal.end("all was lost")
    assert not Journal(path, {"devices": ["edu"]}, more=Until(events=1000).goes_beyond).resumed


def test_a_line_that_was_cut_by_a_crash_is_left_out(path: Path) -> None:
    soak(path, Pretended(), Until(events=3)).run()
    with path.open("a") as file:
        file.write('{"kind": "event", "number": 4, "ev')
    again = soak(path, Pretended(), Until(events=5))
    assert again.journal.next_number == 4
    again.run()
    assert [line["number"] for line in Journal(path, {"devices": ["edu"]}, 7).events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "3",
        '{"kind": "event"}',
        '{"kind": "event", "number": "1", "at": 0}',
        '{"kind": "begin"}',
        "\\ud800",
        "[" * 2000,
    ],
)
def test_a_line_that_is_none_of_ours_is_left_out(path: Path, line: str) -> None:
    soak(path, Pretended(), Until(events=3)).run()
    with path.open("a") as file:
        file.write(f"{line}\n")
    assert len(Journal(path, {"devices": ["edu"]}, 7).events) == 3


def test_a_failure_is_reduced_to_what_it_takes(path: Path) -> None:
    pretended = Pretended(loses_after("reboot", "kill", "hop"))
    one = soak(path, pretended, Until(first_failure=True))
    one.run()
    [failure] = one.journal.failures
    assert [event.split()[1] for event in failure["reduced_to"]] == ["reboot", "kill", "hop"]
    assert (failure["check"], failure["reproduced"], failure["minimal"]) == ("what was kept", True, True)
    numbers = [int(event.split()[0]) for event in failure["reduced_to"]]
    assert numbers == failure["reduced"] == sorted(numbers)
    assert failure["evidence"] == "what the guest said"
    assert pretended.folders[1:] == [f"failure1-try{number}" for number in range(1, failure["tries"] + 1)]


def test_what_it_takes_can_be_repeated_alone(path: Path, tmp_path: Path) -> None:
    pretended = Pretended(loses_after("reboot", "kill"))
    one = soak(path, pretended, Until(first_failure=True))
    one.run()
    again = soak(tmp_path / "again.jsonl", Pretended(loses_after("reboot", "kill")), FOREVER)
    failure = again.repeat(one.journal.failures[0]["reduced"])
    assert failure is not None
    assert failure.check == "what was kept"
    assert soak(tmp_path / "other.jsonl", Pretended(), FOREVER).repeat([1, 2]) is None


def test_another_fault_that_shows_while_one_is_reduced_is_not_taken_for_it(path: Path) -> None:
    """A guest of which only a few events are done loses something else."""

    def loses(lived: Sequence[Happening]) -> str:
        return "the first" if len(lived) == 6 else "another" if lived[0].number != 1 else ""

    one = soak(path, Pretended(loses), Until(first_failure=True))
    one.run()
    [failure] = one.journal.failures
    assert (failure["check"], failure["reduced"]) == ("the first", [1, 2, 3, 4, 5, 6])


def test_a_failure_that_does_not_come_again_says_so(path: Path) -> None:
    lost: list[int] = []

    def once(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 5 and not lost:
            lost.append(5)
            return "once"
        return ""

    one = soak(path, Pretended(once), Until(first_failure=True))
    one.run()
    [failure] = one.journal.failures
    assert failure["reproduced"] is False
    assert [event.split()[0] for event in failure["last"]] == ["1", "2", "3", "4", "5"]


class Lost(Pretended):
    """Guests that lose their hosts at an event, after which none can be had."""

    def __init__(self, number: int, *, lost_before: bool = False) -> None:
        self.number, self.lost_before = number, lost_before
        super().__init__(self.lose)

    def lose(self, lived: Sequence[Happening]) -> str:
        if lived[-1].number < self.number:
            return ""
        if self.lost_before:
            return "work"
        raise HostFailure("no SSH connection to b: Connection refused")

    @contextmanager
    def __call__(self, folder: Path, *, recorded: bool = False) -> Iterator[PretendedGuest]:
        if self.guests:
            raise UserError("no SSH connection to b: Connection refused")
        with super().__call__(folder, recorded=recorded) as guest:
            yield guest


def test_an_event_in_which_a_host_was_lost_is_no_failure_and_is_done_again(path: Path) -> None:
    """It was a failure of the guest for good, and was not done again when the host was back."""
    one = soak(path, Lost(5), Until(events=20))
    with pytest.raises(HostFailure):
        one.run()
    assert (one.journal.failures, one.journal.next_number) == ([], 5)
    summary = summary_of(one.journal, {}, {}, "", undone="no SSH connection")
    assert not summary["ok"]
    assert summary["verdict"] == "nothing was lost, and it could not be done to its end: no SSH connection"
    again = soak(path, Pretended(), Until(events=6))
    again.run()
    assert [line["number"] for line in again.journal.events] == [*range(1, 7)]


def test_a_failure_for_which_no_guest_can_be_had_could_not_be_tried_and_why_is_told(path: Path) -> None:
    """It "did not happen again, in 4 tries", of which none had a guest."""
    one = soak(path, Lost(5, lost_before=True), Until(events=20))
    with pytest.raises(UserError, match="no SSH connection"):
        one.run()
    [failure] = one.journal.failures
    assert (failure["tries"], failure["reproduced"]) == (0, False)
    assert "Connection refused" in failure["untried"]
    summary = summary_of(one.journal, {}, {}, "", undone="no SSH connection")
    assert all(word in summary["verdict"] for word in (failure["check"], "no SSH connection"))
    assert summary["by_event"][failure["event"]]["failed"] == 1
    assert sum(each["count"] + each["failed"] for each in summary["by_event"].values()) == summary["events"]


def test_what_shows_only_as_a_guest_ends_is_not_told_of_its_last_event(path: Path) -> None:
    """As what its lab leaves behind: of which event, if of any, is what a reduction tells."""

    class Leaves(Pretended):
        @contextmanager
        def __call__(self, folder: Path, *, recorded: bool = False) -> Iterator[PretendedGuest]:
            with super().__call__(folder, recorded=recorded) as guest:
                yield guest
            if any(happening.event == "kill" for happening in guest.lived):
                raise VerdictError("the lab left something behind")

    one = soak(path, Leaves(), Until(events=16))
    one.run()
    [failure] = one.journal.failures
    assert (failure["event"], failure["target"], failure["check"]) == ("end", "", "VerdictError")
    assert [event.split()[1] for event in failure["reduced_to"]] == ["kill"]
    assert (one.journal.done.events, one.journal.done.failures) == (16, 1), "its last event was done, and is one"


def test_it_goes_on_with_a_fresh_guest_and_the_next_number(path: Path) -> None:
    """The same fault is not reduced twice, and an event that failed is done no more."""
    pretended = Pretended(lambda lived: "the third" if len(lived) == 3 else "")
    one = soak(path, pretended, Until(events=6), tries=9)
    one.run()
    numbers = [line["number"] for line in (*one.journal.events, *one.journal.failures)]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]
    assert [line["number"] for line in one.journal.failures] == [3, 6]
    again = Journal(path, {"devices": ["edu"]}, 7)
    assert again.failures == one.journal.failures
    assert again.next_number == 7


def test_a_soak_in_which_everything_fails_ends(path: Path) -> None:
    one = soak(path, Pretended(lambda _: "all"), Until(events=1000), tries=0)
    one.run()
    assert len(one.journal.failures) == 10


def test_a_guest_that_does_not_even_begin_ends_it(path: Path) -> None:
    class NoGuest(Pretended):
        def __call__(self, folder: Path, *, recorded: bool = False):  # type: ignore[no-untyped-def]
            raise Failed("work of edu", "its first round was wrong")

    with pytest.raises(Failed):
        soak(path, NoGuest(), FOREVER).run()


def test_a_journal_that_cannot_be_written_is_the_users_to_mend(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError):
        Journal(path.parent.parent, {})
    one = soak(path, Pretended(), FOREVER)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left") as refused:
        one.run()
    assert "make room" in refused.value.hint


def test_a_clock_that_jumps_is_told_and_durations_are_what_they_were(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    jumped: list[float] = []

    def loses(lived: Sequence[Happening]) -> str:
        if lived[-1].number == 3:
            jumped.append(-7200.0)
        return ""

    monkeypatch.setattr(time, "time", lambda: real() + sum(jumped))
    one = soak(path, Pretended(loses), Until(events=6))
    one.run()
    [note] = one.journal.notes
    assert "-7200 s" in note
    assert all(0 <= line["at"] < 100 for line in one.journal.events)
    assert Journal(path, {"devices": ["edu"]}, 7).notes == [note]


def test_each_jump_of_a_clock_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real, moved = Clock(), time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + moved[0])
    for to, said in ((3600.0, "+3600"), (0.0, "-3600"), (-86400.0, "-86400")):
        moved[0] = to
        assert said in clock.jump()
        assert clock.jump() == ""


def test_a_clock_that_is_only_set_right_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, real = Clock(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1.0)
    assert clock.jump() == ""


@for_each([False, True], [False, True])
def test_a_soak_is_all_right_where_nothing_was_lost_and_nothing_grew(lost: bool, grows: bool, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "soak.jsonl", {"devices": ["edu"]}, 7)
    for number in range(1, 41):
        facts = {"number": number, "event": "hop", "target": "", "whole": 1.0}
        journal.event({**facts, "harness_fds": 10 + number * grows})
    if lost:
        journal.failure({"number": 41, "event": "kill", "target": "edu", "check": "work of edu"})
    found = summary_of(journal, {}, {}, "after 40 events")
    assert found["ok"] is not (lost or grows)
    idle = summary_of(journal, {}, {}, "after 40 events", works=False)
    assert idle["ok"] is found["ok"]
    assert ("no device had work" in idle["verdict"]) is found["ok"], "of which something could be lost"
    assert ("work of edu" in found["verdict"], "harness_fds grew" in found["verdict"]) == (lost, grows)
