"""What becomes of a check, by its level and by what the server does: for checks of any protocol."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path

from tests.cases import for_each, for_each_row
from userdev.conformance import Cause, Check, Crash, Group, Level, Outcome, Skip, require, run
from userdev.conformance.targets import RunningServer
from userdev.errors import UserdevError
from userdev.transport import Listener


class Bench:
    def begin(self) -> None:
        return

    def hurry(self) -> None:
        return

    def cause(self) -> None:
        return

    def close(self) -> None:
        return


class Server:
    """Is well until it is told that it has crashed."""

    def __init__(self, crash: Crash | None = None) -> None:
        self.crash = crash

    def renew(self) -> None:
        return

    def crashed(self) -> Crash | None:
        crash, self.crash = self.crash, None
        return crash


def wrong(_: Bench) -> None:
    """The rule is not kept."""
    require(False, "it does otherwise")


def right(_: Bench) -> None:
    """The rule is kept."""


def impossible(_: Bench) -> None:
    """The rule is none of this server's."""
    raise Skip("it has none")


def broken(_: Bench) -> None:
    """The check itself breaks."""
    raise KeyError("what nobody thought of")


def outcome(check: Callable[[Bench], None], level: Level, crash: Crash | None = None) -> tuple[Outcome, str]:
    group = Group[Bench]("group", "a rule")
    group.check("name", level=level)(check)
    [result] = run(list(group), Server(crash), Bench, dialect="any", settle=lambda: None)
    return result.outcome, result.detail


def several(*functions: Callable[[Bench], None], level: Level = Level.MUST) -> list[Check[Bench]]:
    group = Group[Bench]("group", "a rule")
    for number, function in enumerate(functions):
        group.check(f"{function.__name__}{number}", level=level)(function)
    return list(group)


@for_each(Level)
def test_a_rule_that_is_left_open_is_not_failed(level: Level) -> None:
    assert outcome(wrong, level) == (
        Outcome.DIFFERS if level is Level.OPEN else Outcome.FAIL,
        "it does otherwise",
    )
    assert outcome(right, level) == (Outcome.PASS, "")
    assert outcome(impossible, level) == (Outcome.SKIP, "it has none")


class Seeing(Bench):
    """Has seen what is the rule of the last check."""

    def cause(self) -> Cause:  # type: ignore[override]
        return Cause("it", "it does not", "group/wrong1")


def test_what_another_checks_rule_explains_waits_for_that_and_a_crash_for_nobody() -> None:
    for crash, told in (
        (None, ["wrong1 fail", "wrong0 not judged"]),
        (Crash("it died"), ["wrong0 fail", "wrong1 fail"]),
    ):
        results = run(several(wrong, wrong), Server(crash), Seeing, dialect="any", settle=lambda: None)
        found = {result.check.id: result for result in results}
        assert [f"{id.partition('/')[2]} {result.outcome.value}" for id, result in found.items()] == told
        assert ("it died" in found["group/wrong0"].detail) is (crash is not None)


def test_a_server_that_somebody_else_runs_and_that_has_gone_is_told_once(tmp_path: Path) -> None:
    with Listener(str(tmp_path / "s")) as listener:
        server = RunningServer(str(listener.path), lambda stream, timeout: None, timeout=1)
        server.settle()
        assert server.crashed() is None
    server.settle()
    lost = server.crashed()
    assert lost is not None
    assert "takes no client any more" in lost.text
    assert server.crashed() is None


@for_each([right, wrong])
def test_a_server_that_ends_by_itself_differs_where_that_is_left_open(check: Callable[[Bench], None]) -> None:
    ended, killed = Crash("it ended", by_itself=True), Crash("it was killed")
    assert outcome(check, Level.OPEN, ended)[0] is Outcome.DIFFERS
    assert outcome(check, Level.OPEN, killed)[0] is Outcome.FAIL
    assert outcome(check, Level.MUST, ended)[0] is Outcome.FAIL
    assert "it ended" in outcome(check, Level.OPEN, ended)[1]


def test_a_check_that_breaks_is_told_with_the_line_of_it_whatever_is_around_it() -> None:
    @wraps(broken)
    def around(bench: Bench) -> None:
        broken(bench)

    for check in (broken, around):
        verdict, detail = outcome(check, Level.MUST)
        assert verdict is Outcome.BROKEN
        assert f"{__file__}:{broken.__code__.co_firstlineno + 2}" in detail


@for_each(Level)
def test_a_server_has_the_time_to_die_of_what_a_check_has_sent_whatever_the_check_says(level: Level) -> None:
    """Else its death is that of the next, whose client it still takes. A check that was skipped has sent nothing."""
    happened: list[str] = []
    told = run(
        several(right, wrong, broken, impossible, right, level=level),
        Server(),
        Bench,
        dialect="any",
        settle=lambda: happened.append("settled"),
        started=lambda check: happened.append(check.id),
    )
    assert len(list(told)) == 5
    assert happened == [
        *("group/right0", "settled", "group/wrong1", "settled", "group/broken2", "settled"),
        *("group/impossible3", "group/right4", "settled"),
    ]


@for_each_row([(Level.MUST, Outcome.FAIL), (Level.OPEN, Outcome.DIFFERS)])
def test_what_needs_what_went_wrong_is_not_judged_however_far_behind_it(level: Level, first: Outcome) -> None:
    """Whether the first was failed or only differs, and what needs one that was not judged."""
    group = Group[Bench]("group", "a rule")
    group.check("first", level=level)(wrong)
    group.check("second", needs=("group/first",))(wrong)
    group.check("third", needs=("group/second",))(wrong)
    group.check("right", needs=("group/first",))(right)
    group.check("other")(wrong)
    told = run(list(group), Server(), Bench, dialect="any", settle=lambda: None)
    assert [result.outcome for result in told] == [
        *(first, Outcome.NOT_JUDGED, Outcome.NOT_JUDGED, Outcome.PASS, Outcome.FAIL)
    ]


class Undone(UserdevError):
    """A request was not done."""

    def __init__(self, request: str) -> None:
        super().__init__(f"{request} is refused")
        self.request = request


@for_each_row([(Level.MUST, Outcome.FAIL, Outcome.NOT_JUDGED), (Level.OPEN, Outcome.DIFFERS, Outcome.FAIL)])
def test_what_fails_of_a_request_that_another_check_failed_of_is_not_judged(
    level: Level, first: Outcome, second: Outcome
) -> None:
    """What only differs is no failure that would stand for others."""

    def fails_of(request: str) -> Callable[[Bench], None]:
        def check(_: Bench) -> None:
            """It is done."""
            raise Undone(request)

        return check

    group = Group[Bench]("group", "a rule")
    group.check("first", level=level)(fails_of("STOP"))
    group.check("second")(fails_of("STOP"))
    group.check("third")(fails_of("STOP"))
    group.check("other")(fails_of("START"))
    group.check("unnamed")(wrong)
    told = [*run(list(group), Server(), Bench, dialect="any", settle=lambda: None)]
    assert [result.outcome for result in told] == [first, second, Outcome.NOT_JUDGED, Outcome.FAIL, Outcome.FAIL]
    owner = told[0] if second is Outcome.NOT_JUDGED else told[1]
    assert f"STOP, of which {owner.check.id} failed" in told[2].detail


def test_a_crash_is_told_beside_what_the_check_had_found() -> None:
    killed = Crash("it was killed")
    assert outcome(wrong, Level.MUST, killed)[1] == "it does otherwise; it was killed"
    assert outcome(right, Level.MUST, killed)[1] == "it was killed"


def test_a_rule_of_another_dialect_is_not_asked_for() -> None:
    group = Group[Bench]("group", "a rule", dialects=frozenset({"another"}))
    group.check("name")(wrong)
    for dialect, found in (("any", Outcome.SKIP), ("another", Outcome.FAIL)):
        [result] = run(list(group), Server(), Bench, dialect=dialect, settle=lambda: None)
        assert result.outcome is found


DIED = {1: ("two/last", "one/first"), 2: ("four/last", "three/first")}
"""By the number of the renewal: the check whose failure it is then that the server dies, and the first it served."""


@for_each([(1, 2), (2,), (1,), ()])
def test_the_group_after_a_failure_has_a_fresh_server_and_one_that_dies_at_its_end_died_of_what_it_served(
    dies: tuple[int, ...],
) -> None:
    class Dying(Server):
        renewed = 0

        def renew(self) -> None:
            self.renewed += 1
            if self.renewed in dies:
                self.crash = Crash(f"it died at its end, {self.renewed}")

    checks = []
    for name, function in {"one": right, "two": wrong, "three": right, "four": right}.items():
        group = Group[Bench](name, "a rule")
        group.check("first")(function)
        group.check("last")(right)
        checks += list(group)
    told = {each.check.id: each for each in run(checks, Dying(), Bench, dialect="any", settle=lambda: None)}
    assert {id: each.outcome for id, each in told.items() if each.outcome is not Outcome.PASS} == {
        **dict.fromkeys(("two/first", *(DIED[number][0] for number in dies)), Outcome.FAIL)
    }
    for number in dies:
        id, first = DIED[number]
        assert f"it died at its end, {number}" in told[id].detail
        assert f"every check from {first} on" in told[id].detail


class Mute(Bench):
    def begin(self) -> None:
        raise UserdevError("it hangs up")


@for_each([Level.MUST, Level.OPEN])
def test_a_server_that_begins_no_conversation_is_one_failure_and_nothing_else_is_tried(level: Level) -> None:
    tried: list[str] = []
    checks = several(right, wrong, wrong, right, level=level)
    told = run(checks, Server(), Mute, dialect="any", settle=lambda: None, started=lambda check: tried.append(check.id))
    results = list(told)
    assert [result.outcome for result in results] == [
        *(Outcome.PASS, Outcome.FAIL, Outcome.NOT_JUDGED, Outcome.NOT_JUDGED)
    ]
    assert tried == [checks[0].id, checks[1].id]
    assert all("it hangs up" in result.detail for result in results[1:])
    assert all(checks[1].id in result.detail for result in results[2:])


def test_a_server_that_is_unlucky_once_is_asked_again_and_asked_no_more_until_it_has_died() -> None:
    begun: list[bool] = []

    class Unlucky(Bench):
        def begin(self) -> None:
            begun.append(True)
            if len(begun) == 1:
                raise UserdevError("it has another client")

    server = Server()
    found = []
    for result in run(several(wrong, wrong, wrong, wrong), server, Unlucky, dialect="any", settle=lambda: None):
        found.append((result.outcome, len(begun)))
        if len(found) == 2:
            server.crash = Crash("it was killed")
    assert found == [(Outcome.FAIL, 2), (Outcome.FAIL, 2), (Outcome.FAIL, 3), (Outcome.FAIL, 3)]


def test_a_server_that_does_not_answer_is_waited_for_once() -> None:
    begun: list[bool] = []

    class Slow(UserdevError, TimeoutError):
        """No answer came."""

    class Silent(Bench):
        def begin(self) -> None:
            begun.append(True)
            raise Slow("it does not answer")

    assert len(list(run(several(wrong, wrong, wrong), Server(), Silent, dialect="any", settle=lambda: None))) == 3
    assert len(begun) == 1


def test_what_needs_a_rule_that_is_not_kept_is_tried_in_a_hurry_as_the_server_may_die_of_it() -> None:
    hurried: list[bool] = []

    class Hurried(Bench):
        def __init__(self) -> None:
            hurried.append(False)

        def hurry(self) -> None:
            hurried[-1] = True

    group = Group[Bench]("group", "a rule")
    group.check("first")(wrong)
    group.check("beside")(right)
    for name in ("behind", "dies"):
        group.check(name, needs=("group/first",))(wrong)
    server, found = Server(), []
    for result in run(list(group), server, Hurried, dialect="any", settle=lambda: None):
        found.append(result.outcome)
        server.crash = Crash("it was killed") if len(found) == 3 else None
    assert found == [Outcome.FAIL, Outcome.PASS, Outcome.NOT_JUDGED, Outcome.FAIL]
    assert [each for each in hurried if each] == [True, True]


def test_a_server_that_dies_for_good_is_one_failure() -> None:
    class Grave(Server):
        def crashed(self) -> Crash | None:
            return Crash("nobody listens any more")

    results = list(run(several(right, right, right), Grave(), Mute, dialect="any", settle=lambda: None))
    assert [result.outcome for result in results] == [Outcome.FAIL, Outcome.NOT_JUDGED, Outcome.NOT_JUDGED]
