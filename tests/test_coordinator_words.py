"""What the migration coordinator says, writes and asks for on its way, besides what keeps the guest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each_row
from tests.migrating_world import DONE, World, config_of
from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.hosts.relayed import CONNECTION_ENDED, ENDED, PROGRAM
from vfio_user.harness.migration import pci_state
from vfio_user.harness.migration.coordinator import Coordinator, MovedByQemu
from vfio_user.harness.migration.link import PAGE_SIZE, PRE_COPY_TURN
from vfio_user.harness.migration.plan import Conductor, Plan
from vfio_user.harness.migration.report import Phase, Verdict
from vfio_user.harness.mishaps import Kind

Make = Callable[..., World]
MEMORY, BUS_MASTER, INTX_OFF = 0x2, 0x4, 0x400


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def world(*, command: int = MEMORY, **options: Any) -> World:
        monkeypatch.setattr(pci_state, "capture", lambda *_: config_of(command))
        return World(tmp_path, **options)

    monkeypatch.setattr(pci_state, "restore", lambda *_: None)
    return world


@for_each_row(
    [
        (MEMORY, [MEMORY | BUS_MASTER | INTX_OFF]),
        (MEMORY | BUS_MASTER, [MEMORY | BUS_MASTER | INTX_OFF]),
        (MEMORY | INTX_OFF, [MEMORY | BUS_MASTER | INTX_OFF]),
        (MEMORY | BUS_MASTER | INTX_OFF, []),
        (0x143, [0x143 | BUS_MASTER | INTX_OFF]),
    ]
)
def test_of_a_command_register_nothing_changes_but_what_has_to(
    command: int, written: list[int], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(command=command, devices=1)
    values: list[int] = []
    monkeypatch.setattr(world.source, "config_write", lambda _place, _offset, value, _width: values.append(value))
    assert world.migrate().verdict is Verdict.MIGRATED
    assert values == written


def test_downtime_is_of_one_clock_whatever_those_of_both_sides_say(make: Make) -> None:
    """The destination's is an hour behind here, as that of another host may be; either may be set meanwhile."""
    report = make().migrate()
    assert report.downtime is not None
    assert 0 <= report.downtime <= report.seconds


@for_each_row(
    [
        (False, False, Verdict.STAYED),
        (False, True, Verdict.LOST),
        (True, False, Verdict.DEAD),
        (True, True, Verdict.DEAD),
    ]
)
def test_a_guest_that_panicked_is_dead_whatever_became_of_its_devices(
    panicked: bool, lost: bool, verdict: Verdict, make: Make
) -> None:
    """Where it does so once the migration has failed, and before the guest goes on."""
    good = make()
    good.fails[number := _failing(good)] = UserError("no")
    good.migrate()
    world = make()
    world.fails[number] = UserError("no")
    if lost:
        world.fails[good.calls.index("source.dev0.migration_state RUNNING")] = UserError("nor that")

    class Mishaps:
        def __contains__(self, kind: object) -> bool:
            return panicked and kind is Kind.PANIC and not world.destination.alive

    world.source.mishaps = Mishaps()
    assert world.migrate().verdict is verdict


def test_of_a_host_whose_connection_has_ended_that_is_said_once_and_of_each_other_program_its_end(
    make: Make, tmp_path: Path
) -> None:
    lost = f"{ENDED}b has ended"
    (log := tmp_path / "relay.log").write_text(f"{lost}\n")
    relay = {"running": False, "argv": [PROGRAM], "exit_code": CONNECTION_ENDED, "log": log, "wait": lambda _: None}
    for error in ("the program at this control socket has gone", f"QEMU is heard of no more ({lost})"):
        world = make()
        world.destination.child = SimpleNamespace(**relay)
        for _, there in world.servers:
            there.child = SimpleNamespace(**relay)
            there.interposer.child = there.child
        world.servers[0][0].child.running = False
        world.fails[_failing(world)] = UserError(error)
        reason = world.migrate().reason
        assert reason.count(lost) == 1
        assert error in reason
        assert "the source's server of dev0 ended" in reason


def _failing(world: World) -> int:
    """The number of a call that a migration of such a world comes to when its devices stand still."""
    like = World(world.source.child.log.parent)
    like.migrate()
    return like.calls.index("source.dev1.dma_logging_resend")


def test_a_connection_is_closed_only_once_the_last_of_memory_was_asked_for(make: Make) -> None:
    good = make()
    good.migrate()
    for call, closed in (
        ("source.migrate", False),
        ("source.dev0.dma_logging_resend", False),
        ("source.dev1.hold", False),
        (f"source.migrate-continue{DONE}", True),
        ("destination.dev1.migration_state RUNNING", True),
    ):
        world = make()
        world.fails[good.calls.index(call)] = UserError("no")
        assert world.migrate().verdict is Verdict.STAYED, call
        assert ("source.yank" in world.calls) is closed, call


def test_pages_that_were_written_again_are_told_with_their_bytes(make: Make) -> None:
    report = make().migrate()
    (record,) = (record for record in report.phases if record.phase is Phase.DIRTY_PAGES)
    assert record.details == {"pages": 2, "unmapped": 1}, "one of each device, and one that both could not reach"
    assert record.bytes == 3 * PAGE_SIZE


@for_each_row(
    [
        ([0], 1),
        ([1, 0], 2),
        ([PRE_COPY_TURN] * 30 + [0], 31),
        ([PRE_COPY_TURN] * 3 + [1] * 30, 3 + 8),
        ([1] * 30, 8),
    ],
    ids=["nothing", "once", "much", "much and then little again and again", "little again and again"],
)
def test_devices_are_copied_whole_and_only_what_they_change_again_and_again_is_left(
    moved: list[int], asked: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(devices=1)
    before_memory = 0
    left = iter(moved)

    def pre_copy(_: object) -> int:
        nonlocal before_memory
        if "source.migrate" in world.calls:
            return 0
        before_memory += 1
        return next(left)

    monkeypatch.setattr(type(world.links[0]), "pre_copy", pre_copy)
    world.migrate()
    assert before_memory == asked


def test_a_server_that_qemu_leaves_behind_may_go_while_it_copies_and_at_no_other_time(make: Make) -> None:
    def server(*, ends: bool) -> Any:
        def check() -> None:
            if ends:
                raise UserError("it has ended")

        return SimpleNamespace(check=check)

    for source_ends, destination_ends in ((False, False), (True, False), (False, True)):
        world = make()
        moved = MovedByQemu("disk", server(ends=source_ends), server(ends=destination_ends))
        coordinator = Coordinator(
            world.source,  # type: ignore[arg-type]
            world.destination,  # type: ignore[arg-type]
            world.links,
            world.report,
            by_qemu=[moved],
            address="::1",
            plan=Plan(),
            conductor=Conductor(),
        )
        copying: Any = pytest.raises(UserError) if destination_ends else contextlib.nullcontext()
        between: Any = pytest.raises(UserError) if source_ends or destination_ends else contextlib.nullcontext()
        with copying:
            coordinator._check(Deadline(60))
        with between:
            coordinator._may_go_on(Phase.RESUME)
        for link in world.links:
            link.close()
