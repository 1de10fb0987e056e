"""What is left of a guest's migration that fails while its evidence cannot be written: nothing on the other side."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.harness.device import Device
from vfio_user.harness.hosts import LocalHost
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.migration import Conductor, Mode, Plan, Report, Verdict, destination, guest_migration
from vfio_user.harness.migration.destination import Destination, require_image_there
from vfio_user.harness.migration.guest_migration import choose_mode, move, require_migratable, require_movable


class Launcher:
    """Starts no machine; knows which sides it was to end."""

    lost_connection = ""
    awaiting = None

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def next_name(self, name: str) -> str:
        return f"{name}.1"

    def machine(self, spec: object, **_: object) -> Any:
        raise UserError("QEMU does not start")

    def end(self, machine: object, servers: list[Any]) -> None:
        self.ended.append(machine)


def guest_of(folder: Path) -> Any:
    """A guest that is paused, and has no devices."""
    qmp = SimpleNamespace(command=lambda _: {"running": False}, events=SimpleNamespace(forget=lambda _: None))
    spec = SimpleNamespace(name="guest.1", host=LocalHost("b"))
    spec.moved = lambda *_: spec
    machine = SimpleNamespace(qmp=qmp, console=SimpleNamespace(log=folder / "guest.console.log"))
    return SimpleNamespace(name="guest", devices=[], host=LocalHost("a"), spec=spec, machine=machine)


def test_what_was_started_there_is_ended_also_where_the_report_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Report, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Report, "write", full)
    launcher: Any = Launcher()
    with pytest.raises(OSError, match="No space"):
        move(launcher, guest_of(tmp_path), LocalHost("b"), Mode.COORDINATED, Plan(), Conductor(), None)
    assert launcher.ended == [None]


def test_a_migration_that_fails_as_a_host_is_silent_was_hindered_by_it(tmp_path: Path) -> None:
    """Its connections are there still."""
    silent = "no SSH connection to b: timed out"
    for why in ("", silent):
        launcher: Any = Launcher()
        to: Any = SimpleNamespace(name="b", unanswered=lambda why=why: why)
        report = move(launcher, guest_of(tmp_path), to, Mode.COORDINATED, Plan(), Conductor(), None)
        assert report.verdict is Verdict.STAYED
        assert (report.hindered, silent in report.sentence) == (why, bool(why))
        assert "QEMU does not start" in report.reason


def server(
    *,
    by_qemu: bool = False,
    client: bool = False,
    supports: tuple[str, ...] = ("STOP_COPY",),
    trace: Path | None = None,
) -> Any:
    """A device's server: whether QEMU moves it by itself, and what it and its client can."""
    answers = {"session": {"client_migrates": client}, "migration_support": {"supports": [*supports]}}
    family = SimpleNamespace(moved_by_qemu=by_qemu)
    device = SimpleNamespace(name="disk" if by_qemu else "edu", family=family, keeps_image_in_scratch=False)
    control = SimpleNamespace(call=answers.__getitem__)
    facts = {"captures_dma": False, "is_interposed": not by_qemu, "interposed_there": not by_qemu}
    return SimpleNamespace(device=device, control=control, trace=trace, **facts)


def with_devices(guest: Any, *servers: Any) -> Any:
    guest.devices = [
        SimpleNamespace(identity=f"dev{number}", place=number, server=each) for number, each in enumerate(servers)
    ]
    return guest


def test_a_disk_whose_image_is_in_a_folder_of_each_hosts_own_moves_to_no_other_machine(tmp_path: Path) -> None:
    """A soak over SSH lost what was written at its first hop: the next server had made a new image."""
    here, elsewhere = LocalHost("a"), cast(Host, SimpleNamespace(name="b", shares_memory=False))
    for text, stays in {
        "vhost-user-blk --image {scratch}/disk.img:64M": True,
        "nvme --image={scratch}/nvme.img:64M": True,
        "nvme --image {scratch}/nvme.img:64M --migrate-image=yes": False,
        "nvme --image {scratch}/nvme.img:64M --migrate-image yes": False,
        "nvme --image memory:64M": False,
        "vhost-user-blk --image /shared/disk.img": False,
        "./mine {socket} --log {scratch}/log": False,
    }.items():
        device = Device.parse(text)
        require_image_there(device, here, LocalHost("b"))
        for way in ((here, elsewhere), (elsewhere, here)):
            with pytest.raises(UserError, match="its image is in") if stays else nullcontext():
                require_image_there(device, *way)
    launcher: Any = Launcher()
    disk = server()
    disk.device = Device.parse("nvme --image {scratch}/nvme.img:64M")
    with pytest.raises(UserError, match="its image is in"):
        move(launcher, with_devices(guest_of(tmp_path), disk), elsewhere, DIRECT, Plan(), Conductor(), None)
    assert launcher.ended == []


NATIVE, COORDINATED, DIRECT = Mode.NATIVE, Mode.COORDINATED, Mode.DIRECT


@for_each_row(
    [
        ([], COORDINATED),
        ([server()], COORDINATED),
        ([server(client=True)], NATIVE),
        ([server(client=True), server()], COORDINATED),
        ([server(client=True), server(by_qemu=True)], NATIVE),
        ([server(by_qemu=True)], NATIVE),
    ],
    ids=["none", "ours", "of a client that does", "one of each", "and one that QEMU moves", "QEMU moves all"],
)
def test_a_client_migrates_by_itself_where_it_does_so_with_every_device_and_there_is_one(
    servers: list[Any], chosen: Mode
) -> None:
    assert choose_mode(Mode.AUTO, servers) is chosen
    assert choose_mode(COORDINATED, servers) is COORDINATED
    assert choose_mode(DIRECT, servers) is DIRECT
    if chosen is NATIVE:
        assert choose_mode(NATIVE, servers) is NATIVE
    else:
        with pytest.raises(UserError, match="does not migrate"):
            choose_mode(NATIVE, servers)


def test_a_device_has_to_be_able_to_migrate_only_where_its_state_is_moved_from_here(tmp_path: Path) -> None:
    for each, good in (
        (server(), True),
        (server(supports=()), False),
        (server(supports=("PRE_COPY",)), False),
        (server(by_qemu=True, supports=()), True),
    ):
        guest = with_devices(guest_of(tmp_path), server(), each)
        if good:
            require_migratable(guest)
        else:
            with pytest.raises(UserError, match="edu cannot be migrated"):
                require_migratable(guest)


def test_a_device_that_qemu_refuses_to_move_is_told_by_its_name_and_others_can_be_moved(tmp_path: Path) -> None:
    """As QEMU 11.1 has its reasons; one that names no device of the guest's is every device's."""
    generic, rng = "0000:00:10.0:00.0/vhost-user-test-device", "0000:00:10.1:00.0/vhost-user-rng"
    models = {"blk": "vhost-user-blk-pci", "rng": "vhost-user-rng-pci", "own": "vhost-user-test-device-pci"}
    for reasons, staying in (
        ([], set()),
        ([f"non-migratable device: {generic}"], {"own"}),
        ([f"State blocked by non-migratable device '{generic}'"], {"own"}),
        ([f"non-migratable device: {rng}", f"non-migratable device: {generic}"], {"own", "rng"}),
        (["Migration disabled: something else"], {*models}),
    ):
        guest = with_devices(guest_of(tmp_path), *[server(by_qemu=True) for _ in models])
        guest.machine.qmp.command = {"query-migrate": {"blocked-reasons": reasons} if reasons else {}}.__getitem__
        for plugged, (name, model) in zip(guest.devices, models.items(), strict=True):
            plugged.server.device.name, plugged.attachment = name, SimpleNamespace(device={"driver": model})
        told = {name: _refusal(guest, plugged) for name, plugged in zip(models, guest.devices, strict=True)}
        assert {name for name, said in told.items() if said} == staying, reasons
        for name in staying:
            assert f"{name} cannot be migrated" in told[name], reasons
            assert any(reason in told[name] for reason in reasons), reasons
        if staying:
            with pytest.raises(UserError, match="cannot be migrated"):
                require_migratable(guest)


def _refusal(guest: Any, plugged: Any) -> str:
    try:
        require_movable(guest, plugged)
    except UserError as error:
        return str(error)
    return ""


class Starting(Launcher):
    """Starts a machine and servers, and knows with what."""

    def __init__(self) -> None:
        super().__init__()
        self.served: list[tuple[str, bool, bool]] = []

    def serve(self, device: Any, name: str, *, interposed: bool, host: object, trace: bool) -> Any:
        self.served.append((name, interposed, trace))
        return SimpleNamespace(device=device, name=name, control=SimpleNamespace(post=lambda _: None))

    def machine(self, spec: object, **_: object) -> Any:
        return "the machine there"


def moved(
    guest: Any,
    mode: Mode,
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
    continue_on: Callable[..., None] | None = None,
    found: Callable[[Report], None] = lambda _: None,
) -> tuple[Report, Any, list[str]]:
    """Move a guest by a coordinator that comes to this verdict; the report, the launcher, and what was looked at."""
    looked: list[str] = []

    def coordinator(source: object, machine: object, links: object, report: Report, **_: object) -> Any:
        return SimpleNamespace(run=lambda: setattr(report, "verdict", verdict))

    def compared(report: Report, *_: object) -> None:
        looked.append("the guest")
        found(report)

    monkeypatch.setattr(guest_migration, "Coordinator", coordinator)
    monkeypatch.setattr(guest_migration, "choose_mode", lambda mode, _: mode)
    monkeypatch.setattr(guest_migration, "require_migratable", lambda _: looked.append("what can migrate"))
    monkeypatch.setattr(guest_migration, "look", lambda _: "as it was")
    monkeypatch.setattr(guest_migration, "compare", compared)
    monkeypatch.setattr(destination, "attachment_of", lambda *_: None)
    monkeypatch.setattr(destination, "DeviceLink", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(Destination, "devices", lambda *_: [])
    monkeypatch.setattr(Report, "write", lambda *_: None)
    guest.continue_on = continue_on or (lambda machine, *_: looked.append(f"continue on {machine}"))
    guest.machine.qmp.command = lambda _: {"running": True}
    launcher: Any = Starting()
    report = move(launcher, guest, LocalHost("b"), mode, Plan(), Conductor(), None)
    return report, launcher, looked


def test_a_guest_that_does_not_answer_there_says_nothing_where_its_host_has_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guest_migration, "was_reset", lambda _: False)
    lost = "the SSH connection to b has ended"
    for gone in ("", lost):
        monkeypatch.setattr(Launcher, "lost_connection", gone)
        report, _, _ = moved(
            guest_of(tmp_path),
            COORDINATED,
            Verdict.MIGRATED,
            monkeypatch,
            found=lambda report: report.judge("the guest answers", False, "its agent has gone"),
        )
        assert (report.verdict, report.hindered) == (Verdict.LOST, gone)


@for_each([COORDINATED, NATIVE, DIRECT], [False, True], [Verdict.MIGRATED, Verdict.STAYED])
def test_one_side_ends_and_a_guest_that_arrived_is_compared_unless_it_was_reset(
    mode: Mode, reset: bool, verdict: Verdict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guest_migration, "was_reset", lambda _: reset)
    guest = guest_of(tmp_path)
    report, launcher, looked = moved(guest, mode, verdict, monkeypatch)
    arrived = verdict is Verdict.MIGRATED
    assert launcher.ended == [guest.machine if arrived else "the machine there"]
    assert ("the guest" in looked) is (arrived and not reset)
    assert ("continue on the machine there" in looked) is arrived
    assert ("what can migrate" in looked) is (mode is not DIRECT)
    assert report.notes == (["the guest was reset meanwhile"] if reset else [])


def test_a_guest_that_arrived_stays_there_though_its_logs_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As on a full disk: its old side has stopped, and to end the new one left nobody."""
    monkeypatch.setattr(guest_migration, "was_reset", lambda _: False)
    ended: list[object] = []
    monkeypatch.setattr(Launcher, "end", lambda _, machine, servers: ended.append(machine))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        moved(guest_of(tmp_path), COORDINATED, Verdict.MIGRATED, monkeypatch, full)
    assert ended == []


def test_servers_there_are_interposed_and_traced_as_those_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(guest_migration, "was_reset", lambda _: False)
    guest = with_devices(guest_of(tmp_path), server(trace=tmp_path / "t"), server(), server(by_qemu=True))
    _, launcher, _ = moved(guest, COORDINATED, Verdict.STAYED, monkeypatch)
    assert launcher.served == [
        ("guest.1-dev0", True, True),
        ("guest.1-dev1", True, False),
        ("guest.1-dev2", False, False),
    ]
