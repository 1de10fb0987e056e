"""How often a scenario's rules have acted: one that never has leaves what it was to try untried."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

from userdev.counted import counted, times


@dataclass
class RuleUse:
    """How many messages one rule has matched, its `nth` and its chances aside, and how often it has acted."""

    matched: int = 0
    acted: int = 0
    in_vain: int = 0
    """How often it could change nothing of a message, which went on as it was."""


class RuleShown(TypedDict):
    """A rule, for `status`: the same, and with what probability it acts."""

    name: str
    matched: int
    acted: int
    in_vain: int
    probability: float


def rule_name(number: int, name: str) -> str:
    """What a rule is called, the `number`th from 0, wherever it is told of."""
    return name or f"rule {number + 1}"


def untried(rules: Iterable[RuleShown]) -> Iterator[str]:
    """Of each rule that has never acted a sentence, with why; not of one that might have by chance, and did not."""
    for rule in rules:
        if not rule["acted"] and (rule["probability"] >= 1 or not rule["matched"] or rule["in_vain"]):
            yield f"{rule['name']!r} never acted: {_why(rule['matched'], rule['in_vain'])}"


def acted(rules: Iterable[RuleShown]) -> Iterator[str]:
    """Of each rule that has acted a sentence, with how often."""
    for rule in rules:
        if rule["acted"]:
            yield f"{rule['name']!r} acted {times(rule['acted'])}"


def _why(matched: int, in_vain: int) -> str:
    if in_vain:
        return f"{counted(in_vain, 'message')} that it was done to had nothing of what it changes, or had it so already"
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
            rule["in_vain"] += more["in_vain"]
    return total
