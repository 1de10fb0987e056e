"""How often a scenario's rules have acted: one that never has leaves what it was to try untried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from userdev.counted import counted


@dataclass
class RuleUse:
    """How many messages one rule has matched, its `nth` and its chances aside, and how often it has acted."""

    matched: int = 0
    acted: int = 0


class RuleShown(TypedDict):
    """A rule, for `status`: the same, and with what probability it acts."""

    name: str
    matched: int
    acted: int
    probability: float


def rule_name(number: int, name: str) -> str:
    """What a rule is called, the `number`th from 0, wherever it is told of."""
    return name or f"rule {number + 1}"


def untried(rules: Iterable[RuleShown]) -> Iterator[str]:
    """Of each rule that has never acted a sentence, with why; not of one that might have by chance, and did not."""
    for rule in rules:
        if not rule["acted"] and (rule["probability"] >= 1 or not rule["matched"]):
            yield f"{rule['name']!r} never acted: {_why(rule['matched'])}"


def _why(matched: int) -> str:
    return f"of {counted(matched, 'message')} that matched none was its nth" if matched else "no message matched it"


def together(each: Iterable[Sequence[RuleShown]]) -> list[RuleShown]:
    """Of several interposers with the same scenario how often its rules have acted in all of them."""
    total: list[RuleShown] = []
    for rules in each:
        if not total:
            total = [rule.copy() for rule in rules]
            continue
        for rule, more in zip(total, rules, strict=True):
            rule["matched"] += more["matched"]
            rule["acted"] += more["acted"]
    return total
