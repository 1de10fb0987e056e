"""A failure's cause is planted among many events: what is left of them is the shortest sequence that has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.cases import for_each
from userdev.reduction import Reduction
from vfio_user.soak.reduction import reduce

SIXTEEN = "abcdefghijklmnop"

Fails = Callable[[Sequence[str]], bool]


def in_this_order(*wanted: str) -> Fails:
    """Fails where these happen one after the other, whatever is between."""

    def fails(some: Sequence[str]) -> bool:
        rest = iter(some)
        return all(one in rest for one in wanted)

    return fails


@for_each(["p", "op", "bp", "bhp", "ap", "abcdp", SIXTEEN])
def test_the_shortest_sequence_is_found(cause: str) -> None:
    found = reduce(SIXTEEN, in_this_order(*cause), 500)
    assert "".join(found.events) == cause
    assert found.reproduced
    assert found.minimal


def test_what_does_not_matter_is_left_out_by_its_kind_where_tries_are_few() -> None:
    """Two resets of one device far from each other: pieces of neighbours left eight of sixteen after so many tries."""
    pair = "fpxpypfppzpxpypf"
    events = [(number, kind) for number, kind in enumerate(pair)]
    cause = [events[6], events[-1]]

    def fails(some: Sequence[tuple[int, str]]) -> bool:
        return all(each in some for each in cause)

    found = reduce(events, fails, 12, lambda event: event[1])
    assert len(found.events) < len(reduce(events, fails, 12).events)
    assert {kind for _, kind in found.events} == {"f"}, found.events


def test_one_that_does_not_fail_again_is_left_whole() -> None:
    found = reduce(SIXTEEN, lambda _: False, 100)
    assert (found.events, found.reproduced, found.minimal) == (tuple(SIXTEEN), False, False)
    assert found.tries == 5, "ends of 1, 2, 4, 8 and 16"


@for_each(range(1, 12))
def test_no_more_is_tried_than_was_allowed_and_what_is_told_did_fail(most: int) -> None:
    asked: list[str] = []
    fails = in_this_order("b", "h", "p")

    def counted(some: Sequence[str]) -> bool:
        asked.append("".join(some))
        return fails(some)

    found = reduce(SIXTEEN, counted, most)
    assert found.tries == len(asked) <= most
    assert len({*asked}) == len(asked), "nothing is tried twice"
    assert found.reproduced is any(fails(some) for some in asked)
    assert not found.reproduced or fails(found.events)
    assert not found.minimal


def test_the_only_event_is_its_own_cause() -> None:
    found = reduce("a", lambda _: True, 1)
    assert (found.events, found.minimal) == (("a",), True)


def test_as_few_as_make_sense_are_tried_and_no_fewer() -> None:
    for least in range(5):
        tried: list[int] = []

        def fails(some: Sequence[str], tried: list[int] = tried) -> bool:
            tried.append(len(some))
            return True

        search = Reduction("abcdefgh", fails, least=least)
        search.run()
        assert (len(search.best), min(tried)) == (least, least)


def test_what_is_of_a_kind_is_left_out_together_in_its_order() -> None:
    """Of as many items the ones come first that came first."""
    tried: list[str] = []

    def fails(some: Sequence[str]) -> bool:
        tried.append("".join(some))
        return {"a", "B"} <= {*some}

    search = Reduction("aAbBcCdD", fails, alike=str.islower)
    search.run()
    assert "".join(search.best) == "aB"
    assert tried[:3] == ["", "ABcCdD", "aAbBCD"]
    assert search.tries == len(tried)
