"""What a soak does next, and how long it goes on: the words that a person says, and what follows from them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.soak_kit import POSSIBLE, WEIGHTS
from userdev.errors import UserError
from vfio_user.soak import Done, Order, SoakedSpec, Until, parse_numbers, weights_of

NOON = datetime(2026, 11, 29, 12, 0)


def events(seed: int, count: int = 200, weights: dict[str, float] = WEIGHTS) -> list[tuple[str, str]]:
    order = Order(seed, weights, POSSIBLE)
    return [(one.event, one.target) for one in map(order.happening, range(1, count + 1))]


def test_the_same_seed_gives_the_same_order_and_another_another() -> None:
    assert events(7) == events(7)
    assert events(7) != events(8)


def test_an_event_is_the_same_whoever_asks_for_its_number_alone() -> None:
    order = Order(7, WEIGHTS, POSSIBLE)
    whole = [order.happening(number) for number in range(1, 50)]
    assert Order(7, WEIGHTS, POSSIBLE).happening(31) == whole[30]


def test_an_event_happens_as_often_as_its_weight_says() -> None:
    counts = Counter(event for event, _ in events(1, 4000, {"hop": 3, "kill": 1, "reboot": 0}))
    assert counts.keys() == {"hop", "kill"}
    assert counts["hop"] == pytest.approx(3000, abs=150)


def test_every_device_that_it_can_be_done_to_has_its_turn() -> None:
    assert {target for event, target in events(1) if event == "kill"} == {"edu", "disk"}


def test_a_guest_to_which_nothing_can_happen_is_refused() -> None:
    with pytest.raises(UserError, match="flr"):
        Order(1, {"flr": 1, "hop": 0}, POSSIBLE)


def test_weights_of_a_command_line_come_after_those_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.yaml"
    file.write_text("hop: 5\nkill: 2\n")
    assert weights_of(WEIGHTS, file, ["kill=0.5"]) == {"hop": 5, "kill": 0.5, "pause-qemu": 1, "reboot": 1}


@for_each_row(
    [
        (["hopp=1"], "hopp"),
        (["hop"], "hop"),
        (["hop=-1"], "-1"),
        (["hop=nan"], "nan"),
        (["hop=inf"], "inf"),
        (["hop=often"], "often"),
        ([f"{name}=0" for name in WEIGHTS], "nothing would ever happen"),
    ]
)
def test_what_is_no_weight_is_refused(options: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        weights_of(WEIGHTS, None, options)


def test_an_event_that_there_is_not_is_told_with_the_one_that_was_meant() -> None:
    with pytest.raises(UserError) as refused:
        weights_of(WEIGHTS, None, ["rebot=1"])
    assert "'reboot'" in refused.value.hint


@for_each(["[hop]", "hop: [1]", "hop: true", "hop: yes please", "hoop: 1", "hop: {", "\0"])
def test_a_file_that_has_no_weights_is_refused_by_its_name(text: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"weights\.yaml"):
        weights_of(WEIGHTS, file)


@for_each_row(
    [
        (["8h"], Until(seconds=28800)),
        (["1h30m"], Until(seconds=5400)),
        (["90m"], Until(seconds=5400)),
        (["90min"], Until(seconds=5400)),
        (["45s"], Until(seconds=45)),
        (["2d"], Until(seconds=172800)),
        (["1000"], Until(events=1000)),
        (["1000 events"], Until(events=1000)),
        (["13:30"], Until(run_seconds=5400)),
        (["11:00"], Until(run_seconds=82800)),
        (["FIRST_FAILURE"], Until(first_failure=True)),
        (["8h", "1000", "first-failure"], Until(seconds=28800, events=1000, first_failure=True)),
    ]
)
def test_how_long_is_said_in_words(words: list[str], until: Until) -> None:
    assert Until.parse(words, NOON) == until


@for_each(["", "0", "0s", "h", "-1", "25:00", "soon", "1.5h", "30m1h", "first"])
def test_what_nothing_can_go_on_until_is_refused(word: str) -> None:
    with pytest.raises(UserError):
        Until.parse([word], NOON)


@for_each_row(
    [
        (Done(), 0, False),
        (Done(99, 9, 0), 0, False),
        (Done(100, 0, 0), 0, True),
        (Done(0, 10, 0), 0, True),
        (Done(0, 0, 1), 0, True),
        (Done(), 50, True),
    ]
)
def test_whatever_comes_first_is_enough(done: Done, run_seconds: float, enough: bool) -> None:
    until = Until(seconds=100, run_seconds=50, events=10, first_failure=True)
    assert until.reached(done, run_seconds) is enough


def test_what_is_left_is_told_by_the_bound_that_comes_first() -> None:
    assert Until(seconds=100, events=10).left(Done(40, 8), 40) == 10
    assert Until(seconds=45, events=10).left(Done(40, 8), 40) == 5
    assert Until(first_failure=True).left(Done(40, 8), 40) is None


@for_each(["", "0", "1,,2", "-3", "a"])
def test_what_are_no_numbers_of_events_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_numbers(text)


def test_work_that_a_device_cannot_do_is_refused_before_anything_boots() -> None:
    for devices, workloads in (
        (("nvme",), ("dma",)),
        (("edu", "vhost-user-blk"), ("dma", "ping")),
        (("edu",), ("", "dma")),
    ):
        with pytest.raises(UserError):
            SoakedSpec(devices, workloads)
    with pytest.raises(UserError):
        SoakedSpec(("nvme",), ("fio",), "msi")


def test_interrupts_are_chosen_for_those_devices_alone_whose_driver_does_not() -> None:
    both = SoakedSpec(("edu", "nvme"), (), "msi").assignments
    assert [(each.kind, each.interrupts) for each in both] == [("dma", "msi"), ("fio", "")]
