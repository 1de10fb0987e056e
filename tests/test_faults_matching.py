"""A rule acts on the messages that match it, as often as it says, and by chances that are the seed's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.cases import for_each, for_each_row
from tests.interposer_bench import read, request, write
from userdev.interposer.faults.use import together, untried
from userdev.relay.direction import DIRECTIONS, Direction
from vfio_user.harness.rules_used import acted_faults, untried_faults
from vfio_user.interposer.faults.engine import FaultEngine
from vfio_user.interposer.faults.scenario import Scenario
from vfio_user.wire import CURRENT, Command, Message


def engine(rule: dict[str, Any], seed: int = 0) -> Callable[..., bool]:
    made = FaultEngine(Scenario.model_validate({"seed": seed, "rules": [{"act": "drop", **rule}]}), CURRENT)

    def hits(message: Message, *, state: str = "running", seconds: float = 0, towards: str = "to-server") -> bool:
        return made.plan(DIRECTIONS[towards], message, state, seconds) is not None

    return hits


@for_each_row(
    [
        ({"command": "REGION_READ"}, read(0, 0), True),
        ({"command": ["REGION_WRITE", "DMA_MAP"]}, read(0, 0), False),
        ({"region": 0, "offset": "0x10-0x13"}, read(0, 0x0E, 4), True),
        ({"region": 0, "offset": "0x10-0x13"}, read(0, 0x0C, 4), False),
        ({"region": "CONFIG"}, read(7, 0), True),
        ({"kind": "posted"}, write(0, 0, b"x", posted=True), True),
        ({"kind": "posted"}, write(0, 0, b"x"), False),
        ({"direction": "to-client"}, read(0, 0), False),
        ({"command": "DEVICE_RESET", "region": 0}, request(Command.DEVICE_RESET), False),
    ]
)
def test_matches(match: dict[str, Any], message: Message, hit: bool) -> None:
    assert engine({"match": match})(message) is hit


def test_a_reply_matches_by_the_place_of_its_request() -> None:
    hits = engine({"match": {"kind": "error", "offset": 0x20}})
    for offset, hit in ((0x20, True), (0x24, False)):
        assert not hits(read(0, offset))
        assert hits(read(0, offset).error(22), towards="to-client") is hit


@for_each_row(
    [
        (3, [3]),
        ([1, 4], [1, 4]),
        ({"every": 3}, [3, 6, 9]),
        ({"every": 2, "from": 5}, [5, 7, 9]),
        ({"from": 8}, [8, 9, 10]),
        ({"until": 2}, [1, 2]),
    ]
)
def test_nth(nth: Any, expected: list[int]) -> None:
    hits = engine({"match": {"nth": nth}})
    assert [count for count in range(1, 11) if hits(read(0, 0))] == expected


def test_times_bounds_how_often_a_rule_acts() -> None:
    hits = engine({"times": 2})
    assert [hits(read(0, 0)) for _ in range(4)] == [True, True, False, False]


def test_time_and_state() -> None:
    hits = engine({"match": {"time": {"after": 1, "before": 2}, "state": ["running", "STOP_COPY"]}})
    assert [hits(read(0, 0), seconds=seconds) for seconds in (0.5, 1, 1.9, 2)] == [False, True, True, False]
    assert not hits(read(0, 0), seconds=1.5, state="set-up")
    assert hits(read(0, 0), seconds=1.5, state="STOP_COPY")


def test_the_same_seed_does_the_same() -> None:
    rule = {"match": {"probability": 0.3}}
    rolls = [[hits(read(0, 0)) for _ in range(200)] for hits in (engine(rule, 5), engine(rule, 5), engine(rule, 6))]
    assert rolls[0] == rolls[1] != rolls[2]
    assert 30 < sum(rolls[0]) < 90


def test_one_rules_chance_does_not_depend_on_the_others() -> None:
    """A rule more in the scenario, of another command, leaves what the first does as it was."""

    def rolls(*rules: dict[str, Any]) -> list[bool]:
        made = FaultEngine(Scenario.model_validate({"rules": list(rules)}), CURRENT)
        found = []
        for _ in range(100):
            made.plan(Direction.TO_SERVER, write(0, 0, b"x"), "running", 0)
            found.append(made.plan(Direction.TO_SERVER, read(0, 0), "running", 0) is not None)
        return found

    reads = {"match": {"command": "REGION_READ", "probability": 0.5}, "act": "drop"}
    writes = {"match": {"command": "REGION_WRITE", "probability": 0.5}, "act": "drop"}
    assert rolls(reads) == rolls(reads, writes)


IN_VAIN: dict[str, Any] = {
    "a byte beyond the message": {"corrupt": {"at": 400, "xor": 1}},
    "a field of another command": {"corrupt": {"field": "argsz", "value": 1}},
    "the value that it has": {"corrupt": {"field": "region", "value": 0}},
    "no bit": {"corrupt": {"at": 20, "xor": 0}},
    "more than there is": {"truncate": {"to": 400}},
    "its own size": {"wrong-size": {"by": 0}},
    "its own id": {"wrong-id": 7},
    "descriptors that it has not": "missing-fd",
    "several of them": [{"truncate": {"to": 400}}, {"corrupt": {"at": 400, "xor": 1}}],
}


@for_each(IN_VAIN)
def test_what_changes_nothing_of_a_message_is_no_act(name: str) -> None:
    """The message that a guest survives is the one that it always has."""
    act, asked = IN_VAIN[name], read(0, 0, id=7)
    scenario = Scenario.model_validate({"rules": [{"match": {}, "act": act}]})
    plan = FaultEngine(scenario, CURRENT).plan(Direction.TO_SERVER, asked, "running", 0)
    assert plan is not None
    assert (plan.data, len(plan.left_out)) == (asked.encode(), 1)
    (told,) = untried(scenario.shown())
    assert "never acted: 1 message" in told
    more = [*(act if isinstance(act, list) else [act]), {"delay": 0}]
    scenario = Scenario.model_validate({"rules": [{"match": {}, "act": more}]})
    FaultEngine(scenario, CURRENT).plan(Direction.TO_SERVER, asked, "running", 0)
    assert [*untried(scenario.shown())] == [], "something else of it was done"


def test_a_rule_that_never_acted_is_told_with_why_over_all_sessions() -> None:
    """A typo in a rule is a guest that survives it."""
    rules = [
        {"name": "acts", "match": {"command": "REGION_READ"}, "act": "drop"},
        {"match": {"command": "REGION_READ", "offset": 0x40}, "act": "drop"},
        {"name": "late", "match": {"command": "REGION_READ", "nth": 9}, "act": "drop"},
        {"name": "chance", "match": {"command": "REGION_READ", "probability": 1e-9}, "act": "drop"},
        {"name": "no chance", "match": {"command": "DEVICE_RESET", "probability": 0.5}, "act": "drop"},
    ]
    scenario = Scenario.model_validate({"rules": rules})
    for _ in range(2):
        made = FaultEngine(scenario, CURRENT)
        for _ in range(3):
            made.plan(Direction.TO_SERVER, read(0, 0), "running", 0)
    assert [(rule["matched"], rule["acted"]) for rule in scenario.shown()] == [(6, 6), (0, 0), (6, 0), (6, 0), (0, 0)]
    nothing = "never acted: no message matched it"
    late = "'late' never acted: of 6 messages that matched none was its nth"
    assert [*untried(scenario.shown())] == [f"'rule 2' {nothing}", late, f"'no chance' {nothing}"]
    reset = FaultEngine(other := Scenario.model_validate({"rules": rules}), CURRENT)
    reset.plan(Direction.TO_SERVER, request(Command.DEVICE_RESET), "running", 0)
    both = together([scenario.shown(), other.shown()])
    assert (both[0]["acted"], both[4]["matched"]) == (6, 1)


def test_a_rule_is_untried_where_it_acted_before_no_server_of_its_scenario() -> None:
    def server(**acted: int) -> Any:
        rule = {"matched": 0, "in_vain": 0, "probability": 1.0}
        rules = [{"name": name, "acted": times, **rule} for name, times in acted.items()]
        return SimpleNamespace(has_faults=True, control=SimpleNamespace(call=lambda _: {"rules": rules}))

    without = SimpleNamespace(has_faults=False)
    servers: Any = [server(here=1, there=0), server(here=0, there=0), server(alone=0), without]
    assert [why.partition(" ")[0] for why in untried_faults(servers)] == ["'there'", "'alone'"]
    assert acted_faults([*servers, server(here=2, there=0)]) == ["'here' acted 3 times"]
