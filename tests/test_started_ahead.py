"""The side that a guest comes to next, started ahead: taken where it fits, and else ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from userdev.errors import UserError
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts import LocalHost
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.migration import Conductor, Mode, Phase, Plan, Report, Verdict, destination, guest_migration
from vfio_user.harness.migration.guest_migration import move

A, B = LocalHost("a"), LocalHost("b")
SECONDS = 30.0


class Launcher:
    """Starts what has a name only; `runs` are the names of what has not ended. `beside` is called by each machine.

    Devices are moved by QEMU, or else `asked` has what their interposers are asked.
    """

    lost_connection = ""

    def __init__(self, beside: Callable[[str], None] = lambda name: None, *, by_qemu: bool = True) -> None:
        self.runs: list[str] = []
        self.started: list[str] = []
        self.asked: list[str] = []
        self.awaiting: Any = None
        self.by_qemu = by_qemu
        self._count = 0
        self.beside = beside

    def next_name(self, name: str) -> str:
        self._count += 1
        return f"guest.{self._count}"

    def serve(self, device: Any, name: str, *, interposed: object, host: Host, trace: bool) -> Any:
        self._start(name)
        family = SimpleNamespace(moved_by_qemu=self.by_qemu)
        control = SimpleNamespace(post=lambda command: self.asked.append(f"{name} {command}"))
        facts = {"is_interposed": not self.by_qemu, "interposed_there": None, "trace": None, "captures_dma": False}
        device = SimpleNamespace(name="a", family=family, keeps_image_in_scratch=False)
        return SimpleNamespace(name=name, device=device, control=control, **facts)

    def machine(self, spec: GuestSpec, *, restore: bool, qemu: object) -> Any:
        self.beside(spec.name)
        assert [each["id"] for each in (attached.device for attached in spec.attached)], "it has its devices"
        self._start(spec.name)
        return machine_called(spec.name)

    def end(self, machine: Any, servers: Sequence[Any]) -> None:
        for each in filter(None, (machine, *servers)):
            self.runs.remove(each.name)

    def _start(self, name: str) -> None:
        self.started.append(name)
        self.runs.append(name)


def machine_called(name: str) -> Any:
    qmp = SimpleNamespace(command=lambda _: {"running": True}, events=SimpleNamespace(forget=lambda _: None))
    return SimpleNamespace(name=name, qmp=qmp, console=SimpleNamespace(log=Path(name)))


@dataclass(frozen=True)
class Plugged:
    attachment: Any
    place: int
    server: Any
    identity: str = "dev0"


@dataclass
class Guest:
    """One that is in a machine, and goes on in another."""

    machine: Any
    spec: GuestSpec
    devices: list[Any]
    name: str = "guest"

    @property
    def host(self) -> Host:
        return self.spec.host

    def continue_on(self, machine: Any, spec: GuestSpec, devices: Sequence[Any]) -> None:
        self.machine, self.spec, self.devices = machine, spec, list(devices)


@dataclass
class World:
    """A guest on host a with a device, and what comes of each of its migrations."""

    launcher: Any = field(default_factory=Launcher)
    verdict: Verdict = Verdict.MIGRATED
    compare: Callable[[], None] = lambda: None
    guest: Any = None
    compared: list[tuple[str, str]] = field(default_factory=list)
    """What a guest was seen to be before and after each of its migrations."""

    def __post_init__(self) -> None:
        spec = GuestSpec("guest", cast(Any, "image"), cast(Any, "hardware"), host=A)
        here = self.launcher.serve(None, "guest-dev0", interposed=False, host=A, trace=False)
        self.launcher.runs.append("guest")
        self.guest = Guest(machine_called("guest"), spec, [Plugged("attached", 0, here)])

    def move(self, to: Host, then: Host | None = None, qemu: Any = None) -> Report:
        return move(self.launcher, self.guest, to, Mode.COORDINATED, Plan(), Conductor(), qemu, then)

    def look_again(self, before: str, guest: Guest) -> str:
        self.compare()
        self.compared.append((before, f"in {guest.machine.name}"))
        return self.compared[-1][1]


Make = Callable[..., World]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Make:
    worlds: list[World] = []

    def make(**facts: Any) -> World:
        worlds.append(World(**facts))
        return worlds[-1]

    def coordinator(source: Any, machine: Any, links: object, report: Report, **_: object) -> Any:
        return SimpleNamespace(run=lambda: setattr(report, "verdict", worlds[-1].verdict))

    attached = SimpleNamespace(device={"id": "dev0"})
    for where, name, value in (
        (guest_migration, "Coordinator", coordinator),
        (guest_migration, "choose_mode", lambda mode, _: mode),
        (guest_migration, "require_migratable", lambda _: None),
        (guest_migration, "was_reset", lambda _: False),
        (guest_migration, "look", lambda guest: f"before {guest.machine.name}"),
        (guest_migration, "compare", lambda _, before, guest: worlds[-1].look_again(before, guest)),
        (destination, "attachment_of", lambda *_: attached),
        (Report, "write", lambda *_: None),
    ):
        monkeypatch.setattr(where, name, value)
    return make


def test_a_guest_that_comes_back_finds_the_other_side_started(world: Make) -> None:
    there = world()
    there.move(B, then=A)
    assert there.launcher.runs == ["guest.1-dev0", "guest.1", "guest.2-dev0", "guest.2"]
    for number, (to, then) in enumerate(((A, B), (B, A), (A, None)), 2):
        report = there.move(to, then)
        runs = [number, *([number + 1] if then is not None else [])]
        assert there.guest.machine.name == f"guest.{number}", "the one that waited"
        assert there.launcher.runs == [name for each in runs for name in (f"guest.{each}-dev0", f"guest.{each}")]
        assert (report.machine, report.ok, report.phases[0].phase) == (f"guest.{number}", True, Phase.START)
    assert there.launcher.awaiting is None
    assert len(there.launcher.started) == 1 + 2 * 4, "nothing was started twice"


def test_a_guest_that_comes_back_is_compared_with_what_it_was_as_it_arrived_and_no_other_is(world: Make) -> None:
    there = world()
    there.move(B, then=A)
    there.move(A, then=B)
    there.move(LocalHost("c"))
    there.move(A)
    assert there.compared == [
        ("before guest", "in guest.1"),
        ("in guest.1", "in guest.2"),
        ("before guest.2", "in guest.4"),
        ("before guest.4", "in guest.5"),
    ]


def test_what_was_started_for_something_else_is_ended_and_the_right_thing_started(world: Make) -> None:
    def plug(there: World, identity: str) -> Any:
        return Plugged(
            "attached", 0, there.launcher.serve(None, "another", interposed=False, host=B, trace=False), identity
        )

    def replug(there: World) -> None:
        there.launcher.end(None, [there.guest.devices.pop().server])
        there.guest.devices = [plug(there, "dev0")]

    def move_over(there: World) -> None:
        there.guest.devices = [replace(there.guest.devices[0], place=1)]

    def plug_another(there: World) -> None:
        there.guest.devices = [*there.guest.devices, plug(there, "dev1")]

    def change_hardware(there: World) -> None:
        there.guest.spec = replace(there.guest.spec, hardware="other hardware")

    def take_another_guest(there: World) -> None:
        there.guest = replace(there.guest)

    cases: dict[str, tuple[Callable[[World], None], Host, Any]] = {
        "another guest": (take_another_guest, A, None),
        "another host": (lambda _: None, LocalHost("c"), None),
        "another QEMU": (lambda _: None, A, "another QEMU"),
        "another server": (replug, A, None),
        "another slot": (move_over, A, None),
        "a device more": (plug_another, A, None),
        "other hardware": (change_hardware, A, None),
    }
    for case, (change, to, qemu) in cases.items():
        there = world()
        there.move(B, then=A)
        change(there)
        assert there.move(to, qemu=qemu).ok, case
        assert there.guest.machine.name == "guest.3", case
        assert {name.partition("-")[0] for name in there.launcher.runs} == {"guest.3"}, case


def test_what_fails_ahead_is_told_by_the_migration_that_it_was_for_and_leaves_nothing(world: Make) -> None:
    def refuse(name: str) -> None:
        if name == "guest.2":
            raise UserError("QEMU does not start")

    there = world(launcher=Launcher(refuse))
    assert there.move(B, then=A).ok, "the guest has arrived"
    report = there.move(A)
    assert (report.verdict, report.last_phase) == (Verdict.STAYED, Phase.START)
    assert "in phase start: QEMU does not start" in report.sentence
    assert there.launcher.runs == ["guest.1-dev0", "guest.1"]
    assert there.move(A).ok, "it is tried again as ever"
    assert there.launcher.runs == ["guest.3-dev0", "guest.3"]


def test_interposers_load_what_their_commands_take_before_qemu_waits_for_them(world: Make) -> None:
    for by_qemu in (False, True):
        launcher = Launcher(by_qemu=by_qemu)
        asked = launcher.asked
        launcher.beside = asked.append
        there = world(launcher=launcher)
        there.move(B, then=A)
        told = [] if by_qemu else [f"guest.{number}-dev0 status" for number in (1, 2)]
        assert asked == [*told[:1], "guest.1", *told[1:], "guest.2"], by_qemu


def test_nothing_is_started_for_a_guest_that_has_not_arrived(world: Make) -> None:
    for verdict in (Verdict.STAYED, Verdict.DEAD):
        there = world(verdict=verdict)
        there.move(B, then=A)
        assert there.launcher.awaiting is None
        assert there.launcher.runs == ["guest-dev0", "guest"], verdict


def test_it_starts_while_the_guest_is_looked_at_and_the_machine_that_it_left_ends(world: Make) -> None:
    starts, looks = threading.Event(), threading.Event()

    def wait(name: str) -> None:
        if name == "guest.2":
            starts.set()
            assert looks.wait(SECONDS)

    def compare() -> None:
        assert starts.wait(SECONDS)
        looks.set()

    there = world(launcher=Launcher(wait), compare=compare)
    assert there.move(B, then=A).ok
    assert looks.is_set()
    assert "guest.2" in there.launcher.runs


def test_whoever_is_interrupted_meanwhile_has_nothing_started_behind_his_back(world: Make) -> None:
    """What a lab has when it ends is all that there will be."""
    interrupted = threading.Event()

    def wait(name: str) -> None:
        if name == "guest.2":
            assert interrupted.wait(SECONDS)

    def compare() -> None:
        interrupted.set()
        raise KeyboardInterrupt

    there = world(launcher=Launcher(wait), compare=compare)
    with pytest.raises(KeyboardInterrupt):
        there.move(B, then=A)
    assert there.launcher.runs == ["guest.1-dev0", "guest.1", "guest.2-dev0", "guest.2"]
    there.launcher.awaiting.end()
    assert there.launcher.runs == ["guest.1-dev0", "guest.1"]
