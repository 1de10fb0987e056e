"""What is otherwise in one bundle than in another: what came of it, what it was made with, what was on the wire."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from vfio_user.bundle.model import Outcome, QemuFacts, Recipe, Seen, without_option
from vfio_user.bundle.reading import OpenBundle
from vfio_user.bundle.steady import steady
from vfio_user.bundle.wire import wire_differences


class About(StrEnum):
    """What a difference is about, in the order in which they are told."""

    VERDICT = "verdict"
    CAUSE = "cause"
    SAW = "the guest saw"
    COMMAND = "command"
    VERSION = "version"
    TRACE = "trace"


OF_OUTCOME = frozenset({About.VERDICT, About.CAUSE, About.SAW})
"""What makes two runs not the same; the rest may be why."""


_MOST_SHOWN = 240
"""Characters of either side that people are shown."""


@dataclass(frozen=True)
class Difference:
    """One thing that is otherwise: `what` it is, what it was in the first and in the second; "" for nothing."""

    about: About
    what: str
    first: str
    second: str

    @property
    def of_outcome(self) -> bool:
        """Whether something else came of it."""
        return self.about in OF_OUTCOME

    def __str__(self) -> str:
        """For people: of long texts the beginning."""
        named = f"{self.about}: {self.what}" if self.what else str(self.about)
        return f"{named}: {_cut(self.first) or 'nothing'} -> {_cut(self.second) or 'nothing'}"

    def as_dict(self) -> dict[str, str]:
        """The same for programs."""
        return asdict(self)


def differences(first: OpenBundle, second: OpenBundle) -> list[Difference]:
    """All that is otherwise in the second bundle."""
    one, other = first.bundle, second.bundle
    return [
        *outcome_differences(one.outcome, other.outcome),
        *_command(one.recipe, other.recipe),
        *_drawn(one.recipe, other.recipe),
        *made_with_differences(one.recipe, other.recipe),
        *(Difference(About.TRACE, *found) for found in wire_differences(first.traces, second.traces)),
    ]


def outcome_differences(one: Outcome, other: Outcome) -> Iterator[Difference]:
    """Another verdict, another cause, something else that the guest saw."""
    if one.verdict != other.verdict:
        yield Difference(About.VERDICT, "", one.verdict, other.verdict)
    both_failed = one.cause and other.cause
    if (both_failed or one.verdict == other.verdict) and steady(one.cause) != steady(other.cause):
        yield Difference(About.CAUSE, "", one.cause, other.cause)
    before = {seen.what: seen for seen in one.saw}
    after = {seen.what: seen for seen in other.saw}
    for what in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(what), after.get(what)
        told = [_saw(seen) if seen else "" for seen in (was, now)]
        if (was and was.ok) != (now and now.ok) or steady(told[0]) != steady(told[1]):
            yield Difference(About.SAW, what, *told)


def _saw(seen: Seen) -> str:
    return f"{'right' if seen.ok else 'WRONG'}{': ' if seen.seen else ''}{seen.seen}"


def made_with_differences(one: Recipe, other: Recipe) -> Iterator[Difference]:
    """QEMU, images, programs and versions that are others."""
    yield from _mapping("", _qemu(one.qemu), _qemu(other.qemu))
    yield from _mapping("image ", one.images, other.images)
    yield from _mapping("", {"accelerator": one.accelerator}, {"accelerator": other.accelerator})
    yield from _mapping("", one.versions, other.versions)
    both = [name for name in one.files if name in other.files]
    yield from _mapping("", {name: one.files[name] for name in both}, {name: other.files[name] for name in both})


def _qemu(facts: QemuFacts | None) -> dict[str, str]:
    if facts is None:
        return {}
    return {
        "QEMU": facts.version,
        "QEMU's program": facts.program,
        "QEMU's packages": facts.packages * bool(facts.name),
    }


def _command(one: Recipe, other: Recipe) -> Iterator[Difference]:
    words = [shlex.join((recipe.command, *without_option(recipe.arguments, "--qemu"))) for recipe in (one, other)]
    if words[0] != words[1]:
        yield Difference(About.COMMAND, "", *words)
        return
    cells = [{name: str(value) for name, value in recipe.cell.items() if name != "qemu"} for recipe in (one, other)]
    for difference in _mapping("cell's ", *cells):
        yield Difference(About.COMMAND, difference.what, difference.first, difference.second)


def _drawn(one: Recipe, other: Recipe) -> Iterator[Difference]:
    """Seeds that are others: a run that was given none draws one."""
    seeds = [{name: str(seed) for name, seed in recipe.seeds.items()} for recipe in (one, other)]
    for difference in _mapping("seed of ", *seeds):
        yield Difference(About.COMMAND, difference.what, difference.first, difference.second)


def _mapping(prefix: str, one: Mapping[str, str], other: Mapping[str, str]) -> Iterator[Difference]:
    for name in [*one, *(name for name in other if name not in one)]:
        was, now = one.get(name, ""), other.get(name, "")
        if was != now:
            yield Difference(About.VERSION, prefix + name, _shortened(was), _shortened(now))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _shortened(text: str) -> str:
    """A digest as people compare it."""
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
