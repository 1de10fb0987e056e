"""Whatever fails of a migration, and wherever: the guest runs once, on the source as before or on the destination."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each_row
from tests.device_kit import open_fds
from tests.migrating_world import DONE, World, config_of
from userdev.control import ControlError
from userdev.errors import UserError
from vfio_user.harness.migration import pci_state
from vfio_user.harness.migration.plan import Cancelled, Conductor
from vfio_user.harness.migration.report import Mode, Phase, Report, Verdict
from vfio_user.harness.qmp import QmpLost, QmpTimeout

Make = Callable[..., World]

GOING_BACK = ("RUNNING", "resume", "cont", "migrate_cancel", "yank", "dma_logging_stop", "write command")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def capture(qtest: object, function: object, known: bytes) -> pci_state.PciState:
        qtest._happens("capture")  # type: ignore[attr-defined]
        return config_of(0x2)

    def restore(qtest: object, function: object, state: object) -> None:
        qtest._happens("restore")  # type: ignore[attr-defined]

    monkeypatch.setattr(pci_state, "capture", capture)
    monkeypatch.setattr(pci_state, "restore", restore)
    return lambda **options: World(tmp_path, **options)


def check_went_back(world: World, failed: int, *, running: bool = True) -> None:
    """All is as it was: the guest on the source, its devices, and what was changed for the migration's sake."""
    assert not world.destination.alive
    assert world.source.running is running
    assert world.source.command_register == 0x2, "the guest's own command register"
    for here, _ in world.servers:
        assert (here.state, here.held, here.logs) == ("RUNNING", 0, False), world.calls[failed:]
    before = world.calls[failed + 1 : world.calls.index("destination.kill")]
    assert not any(call.endswith(GOING_BACK) for call in before), f"the other side ends before anything else: {before}"


def index_of(world: World, call: str) -> int:
    return world.calls.index(call)


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_migration_takes_its_steps_in_the_order_that_keeps_the_guest(make: Make, shares_memory: bool) -> None:
    world = make(shares_memory=shares_memory)
    report = world.migrate()
    assert (report.verdict, report.reason, report.notes) == (Verdict.MIGRATED, "", [])
    assert (world.destination.running, world.source.running) == (True, False)
    assert world.unheard == set(), "whatever was asked for was waited for"
    assert [check.ok for check in report.checks] == [True, True]
    order = [
        "source.dev0.dma_logging_start",
        "source.migrate",
        "source.dev0.migration_state STOP_COPY: done",
        "source.dev0.dma_logging_resend: done",
        "source.dev0.hold",
        "source.migrate-continue",
        "destination.restore",
        "destination.dev0.migration_state STOP: done",
        "destination.dev0.migration_state RUNNING",
        "destination.cont",
    ]
    places = [index_of(world, call) for call in order]
    assert places == sorted(places)
    assert "destination.kill" not in world.calls
    assert "source.cont" not in world.calls


def test_a_host_may_be_reached_at_an_address_with_colons(make: Make) -> None:
    """QEMU takes what is behind the first colon for the port, unless the address is in brackets (inet_parse)."""
    world = make()
    world.migrate()
    assert [*world.destination.uris, *world.source.uris] == ["tcp:[::1]:0", "tcp:[::1]:1"]


def test_a_guest_that_was_stopped_arrives_stopped(make: Make) -> None:
    world = make(running=False)
    assert world.migrate().verdict is Verdict.MIGRATED
    assert not world.destination.running
    assert not world.source.running


FAILURES = {
    "refusal": ControlError("no"),
    "socket": ConnectionResetError("gone"),
    "late": TimeoutError("too late"),
    "QMP": QmpLost("QEMU has ended"),
}


def forward(make: Make, **options: object) -> list[str]:
    """The calls of a migration that nothing happens to, up to the guest's first instruction on the destination."""
    world = make(**options)
    world.migrate()
    return world.calls[: index_of(world, "destination.event RESUME") + 1]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("running", [True, False])
def test_whichever_step_fails_the_guest_stays_as_it_was(
    make: Make, failure: str, running: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfio_user.harness.migration.coordinator._DEATH_SECONDS", 0.0)
    good = forward(make) if running else forward_stopped(make)
    before = open_fds()
    for number, call in enumerate(good):
        if failure == "refusal" and call.endswith(DONE):
            continue  # what is refused is not done
        world = make(running=running)
        world.fails[number] = FAILURES[failure]
        report = world.migrate()
        if can_do_without(call, failure, number > good.index("source.migrate-continue")):
            assert (report.verdict, world.destination.running) == (Verdict.MIGRATED, running), call
            continue
        assert report.verdict is Verdict.STAYED, (call, report.reason, report.notes)
        assert report.reason, call
        check_went_back(world, number, running=running)
        assert open_fds() == before, call


def can_do_without(call: str, failure: str, behind: bool) -> bool:
    """Whether that costs the migration nothing: what is read at once, or a state to compare with."""
    side, _, asked = call.removesuffix(DONE).partition(".dev")
    if asked.endswith("region_read"):
        return failure == "refusal"
    comparing = ("migration_state STOP", "migration_state STOP_COPY", "mig_data_read")
    return failure != "QMP" and behind and side == "source" and asked.endswith(comparing)


def forward_stopped(make: Make) -> list[str]:
    world = make(running=False)
    world.migrate()
    return world.calls[: index_of(world, "destination.dev1.migration_state RUNNING") + 1]


def test_a_stream_that_breaks_before_qemu_has_answered_leaves_nobody_waiting(make: Make) -> None:
    """The guest runs again at once, and touches a device that is held back: QEMU answers nothing until it is not."""
    world = make()
    world.source.breaks = True
    report = world.migrate()
    assert (report.verdict, report.last_phase) == (Verdict.STAYED, Phase.SWITCHOVER)
    assert "failing" in report.reason
    check_went_back(world, index_of(world, "source.migrate-continue"))


def test_an_interruption_goes_back_too_and_is_passed_on(make: Make) -> None:
    for number in range(0, len(forward(make)), 3):
        world = make()
        world.fails[number] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            world.migrate()
        check_went_back(world, number)


def test_one_that_is_called_off_in_any_phase_stays(make: Make) -> None:
    for phase in (*Phase,)[1:]:
        world = make()

        def call_off(entered: Phase, phase: Phase = phase) -> None:
            if entered is phase:
                raise Cancelled("enough")

        report = world.migrate(conductor=Conductor(call_off))
        assert (report.verdict, report.last_phase) == (Verdict.STAYED, phase)
        check_went_back(world, len(world.calls) - 1 - world.calls[::-1].index("destination.kill") - 1)


def waiting(usual: Callable[..., Any], looks: Iterator[int], act: Callable[[], None], *asked: object) -> Any:
    """A wait for an event, beside which somebody acts where none comes."""
    try:
        return usual(*asked)
    except QmpTimeout:
        next(looks)
        act()
        raise


def test_who_calls_it_off_or_hurries_while_qemu_says_nothing_is_heard(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at the next phase, which may be minutes away."""
    for phase, command in ((Phase.PRE_COPY, "migrate"), (Phase.SWITCHOVER, "migrate-continue")):
        for act in ("cancel", "hurry"):
            world, conductor = make(), Conductor()
            source = world.source
            acts: dict[str, Callable[[], None]] = {"cancel": conductor.cancel, "hurry": partial(conductor.hurry, 0.0)}
            monkeypatch.setattr(source, "_" + command.replace("-", "_"), dict)
            monkeypatch.setattr(source, "wait_event", partial(waiting, source.wait_event, iter(range(100)), acts[act]))
            report = world.migrate(conductor=conductor)
            assert (report.verdict, report.last_phase) == (Verdict.STAYED, phase), act
            assert ("cancelled" in report.reason) is (act == "cancel"), report.reason
            check_went_back(world, index_of(world, f"source.{command}"))


def test_where_going_back_fails_as_well_the_rest_of_it_is_done(make: Make) -> None:
    """Whatever does not answer any more, the others are put back, and the verdict says what was lost."""
    chance = random.Random(5)
    good = forward(make)
    for number in range(0, len(good), 2):
        world = make()
        world.fails[number] = UserError("no")
        world.migrate()
        behind = range(world.calls.index("destination.kill") + 1, len(world.calls))
        again = make()
        place = chance.choice(behind)
        again.fails = {number: UserError("no"), place: UserError("nor that")}
        report = again.migrate()
        assert report.verdict in (Verdict.STAYED, Verdict.LOST, Verdict.DEAD)
        assert not again.destination.alive
        failed = world.calls[place]
        if failed.startswith("source.dev"):
            assert report.verdict is Verdict.LOST, failed
            assert any(failed[7:11] in note for note in report.notes), report.notes
            assert again.source.running
            others = [here for here, _ in again.servers if not failed.startswith(here.name)]
            assert [(here.state, here.held) for here in others] == [("RUNNING", 0)]


def test_command_registers_of_other_devices_are_put_back_where_that_of_one_cannot_be(make: Make) -> None:
    """Its guest runs on with them: one that is left with INTx off is a device without interrupts."""
    good = make()
    good.source.breaks = True
    good.migrate()
    back = [at for at, call in enumerate(good.calls) if call == "source.write command"][-2:]
    for refused in back:
        world = make()
        world.source.breaks = True
        world.fails[refused] = UserError("no")
        report = world.migrate()
        assert (report.verdict, world.source.running) == (Verdict.STAYED, True)
        assert world.calls.count("source.write command") == good.calls.count("source.write command")


@pytest.mark.parametrize("refused", ["migration_state RUNNING", "dma_logging_stop"])
def test_a_device_that_does_not_come_back_whole_is_held_no_longer(make: Make, refused: str) -> None:
    """Its guest runs: each access would take as long as QEMU waits, and then the device be lost."""
    good = make()
    good.source.breaks = True
    good.migrate()
    world = make()
    world.source.breaks = True
    world.fails[len(good.calls) - 1 - good.calls[::-1].index(f"source.dev0.{refused}")] = ControlError("no")
    report = world.migrate()
    assert (report.verdict, world.source.running) == (Verdict.LOST, True)
    assert [here.held for here, _ in world.servers] == [0, 0]


def test_what_is_told_when_nobody_waits_any_more_changes_no_verdict(make: Make) -> None:
    world = make()
    world.fails[len(forward(make))] = UserError("no")
    assert world.migrate().verdict is Verdict.MIGRATED


@for_each_row(
    [
        (Verdict.MIGRATED, Verdict.LOST),
        (Verdict.STAYED, Verdict.LOST),
        (Verdict.LOST, Verdict.LOST),
        (Verdict.DEAD, Verdict.DEAD),
    ]
)
def test_what_is_found_to_be_wrong_behind_a_migration_is_in_its_verdict(before: Verdict, after: Verdict) -> None:
    """Wherever the guest runs; one that runs nowhere is worse still."""
    report = Report(Mode.COORDINATED, "here", "there", verdict=before)
    report.judge("the work", True)
    assert (report.verdict, report.reason, report.wrong) == (before, "", [])
    report.judge("the disk", False, "block 7 is another's")
    assert (report.verdict, report.reason) == (after, "the disk: block 7 is another's")
    assert [check.what for check in report.wrong] == ["the disk"]


def test_a_verdict_says_where_the_guest_is_and_why() -> None:
    said = {
        Verdict.MIGRATED: ("", ["is on there"]),
        Verdict.STAYED: (
            "in phase start: no room",
            ["to there failed in phase start: no room", "on here the guest goes"],
        ),
        Verdict.LOST: ("the disk: block 7", ["the disk: block 7"]),
        Verdict.DEAD: ("in phase start: no room", ["nowhere", "in phase start: no room"]),
    }
    for verdict, (reason, words) in said.items():
        sentence = Report(Mode.COORDINATED, "here", "there", verdict=verdict, reason=reason).sentence
        assert sentence.startswith(f"{verdict}: "), sentence
        assert all(word in sentence for word in words), sentence
