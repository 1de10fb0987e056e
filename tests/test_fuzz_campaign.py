"""A fuzzer's campaign without a server: what is drawn, how finds are reduced, kept and read again."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from tests.fuzz_kit import Quiet, drawn_at_once
from userdev.conformance import CheckFailed, Group, Level
from userdev.errors import UserError
from userdev.fuzz import (
    Answer,
    Blob,
    Bounds,
    Campaign,
    Few,
    Find,
    Found,
    Kind,
    Number,
    Oracle,
    Pick,
    Several,
    Step,
    Summary,
    compared,
)
from userdev.fuzz.drawing import sequences
from userdev.fuzz.levels import level_of
from vfio_user.cli._fuzzing import corpus_checks

KINDS: list[Kind[Any]] = [
    Kind("one", lambda session: None, {"number": Number(0, 9), "data": Blob(0, 4)}),
    Kind("other", lambda session: None, {"few": Few(range(1000), 2), "several": Several(Pick(("a", "b")), 0, 3)}),
]
RULE = Oracle("rule", "nothing is said twice")


class Pretended:
    """A server that does wrong where `a` comes before `b`, and in another way where `c` is said."""

    protocol = "pretended"

    def __init__(self) -> None:
        self.renewed = 0

    def play(self, steps: Sequence[Step]) -> Found | None:
        names = [step.name for step in steps]
        if "stop" in names:
            raise KeyboardInterrupt
        if "a" in names and "b" in names[names.index("a") :]:
            return Found(RULE, "a before b", f"b behind a, of {len(steps)}")
        return Found(RULE, "c", "c was said") if "c" in names else None

    def renew(self) -> None:
        self.renewed += 1

    def facts(self) -> dict[str, str]:
        return {"device": "pretended"}


def steps(names: str) -> tuple[Step, ...]:
    return tuple(Step.of(name, number=place + 7) for place, name in enumerate(names.split()))


def campaign(drawn: list[tuple[Step, ...]], folder: Path | None = None, subject: Any = None, **bounds: Any) -> Summary:
    subject = subject or Pretended()
    return Campaign(subject, iter(drawn), seed=5, bounds=Bounds(**bounds), listener=Quiet(), folder=folder).run()


# what is drawn


def first(seed: int, count: int) -> list[tuple[Step, ...]]:
    with drawn_at_once(count):
        return [*islice(sequences(KINDS, seed, 10), count)]


def test_the_same_seed_gives_the_same_sequences_and_another_one_others() -> None:
    assert first(1, 5) == first(1, 5) != first(2, 5)


def test_what_else_is_loaded_changes_no_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[Kind[Any]] = [Kind("one", lambda session: None, {"number": Number(100_000, 999_999)})]
    with drawn_at_once(10):
        drawn = [*islice(sequences(kinds, 1, 40), 10)]
    (tmp_path / "loaded_meanwhile.py").write_text("NUMBERS = [123457, 765431, 345673, 543217]")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("loaded_meanwhile")
    with drawn_at_once(10):
        assert [*islice(sequences(kinds, 1, 40), 10)] == drawn


def test_a_sequence_has_few_of_what_is_to_have_to_do_with_each_other_and_others_have_other_ones() -> None:
    used = [{dict(step.arguments)["few"] for step in some if step.name == "other"} for some in first(3, 10)]
    assert max(map(len, used)) <= 2
    assert len(set().union(*used)) > 4


def test_what_is_drawn_is_of_its_kind_and_what_is_edited_need_not_be() -> None:
    kinds = {kind.name: kind for kind in KINDS}
    assert all(kinds[step.name].takes(step) for some in first(4, 5) for step in some)
    for wrong in (
        Step.of("one", number=10, data=""),
        Step.of("one", number="1", data=""),
        Step.of("one", number=1, data="xy"),
        Step.of("one", number=1),
        Step.of("one", number=1, data="", more=1),
    ):
        assert not KINDS[0].takes(wrong)


# a campaign


def test_a_find_is_reduced_to_the_steps_that_it_takes_and_to_simple_values(tmp_path: Path) -> None:
    summary = campaign([steps("x y a x x y b x")], tmp_path)
    (find,) = summary.finds.values()
    assert [step.name for step in find.steps] == ["a", "b"]
    assert {value for step in find.steps for _, value in step.arguments} == {0}
    assert find.reproduced
    assert find.minimal
    assert find.what == "b behind a, of 2"


class Complaining(Pretended):
    """One that says what it was asked in each life; one that began with `x` says other things."""

    def __init__(self) -> None:
        super().__init__()
        self.says = ""

    def play(self, steps: Sequence[Step]) -> Found | None:
        self.says += " ".join(step.name for step in steps)
        return super().play(steps)

    def renew(self) -> None:
        self.says += "." if self.says else ""

    def said(self) -> tuple[str, str]:
        says, self.says = self.says, ""
        return ("", says) if says.startswith("y") else (says, "")


def test_a_find_has_what_the_server_said_at_its_steps_alone_and_to_its_end() -> None:
    subject = Complaining()
    drawn = [steps(names) for names in ("y", "z", "a x b", "y c", "w")]
    made = Campaign(
        subject, iter(drawn), seed=5, bounds=Bounds(), listener=Quiet(), folder=None, said=subject.said
    ).run()
    assert [find.said for find in made.finds.values()] == ["a b.", "c."]
    assert made.raised == "z", "where nothing was found, the first that is no warning"


def test_one_cause_is_one_find_however_often_it_is_met(tmp_path: Path) -> None:
    summary = campaign([steps("a b"), steps("c"), steps("a x b"), steps("x")], tmp_path)
    assert sorted(find.cause for find in summary.finds.values()) == ["rule: a before b", "rule: c"]
    assert summary.finds["rule: a before b"].times == 2
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_reduction_keeps_the_cause_though_another_one_is_shorter() -> None:
    (find,) = campaign([steps("a c b")]).finds.values()
    assert [step.name for step in find.steps] == ["a", "b"]


def test_what_was_found_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    summary = campaign([steps("a b"), steps("stop"), steps("c")], tmp_path)
    assert summary.interrupted
    assert [Find.read(path).cause for path in tmp_path.iterdir()] == ["rule: a before b"]


def test_ctrl_c_within_a_reduction_keeps_the_find_as_it_was(tmp_path: Path) -> None:
    class Impatient(Pretended):
        def play(self, steps: Sequence[Step]) -> Found | None:
            if self.renewed:
                raise KeyboardInterrupt
            return super().play(steps)

    assert campaign([steps("x a b")], tmp_path, Impatient()).interrupted
    (path,) = tmp_path.iterdir()
    assert len(Find.read(path).steps) == 3


class Once(Pretended):
    """What it does wrong changes what it is: the same again is nothing new until it is started anew."""

    shown = False

    def play(self, steps: Sequence[Step]) -> Found | None:
        found = super().play(steps)
        if found is None or self.shown:
            return None
        self.shown = True
        return found

    def renew(self) -> None:
        self.shown = False
        super().renew()


def test_what_a_server_shows_once_is_reduced_with_fresh_ones() -> None:
    """Of one that has shown it already nothing is known by what it does not show."""
    (find,) = campaign([steps("x y a x y b")], subject=Once()).finds.values()
    assert [step.name for step in find.steps] == ["a", "b"]
    assert find.minimal
    (find,) = campaign([steps("x y a x y b")], subject=Once(), tries=4).finds.values()
    assert find.reproduced
    assert not find.minimal


def test_bounds_end_it() -> None:
    assert campaign([steps("x")] * 9, sequences=3).sequences == 3
    assert len(campaign([steps("a b"), steps("c")], finds=1).finds) == 1


def test_what_does_not_come_again_is_told_as_that() -> None:
    class Once(Pretended):
        def play(self, steps: Sequence[Step]) -> Found | None:
            return None if self.renewed else super().play(steps)

    summary = campaign([steps("x a b"), steps("x")], subject=Once(), finds=1)
    (find,) = summary.finds.values()
    assert not find.reproduced
    assert len(find.steps) == 3
    assert summary.sequences == 2, "it is not sure enough to end for"


def test_where_a_few_steps_show_it_alone_they_are_found_at_the_beginning_within_and_at_the_end() -> None:
    class Forgets(Pretended):
        def play(self, steps: Sequence[Step]) -> Found | None:
            return None if self.renewed and len(steps) > 12 else super().play(steps)

    for before in (0, 20, 40):
        names = "x " * before + "a b " + "x " * (40 - before)
        (find,) = campaign([steps(names)], subject=Forgets()).finds.values()
        assert find.reproduced, before
        assert [step.name for step in find.steps] == ["a", "b"], before


def test_the_last_step_is_tried_alone_first_so_that_one_try_is_enough_for_what_it_does_by_itself() -> None:
    (find,) = campaign([steps("x " * 30 + "c")], tries=1).finds.values()
    assert [step.name for step in find.steps] == ["c"]


def test_how_far_it_is_has_what_a_reduction_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    told: list[float] = []

    class Slow(Pretended):
        def play(self, steps: Sequence[Step]) -> Found | None:
            clock[0] += 1
            return super().play(steps)

    class Hears(Quiet):
        def played(self, summary: Summary) -> None:
            told.append(summary.seconds)

    monkeypatch.setattr("userdev.fuzz.campaign.monotonic", lambda: clock[0])
    Campaign(Slow(), iter([steps("x a b")]), seed=5, bounds=Bounds(), listener=Hears(), folder=None).run()
    assert told == clock > [3.0]


def test_what_had_not_begun_is_not_among_the_steps_of_a_find() -> None:
    """The step that shows it is the last then, which is tried alone first: where answers are awaited tries are few."""

    class Says(Pretended):
        played: ClassVar[list[int]] = []

        def play(self, steps: Sequence[Step]) -> Found | None:
            self.played.append(len(steps))
            names = [step.name for step in steps]
            return Found(RULE, "c", "c was said").at(names.index("c") + 1) if "c" in names else None

    (find,) = campaign([steps("x x c x x x")], subject=Says()).finds.values()
    assert Says.played[:2] == [6, 1]
    assert [step.name for step in find.steps] == ["c"]


def test_whatever_was_found_the_next_sequence_has_a_fresh_server() -> None:
    class Spoilt(Pretended):
        is_spoilt = False

        def play(self, steps: Sequence[Step]) -> Found | None:
            found = super().play(steps)
            self.is_spoilt |= found is not None
            return found

        def renew(self) -> None:
            super().renew()
            self.is_spoilt = False

    subject, were_spoilt = Spoilt(), []

    def drawn() -> Iterator[tuple[Step, ...]]:
        for names in ("x", "a b", "x", "a b", "c", "c", "x"):
            were_spoilt.append(subject.is_spoilt)
            yield steps(names)

    Campaign(subject, drawn(), seed=5, bounds=Bounds(), listener=Quiet(), folder=None).run([Found(RULE, "d", "known")])
    assert were_spoilt == [False] * 7


def test_what_is_found_as_the_time_ends_is_reduced_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    times = chain([0.0, 0.0], repeat(100.0))
    monkeypatch.setattr("userdev.fuzz.campaign.monotonic", lambda: next(times))
    (find,) = campaign([steps("x y a x b")], seconds=50.0).finds.values()
    assert [step.name for step in find.steps] == ["a", "b"]
    assert find.minimal


def test_a_reference_is_compared_as_far_as_it_was_asked_the_same() -> None:
    ours = ("a1", "b2", "c3")
    for theirs, cause in {
        ("a1", "b2", "c3"): None,
        ("a1", "b0", "c3"): "rule: b",
        ("a1", "x2", "c0"): None,
        ("a1", "b2"): None,
        (): None,
    }.items():
        for one, other in ((ours, theirs), (theirs, ours)):
            found = compared(RULE, *([Answer(said[0], "", said[1].encode()) for said in each] for each in (one, other)))
            assert (found and found.cause) == cause, (one, other)


def read(at: int, data: bytes | None) -> Answer:
    size = 4 if data is None else len(data)
    return Answer(f"{size} bytes at {at}", f"a read of {size} bytes of region 0", data, "region 0", at)


def test_differences_from_a_reference_have_one_cause_for_one_place_and_for_one_reason_to_refuse() -> None:
    for differences, cause in (
        ([(read(4, b"1234"), read(4, b"1235")), (read(7, b"4"), read(7, b"5"))], "rule: region 0 at 0x4"),
        ([(read(0, b"11112222"), read(0, b"11112223")), (read(6, b"22"), read(6, b"33"))], "rule: region 0 at 0x4"),
        (
            [(read(0, None), read(0, b"1234")), (read(8, None), read(8, b"1234"))],
            "rule: a read of 4 bytes of region 0: this server alone refuses it",
        ),
        ([(read(0, b"1234"), read(0, None))], "rule: a read of 4 bytes of region 0: the reference alone refuses it"),
    ):
        for one, other in differences:
            found = compared(RULE, [one], [other])
            assert found is not None
            assert found.cause == cause


def test_what_is_known_of_a_reference_is_gone_over_for_what_is_not() -> None:
    ours, theirs = [read(0, b"1"), read(4, b"1")], [read(0, b"2"), read(4, b"2")]
    first = compared(RULE, ours, theirs)
    assert first is not None
    behind = compared(RULE, ours, theirs, ignored=lambda found: found.name == first.name)
    assert behind is not None
    assert behind.cause == "rule: region 0 at 0x4"
    assert compared(RULE, ours, theirs, ignored=lambda _: True) is None


def test_what_is_known_is_counted_and_neither_kept_nor_reduced(tmp_path: Path) -> None:
    subject = Pretended()
    done = Campaign(
        subject,
        iter([steps("x c"), steps("a x b"), steps("c")]),
        seed=5,
        bounds=Bounds(),
        listener=Quiet(),
        folder=tmp_path,
        ignored=lambda found: "c" in found.cause.partition(":")[2],
    ).run()
    assert done.ignored == 2
    assert [find.cause for find in done.finds.values()] == ["rule: a before b"]
    assert [path.stem for path in tmp_path.iterdir()] == [find.name for find in done.finds.values()]


def test_what_is_to_be_ignored_has_a_name_that_a_find_can_have(tmp_path: Path) -> None:
    from vfio_user.cli.fuzz import command

    find = Find("vfio-user", "growth", "a rule", "growth: c", "c", ())
    for name, expected in (
        ("growht", "did you mean 'growth'"),
        ("growht-0123456789", "ORACLE-NUMBER"),
        (find.name, "none.sock"),
        ("growth", "none.sock"),
        (str(find.write(tmp_path)), "none.sock"),
        (str(tmp_path / "gone.json"), "gone.json"),
    ):
        told = CliRunner().invoke(command, [str(tmp_path / "none.sock"), "--quiet", "--ignore", name]).exception
        assert isinstance(told, UserError | OSError), name
        said = f"{told} {getattr(told, 'hint', '')}"
        assert expected in said, name


def test_a_find_of_a_corpus_is_a_check_that_fails_whatever_is_found_with_it(tmp_path: Path) -> None:
    class Probed(Pretended):
        def __init__(self, wrong: list[Found]) -> None:
            super().__init__()
            self.wrong, self.closed = wrong, False

        def prepare(self) -> list[Found]:
            return self.wrong

        def kinds(self) -> list[Kind[Any]]:
            return [Kind(name, lambda session: None, {"number": Number(0, 99)}) for name in "xabc"]

        def close(self) -> None:
            self.closed = True

    at_once = [Found(RULE, "d", "it is so at once")]
    for names, wrong, said in (
        ("x", [], ""),
        ("c", [], "^c was said$"),
        ("a b", [], "^rule: a before b: b behind a, of 2$"),
        ("", at_once, "^rule: d: it is so at once$"),
        ("", [*at_once, Found(RULE, "c", "c was said")], "^c was said$"),
        ("", [], ""),
    ):
        Find("p", "rule", "a rule", "rule: c", "c was said", steps(names)).write(tmp_path)
        subject = Probed(wrong)
        (check,) = corpus_checks(tmp_path, "p", lambda bench, find, subject=subject: subject, ())  # type: ignore[misc]
        if said:
            with pytest.raises(CheckFailed, match=said):
                check.run(None)
        else:
            check.run(None)
        assert subject.closed, names


def test_a_find_that_is_the_failure_of_a_check_has_the_rule_and_the_level_of_that(tmp_path: Path) -> None:
    group = Group[None]("info", "the rule of the check")
    group.add("odd", "It is not odd", lambda bench: None, level=Level.REFERENCE, revision="of 2022")
    found = {}
    for cause in ("rule: check info/odd", "rule: check info/gone", "rule: info/odd"):
        Find("p", "rule", "a rule", cause, "it is odd", ()).write(tmp_path / cause)
        (made,) = corpus_checks(tmp_path / cause, "p", lambda bench, find: Pretended(), tuple(group))  # type: ignore[arg-type, return-value]
        found[cause] = (made.rule, made.level, made.revision)
    kept = Find("p", "rule", "a rule", "rule: taken", "it is taken", (), level="REFERENCE").write(tmp_path / "kept")
    assert Find.read(kept).level == "REFERENCE"
    (made,) = corpus_checks(kept.parent, "p", lambda bench, find: Pretended(), tuple(group))  # type: ignore[arg-type, return-value]
    assert made.level is Level.REFERENCE
    odd = Find("p", "rule", "a rule", "rule: region # is #", "region 0 is 7", ()).write(tmp_path / "odd")
    (made,) = corpus_checks(odd.parent, "p", lambda bench, find: Pretended(), tuple(group))  # type: ignore[arg-type, return-value]
    assert made.title.endswith("rule: region 0 is 7")
    assert found == {
        "rule: check info/odd": ("the rule of the check", Level.REFERENCE, "of 2022"),
        "rule: check info/gone": ("a rule", Level.MUST, ""),
        "rule: info/odd": ("a rule", Level.MUST, ""),
    }


def test_a_find_is_told_once_with_its_check_and_with_the_numbers_of_what_was_seen() -> None:
    """Its cause is often the same text without them."""
    for cause, what, told in (
        ("rule: b failed with #", "b failed with 5\nand more", "rule: b failed with 5"),
        ("rule: register # is lost", "behind a reset, register 7 is lost", "rule: behind a reset, register 7 is lost"),
        ("rule: check info/odd", "it is odd", "rule: check info/odd: it is odd"),
        ("rule: line # of it", "it ended:\n  line 7 of it\n", "rule: line 7 of it: it ended:"),
        ("rule: ended at #", "it ended:\n  ended at 0x5:\n", "rule: ended at 0x5: it ended:"),
        ("rule: c", "", "rule: c: "),
    ):
        assert Find("p", "rule", "a rule", cause, what, ()).headline == told


# finds as files


def test_a_find_is_held_again_to_the_rules_that_it_broke() -> None:
    for said, level in (("must", "must"), ("reference", "reference"), ("", "reference"), ("later", "reference")):
        assert level_of(Find("p", "rule", "", "rule: c", "", (), subject={"level": said})) == level, said
    assert level_of(Find("p", "rule", "", "rule: c", "", ())) == "reference"


def test_what_is_drawn_reaches_both_ends_and_as_many_as_there_may_be() -> None:
    some = list(islice(sequences(KINDS, 1, 40), 25))
    drawn = list(chain.from_iterable(some))
    ones = [dict(step.arguments) for step in drawn if step.name == "one"]
    others = [dict(step.arguments) for step in drawn if step.name == "other"]
    assert {one["number"] for one in ones} == set(range(10))
    assert {len(str(one["data"])) for one in ones} == {0, 2, 4, 6, 8}
    assert {len(tuple(other["several"])) for other in others} == {0, 1, 2, 3}  # type: ignore[arg-type]
    used = [{dict(step.arguments).get("few") for step in steps} - {None} for steps in some]
    assert max(map(len, used)) == 2


def test_a_step_is_shown_with_numbers_as_people_read_them() -> None:
    shown = {0: "0", 9: "9", 10: "0xa", -9: "-9", -10: "-0xa"}
    for number, text in shown.items():
        assert str(Step.of("a", n=number)) == f"a(n={text})"
