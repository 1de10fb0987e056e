"""`vhost-user fuzz`: what each oracle notices, and that finds are played again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.conftest import PATIENCE
from tests.fuzz_kit import Quiet, drawn_at_once
from tests.vhost.faults import Faulty
from tests.vhost.faults.fuzzed import BLK, FOUND, SERVE, Case, Disk, takes_anything
from tests.vhost.reverse import REVERSE, Reverse
from tests.vhost.test_conformance_suite import InProcess
from userdev.conformance import Level
from userdev.fuzz import Bounds, Campaign, Find, Found, Step
from userdev.fuzz.drawing import sequences
from vfio_user.cli import vhost_user_cli
from vhost_user.device import VhostDevice, config_field
from vhost_user.frontend.conformance import DeviceKind
from vhost_user.fuzz import ORACLES, VhostUserSubject


@contextmanager
def made_faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    made = Faulty(monkeypatch)
    try:
        yield made
    finally:
        made.close()


def played(
    folder: Path, make: Callable[[], VhostDevice], kind: DeviceKind, steps: list[Step], seconds: float = PATIENCE
) -> Found | None:
    with InProcess(folder, make, pid=os.getpid()) as target:
        player = VhostUserSubject(target, kind, timeout=seconds)
        wrong = player.prepare()
        try:
            return wrong[0] if wrong else player.play(steps)
        finally:
            player.close()


@pytest.mark.pure
@for_each(FOUND)
def test_a_back_end_is_found_by_the_rule_that_it_breaks(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in (0.5, 5.0, PATIENCE):  # what never comes is waited for; a busy machine takes more for what does
        with made_faulty(monkeypatch) as faulty:
            case.fault(faulty)
            found = played(tmp_path, case.make, case.device, case.steps, seconds)
        if found is not None and found.begun is not None and found.oracle.id == case.oracle and case.said in str(found):
            break
    assert found is not None
    assert found.oracle.id == case.oracle, found
    assert found.begun in range(len(case.steps) + 1)
    assert case.said in str(found)


def test_what_conformance_leaves_open_is_no_find_and_what_only_a_reference_does_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made_faulty(monkeypatch) as faulty:
        takes_anything(faulty)
        assert played(tmp_path, Reverse, REVERSE, [Step.of("wrong_memory", how="empty")]) is None
    with made_faulty(monkeypatch) as faulty:
        takes_anything(faulty)
        found = played(tmp_path, Reverse, REVERSE, [Step.of("wrong_memory", how="overlap")])
    assert found is not None
    assert found.level is Level.REFERENCE


def test_an_oracle_that_a_front_end_asks_has_a_back_end_that_it_finds() -> None:
    assert {case.oracle for case in FOUND} == {each.id for each in ORACLES} - {"reference", "mappings", "growth"}


def test_a_fresh_disk_need_not_have_what_was_written_to_the_one_before(tmp_path: Path) -> None:
    write, read = Step.of("write_blocks", sector=1, data="ab", cut=0, merged=0), Step.of("read_blocks", sector=1, cut=0)
    with InProcess(tmp_path, Disk, pid=os.getpid()) as target:
        player = VhostUserSubject(target, BLK, timeout=5)
        assert player.prepare() == []
        for steps in ([write], [read], [write, read]):
            assert player.play(steps) is None
        player.renew()
        assert player.play([read]) is None
        player.close()


def test_a_reference_that_answers_otherwise_is_a_find(tmp_path: Path) -> None:
    class Larger(Reverse):
        capacity: int = config_field(8, 8)

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with InProcess(tmp_path / "one", Larger) as target, InProcess(tmp_path / "other", Reverse) as reference:
        other = VhostUserSubject(reference, REVERSE, timeout=5)
        player = VhostUserSubject(target, REVERSE, timeout=5, reference=other)
        player.prepare()
        assert player.play([SERVE]) is None
        found = player.play([SERVE, Step.of("read_config", size=3)])
        player.close()
    assert found is not None
    assert found.oracle.id == "reference"


@for_each(["head", "next", "loop", "outside", "over the end", "order", "table", "far"])
def test_what_no_driver_may_put_into_a_ring_costs_ours_that_ring_alone(how: str, tmp_path: Path) -> None:
    assert played(tmp_path, Reverse, REVERSE, [Step.of("break_ring", how=how, kind=0), SERVE]) is None


def test_nothing_is_found_in_a_back_end_that_does_nothing_wrong(tmp_path: Path) -> None:
    with InProcess(tmp_path, Reverse) as target:
        player = VhostUserSubject(target, REVERSE, timeout=5)
        wrong = player.prepare()
        drawn = sequences([kind for kind in player.kinds() if kind.name != "check"], 7, 40)
        campaign = Campaign(player, drawn, seed=7, bounds=Bounds(sequences=8), listener=Quiet(), folder=None)
        with drawn_at_once(8):
            assert campaign.run(wrong).finds == {}
        player.close()


def test_a_find_is_played_again_by_conformance(tmp_path: Path) -> None:
    folder = tmp_path / "finds"
    find = Find("vhost-user", "rings", "a rule", "rings: answer", "another answer", (SERVE,))
    find.write(folder)
    run = CliRunner()
    with InProcess(tmp_path, Reverse) as target:
        target.connect().close()
        arguments = ["conformance", target._address, "--corpus", str(folder)]
        assert run.invoke(vhost_user_cli, arguments).exit_code == 0
