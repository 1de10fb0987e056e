"""Sequences of steps, drawn by hypothesis: a rule-based machine with a rule for each kind of step.

Which sequences a seed gives depends on nothing but the kinds and hypothesis' version, so that no server is needed to
draw them, and none can change them. What hypothesis does for it: values at the edges more often than others, and in
each sequence some rules switched off, as bugs show where a few things are done many times. Its own way to make a
failure smaller is not used: the sequences that it would try cost a server each, and causes have to be kept apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from userdev.fuzz.steps import Blob, Choice, Few, Kind, Number, Pick, Several, Step, Value

AT_ONCE = 25
"""Sequences that are drawn at once: hypothesis keeps what it has drawn, so that it is begun anew for the next ones."""

Draw = Callable[[st.SearchStrategy[Any]], Any]


def sequences(kinds: Sequence[Kind[Any]], seed: int, length: int) -> Iterator[tuple[Step, ...]]:
    """Draw sequences of at most `length` steps, without an end; the same for the same seed."""
    for turn in count():
        yield from _some(kinds, f"{seed}/{turn}", length)


def _some(kinds: Sequence[Kind[Any]], seed: str, length: int) -> list[tuple[Step, ...]]:
    found: list[tuple[Step, ...]] = []

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[Step] = []
            self.few: dict[Few, list[Value]] = {}

        def teardown(self) -> None:
            found.append(tuple(self.steps))

    for kind in kinds:
        for turn in range(kind.weight):
            setattr(Machine, f"{kind.name}_{turn}", _rule(kind))
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")
    with _without_constants():
        run_state_machine_as_test(
            hypothesis.seed(number)(Machine),
            settings=settings(
                max_examples=AT_ONCE,
                stateful_step_count=length,
                database=None,
                deadline=None,
                derandomize=False,
                phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
                verbosity=Verbosity.quiet,
            ),
        )
    return [steps for steps in found if steps]


@contextmanager
def _without_constants() -> Iterator[None]:
    """Have hypothesis draw no constants of whatever modules are loaded: with others a seed would mean something else.

    It has no setting for that (6.170). Without the method it is left as it is: a test says whether it still does so.
    """
    if not hasattr(HypothesisProvider, "_maybe_draw_constant"):
        yield
        return
    with patch.object(HypothesisProvider, "_maybe_draw_constant", lambda *_, **__: None):
        yield


def _rule(kind: Kind[Any]) -> Any:
    @rule(data=st.data())
    def one(machine: Any, data: st.DataObject) -> None:
        arguments = {name: _drawn(choice, data.draw, machine.few) for name, choice in kind.arguments.items()}
        machine.steps.append(Step.of(kind.name, **arguments))

    return one


def _drawn(choice: Choice, draw: Draw, few: dict[Few, list[Value]]) -> Value:
    match choice:
        case Pick(values):
            return values[draw(st.integers(0, len(values) - 1))]
        case Number(low, high):
            number: int = draw(st.integers(low, high))
            return number
        case Blob(low, high):
            data: bytes = draw(st.binary(min_size=low, max_size=high))
            return data.hex()
        case Several(of, low, high):
            return tuple(_drawn(of, draw, few) for _ in range(draw(st.integers(low, high))))
    if choice not in few:
        some = range(min(choice.most, len(choice.values)))
        few[choice] = [choice.values[draw(st.integers(0, len(choice.values) - 1))] for _ in some]
    return few[choice][draw(st.integers(0, len(few[choice]) - 1))]
