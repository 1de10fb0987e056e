"""A night against the one before: what is new, what stayed, what changes from night to night, what takes longer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from vfio_user.bundle.steady import steady
from vfio_user.nightly.history import Past, Results, results_of
from vfio_user.nightly.summary import CUT, Changed, Comparison, Flake, Moved, Summary, Verdict

LOOKED_AT = 10
"""Nights, this one among them, in which a verdict that changed back and forth makes a flake."""

MOVED_RATIO, MOVED_SECONDS = 1.5, 3.0
"""A duration has moved where it is so many times as long or as short, and by so many seconds."""

_TOLD = frozenset({Verdict.PASS, Verdict.FAIL, Verdict.ERROR, Verdict.XFAIL, Verdict.XPASS, Verdict.WEDGED})
"""Verdicts of cases that were run, or were to be."""


def compare(
    summary: Summary, before: tuple[str, Results] | None, nights: Sequence[tuple[str, Results]] = ()
) -> Comparison:
    """Compare a night with the one `before` it, and look for flakes in it and `nights`, the latest first.

    Of a night that was ended, or limited to some cells, cases that it did not come to are no difference.
    """
    name, was = before or ("", {})
    now = results_of(summary)
    was_wrong = {case: past for case, past in was.items() if past.verdict.is_wrong}
    wrong = [case for case, past in now.items() if past.verdict.is_wrong]
    is_whole = len(now) == summary.planned and not summary.only
    as_before = tuple(case for case in wrong if case in was_wrong and _is_the_same(now[case], was_wrong[case]))
    new = tuple(case for case in wrong if case not in {*as_before})
    mended = tuple(case for case, past in now.items() if case in was_wrong and past.verdict is Verdict.PASS)
    return Comparison(
        against=name,
        new=new,
        as_before=as_before,
        mended=mended,
        was={case: was[case].verdict for case in (*new, *mended) if case in was},
        cause_was={case: was_wrong[case].cause for case in new if case in was_wrong and was_wrong[case].cause},
        changed=tuple(
            Changed(id=case, before=was[case].verdict, after=past.verdict)
            for case, past in now.items()
            if case in was and was[case].verdict is not past.verdict and case not in {*wrong, *mended}
        ),
        added=tuple(case for case in now if was and case not in was),
        gone=tuple(case for case in was if case not in now) if is_whole else (),
        moved=tuple(_moved(now, was)),
        flakes=tuple(_flakes(now, nights)),
    )


def _is_the_same(now: Past, was: Past) -> bool:
    """Whether a case is wrong as it was: with the same verdict, and the same cause but for what is another in each run.

    One whose cause nobody knows any more is not.
    """
    words, before = steady(now.cause).split(), steady(was.cause).split()
    if now.cause.endswith(CUT) or was.cause.endswith(CUT):  # how far each comes depends on the length of its paths
        most = max(1, min(len(words), len(before)) - 1)
        words, before = words[:most], before[:most]
    return now.verdict is was.verdict and words == before


def _moved(now: Results, was: Results) -> Iterator[Moved]:
    """Durations of cases that passed both times, the largest change first."""
    both = [(case, was[case], now[case]) for case in now if case in was]
    pairs = [
        Moved(id=case, before=old.seconds, after=new.seconds)
        for case, old, new in both
        if old.verdict is Verdict.PASS and new.verdict is Verdict.PASS and _has_moved(old.seconds, new.seconds)
    ]
    yield from sorted(pairs, key=lambda moved: -abs(moved.after - moved.before))


def _has_moved(before: float, after: float) -> bool:
    short, long = sorted((before, after))
    return long - short >= MOVED_SECONDS and long >= MOVED_RATIO * short


def _flakes(now: Results, nights: Sequence[tuple[str, Results]]) -> Iterator[Flake]:
    """Cases whose verdict has changed at least twice: once is a fault that came, or went."""
    all_nights = [now, *(results for _, results in nights[: LOOKED_AT - 1])]
    for case in now:
        seen = [results[case].verdict for results in reversed(all_nights) if case in results]
        told = [verdict for verdict in seen if verdict in _TOLD]
        if sum(a is not b for a, b in pairwise(told)) >= 2:
            yield Flake(id=case, verdicts=tuple(told))
