"""A scenario is checked before it runs: what is wrong is refused with its line and the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from userdev.written import MOST_MISTAKES
from vfio_user.cli import cli
from vfio_user.interposer.faults.scenario import Act, load_scenario, parse_scenario

GOOD = """
seed: 7
rules:
  - name: everything at once
    match: {direction: to-server, command: [REGION_WRITE, dma_map], kind: posted, region: BAR0, offset: 0x10-0x1f,
            nth: {every: 3, from: 2, until: 9}, time: {after: 1, before: 2.5}, state: [running, STOP_COPY],
            probability: 0.5}
    times: 4
    act:
      - delay: 0.5
      - delay: {seconds: 0.1, jitter: 0.1, overtake: true}
      - duplicate
      - reorder: 2
      - corrupt: {field: length, xor: 1}
      - truncate: {to: 20, size: keep}
      - wrong-id
      - wrong-size: {by: 4}
      - extra-fd: 2
      - missing-fd:
      - split-header: 3
      - close: {side: client, how: write}
      - signal: {signal: SIGSTOP, seconds: 0.1}
      - hold
  - act: [{reply: EIO}, {reorder: {after: 2, within: 3}}, signal: SIGKILL]
  - match: {direction: to-server}
    act: {stall-after-header: {}}
  - act: drop
"""


def test_the_whole_language_is_accepted() -> None:
    scenario = parse_scenario(GOOD, "good.yaml")
    assert [act.name for act in scenario.rules[0].act][:3] == ["delay", "delay", "duplicate"]
    assert len(scenario.rules[0].act) == 14
    named = {act.name for rule in scenario.rules for act in rule.act}
    assert named == {name.replace("_", "-") for name in Act.model_fields}


@for_each_row(
    [
        ("rules:\n- act: drop\n- match: {region: BAR9}\n  act: drop\n", 3, "BAR9"),
        ("rules:\n- match:\n    command: REGION_REED\n  act: drop\n", 3, "REGION_REED"),
        ("rules:\n- act:\n  - drop\n  - explode\n", 4, "explode"),
        ("rules:\n- act:\n  - drop\n  - {drop: , delay: 1}\n", 4, "exactly one"),
        ("rules:\n- act: {delay: -1}\n", 2, "rules.0.act.delay: Input should be greater than or equal to 0"),
        ("rules:\n- act: drop\n  mach: {}\n", 3, "mach"),
        ("rules:\n- match:\n    offset: 1\n    state: asleep\n  act: drop\n", 4, "state"),
        ("rules:\n- act:\n    corrupt: {field: id}\n", 3, "in one way"),
        ("rules:\n- act:\n    corrupt: {field: lenght, xor: 1}\n", 3, "lenght"),
        ("rules:\n- act: drop\n- act:\n  - hold\n  - stall-after-header\n", 3, "direction: to-server"),
        ("rules:\n- act:\n  - close: client\n  - drop\n  - {corrupt: {at: 1, xor: 1}}\n", 2, "no corrupt with drop"),
        ("rules:\n- act:\n    reply: EWHAT\n", 3, "EWHAT"),
        ("rules:\n- act: []\n", 2, "at least 1"),
        ("sead: 3\nrules: []\n", 1, "sead"),
        ("rules:\n- act:\n    signal:\n      name: SIGSTOP\n", 4, "seconds, signal"),
        ("rules:\n- act: [{stall-afterheader: 1}]\n", 2, "did you mean 'stall-after-header'?"),
        ("rules:\n- act: drop\n   bad indent: 3\n", 3, ""),
        ("rules: {}\n", 1, "list"),
        ("rules:\n- act: drop\n  act: hold\n", 3, "'act' is there twice"),
        ("", 1, ""),
        ("- 3\n", 1, ""),
    ]
)
def test_what_is_wrong_is_refused_with_its_line_and_the_reason(text: str, line: int, about: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_scenario(text, "bad.yaml")
    assert f"bad.yaml:{line}:" in str(refused.value)
    assert about in str(refused.value)


@for_each_row(
    [
        ("{evry: 3}", ["did you mean 'every'?"]),
        ("{every: x}", ["nth.every", "'x'"]),
        ("[1, 0]", ["nth.1", "not 0"]),
        ("soon", ["nth", "a table or a list", "'soon'"]),
    ]
)
def test_what_may_be_of_several_kinds_is_told_of_the_one_that_was_meant(nth: str, about: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        parse_scenario(f"rules:\n- match: {{nth: {nth}}}\n  act: drop\n", "bad.yaml")
    told = str(refused.value)
    assert len(told.splitlines()) == 1
    assert all(word in told for word in about)
    assert "function-" not in told, "the names of our validators are nobody's"


@for_each(("rules: &all [*all]\n", "rules:\n- &rule {match: *rule}\n", "&all {rules: *all}\n"))
def test_what_stands_in_itself_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="values"):
        parse_scenario(text, "bad.yaml")


@for_each((1, 4, 5, 6, 9))
def test_so_many_mistakes_are_told_at_once_and_how_many_there_are_more(mistakes: int) -> None:
    with pytest.raises(UserError) as refused:
        parse_scenario("rules:\n" + "- {act: explode}\n" * mistakes, "bad.yaml")
    *told, last = str(refused.value).splitlines()
    if mistakes <= MOST_MISTAKES:
        told.append(last)
    else:
        assert last == f"and {mistakes - MOST_MISTAKES} more"
    assert [line.split(":")[1] for line in told] == [str(2 + each) for each in range(min(mistakes, MOST_MISTAKES))]


@for_each(["0x" + "f" * 5000, "!!set {0x1}"])
def test_a_value_that_nobody_writes_is_refused_without_its_digits(number: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_scenario(f"rules:\n- act: {{delay: [{number}]}}\n  match: {number}\n", "bad.yaml")
    assert len(str(refused.value)) < 400


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(UserError) as refused:
        parse_scenario("rules:\n- act: explode\n- act: {delay: soon}\n", "bad.yaml")
    assert len(str(refused.value).splitlines()) == 2


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        load_scenario(tmp_path / "none.yaml")


def test_the_schema_can_be_had() -> None:
    result = CliRunner().invoke(cli, ["interpose", "--print-faults-schema"])
    schema = json.loads(result.output)
    assert "stall-after-header" in schema["$defs"]["Act"]["properties"]
