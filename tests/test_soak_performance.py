"""What is done around each event of a soak, and what an event changes for its time: without a guest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from userdev.errors import UserError
from vfio_user.harness import Assignment, Exercise, Mode, Phase, Report, Verdict
from vfio_user.harness.hosts import Pair
from vfio_user.harness.hosts.host import LOCAL, Host, HostFailure
from vfio_user.harness.migration.report import NO_PAGES, PhaseRecord
from vfio_user.soak import EVENTS, Failed, Happening, acts, lacks
from vfio_user.soak.guest import Scene, SoakedDevice
from vfio_user.soak.guest import named as named_devices
from vfio_user.soak.performance import Performance
from vfio_user.soak.raised import Raised

DISK, CARD, EDU = "nvme", "vhost-user-net", "edu"
SOAKED = {EDU: ("edu --flr yes", "dma"), DISK: ("nvme --image disk.img", "fio"), CARD: ("vhost-user-net", "ping")}

ENDS: Mapping[str, tuple[str, ...]] = {
    # Whose work ends by an event, and begins anew behind it; others' goes on through it.
    "hop": (),
    "cut": (),
    "system-reset": (EDU, DISK, CARD),
    "reboot": (EDU, DISK, CARD),
    "flr": (EDU, CARD),
    "replug": (EDU, DISK, CARD),
    "kill": (EDU, CARD),
    "upgrade": (CARD,),
    "interposer": (CARD,),
    "pause-server": (),
    "pause-qemu": (),
}
BOOTS = ("system-reset", "reboot")
KEEPS = tuple(name for name in ENDS if not name.startswith("pause"))
"""Events behind which a disk has to have what was written just before them."""


class Told:
    """A scene that writes down what is done with it, and goes wrong at one thing where it is told to."""

    def __init__(self, wrong: str = "") -> None:
        self.devices = [SoakedDevice(name, Assignment.of(*said)) for name, said in SOAKED.items()]
        self.done: list[str] = []
        self.guest = None
        self.lab = SimpleNamespace(lost_connection="")
        self.pair = Pair(LOCAL, LOCAL)
        self.comes_back = False
        self._wrong = wrong

    def do(self, what: str) -> None:
        self.done.append(what)
        if what == self._wrong:
            raise UserError("it went wrong")

    def device(self, name: str) -> SoakedDevice:
        return next(device for device in self.devices if device.name == name)

    def end_work(self, device: SoakedDevice) -> None:
        self.do(f"end {device.name}")

    def begin_work(self, device: SoakedDevice) -> None:
        self.do(f"begin {device.name}")

    def keep(self, device: SoakedDevice, seed: str) -> None:
        self.do(f"write to {device.name} {seed}")

    def find_kept(self, device: SoakedDevice) -> None:
        self.do(f"find on {device.name}")

    def came_up(self) -> None:
        self.do("came up")

    def verify(self) -> None:
        self.do("verify")

    def perform(self, monkeypatch: pytest.MonkeyPatch, name: str, target: str) -> dict[str, Any]:
        def act(scene: Any, device: SoakedDevice, chance: float) -> dict[str, Any]:
            scene.do("act")
            return {"measured": chance}

        told = {each: replace(event, act=act, lacks=lambda *_: "") for each, event in EVENTS.items()}
        monkeypatch.setattr("vfio_user.soak.performance.EVENTS", told)
        monkeypatch.setattr("vfio_user.soak.performance.sizes", lambda guest: {"harness_fds": 7})
        return Performance(cast(Scene, self), 5).do(Happening(9, name, target, 0.5))


def wanted(name: str, target: str) -> list[str]:
    """All that has to be done, in its order: work ends before, what was kept is looked for once the guest is up."""
    touched = SOAKED if EVENTS[name].of_guest else (target,)
    ends = [device for device in touched if device in ENDS[name]]
    kept = [DISK] if DISK in touched and name in KEEPS else []
    return [
        *(f"end {device}" for device in ends),
        *(f"write to {device} 5/9" for device in kept),
        "act",
        *(["came up"] if name in BOOTS else []),
        *(f"find on {device}" for device in kept),
        *(f"begin {device}" for device in ends),
        "verify",
    ]


def cases() -> list[tuple[str, str]]:
    return [(name, target) for name, event in EVENTS.items() for target in ([""] if event.of_guest else SOAKED)]


def test_around_each_event_work_ends_disks_are_written_and_read_and_all_is_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ENDS.keys() == EVENTS.keys()
    for name, target in cases():
        scene = Told()
        facts = scene.perform(monkeypatch, name, target)
        assert scene.done == wanted(name, target), (name, target)
        assert (facts["measured"], facts["harness_fds"]) == (0.5, 7), (name, target)


def test_whatever_goes_wrong_around_an_event_is_a_failure_and_nothing_is_done_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, target in cases():
        whole = wanted(name, target)
        for at, wrong in enumerate(whole):
            scene = Told(wrong)
            with pytest.raises(Failed, match="it went wrong"):
                scene.perform(monkeypatch, name, target)
            assert scene.done == whole[: at + 1], (name, target, wrong)


def test_of_work_that_is_wrong_behind_a_hop_whose_devices_told_of_no_page_that_is_said_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixty clauses of pages told what came of it, and none that the device had marked nothing."""
    monkeypatch.setattr("vfio_user.soak.performance.sizes", lambda guest: {})
    for facts, begins in (({"dirty_pages": 0}, NO_PAGES), ({"dirty_pages": 7}, "page 5"), ({}, "page 5")):
        scene = Told()

        def wrong() -> None:
            raise Failed("work of edu", "page 5 is old", evidence="all pages")

        scene.verify = wrong  # type: ignore[method-assign]
        hop = replace(EVENTS["hop"], act=lambda *_, facts=facts: facts, lacks=lambda *_: "")
        monkeypatch.setattr("vfio_user.soak.performance.EVENTS", {"hop": hop})
        with pytest.raises(Failed) as failed:
            Performance(cast(Scene, scene), 5).do(Happening(1, "hop"))
        told = failed.value
        assert told.detail.startswith(begins), facts
        assert told.detail.endswith("page 5 is old"), facts
        assert (told.check, told.evidence) == ("work of edu", "all pages"), facts


def test_a_guest_that_hops_again_next_is_said_to_come_back_where_it_hops_from(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report(Mode.AUTO, "a", "b", verdict=Verdict.MIGRATED)
    asked: list[dict[str, Any]] = []
    scene = Told()
    scene.guest = cast(Any, SimpleNamespace(host="a", name="guest"))
    scene.pair = cast(Any, SimpleNamespace(a=LOCAL, b=LOCAL, other=lambda host: f"not {host}"))

    def migrate(_: object, **how: Any) -> Report:
        asked.append(how)
        return report

    scene.lab = SimpleNamespace(migrate=migrate, lost_connection="")
    scene.left = lambda _: None  # type: ignore[attr-defined]
    told = {name: replace(event, lacks=lambda *_: "") for name, event in EVENTS.items()}
    monkeypatch.setattr("vfio_user.soak.performance.EVENTS", told)
    monkeypatch.setattr("vfio_user.soak.performance.sizes", lambda guest: {})
    performance, hops = Performance(cast(Scene, scene), 5), [Happening(number, "hop") for number in (1, 2)]
    for then, host in ((hops[1], "a"), (None, None), (Happening(2, "cut"), None), (Happening(2, "pause-qemu"), None)):
        performance.do(hops[0], then)
        assert (asked[-1]["to"], asked[-1]["then"]) == ("not a", host), then


def test_the_end_of_a_soak_judges_the_work_of_every_device() -> None:
    for wrong in ("", "end edu", "end vhost-user-net"):
        scene = Told(wrong)
        performance = Performance.__new__(Performance)
        performance._scene = cast(Scene, scene)
        if wrong:
            with pytest.raises(Failed):
                performance.finish()
        else:
            performance.finish()
            assert scene.done == [f"end {device}" for device in SOAKED]


def test_what_goes_wrong_as_a_host_is_lost_is_no_failure_of_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    name, target = next(iter(cases()))
    for wrong in wanted(name, target):
        scene = Told(wrong)
        scene.lab = SimpleNamespace(lost_connection="the SSH connection to b has ended")
        with pytest.raises(HostFailure, match="SSH connection to b") as told:
            scene.perform(monkeypatch, name, target)
        assert "it went wrong" in told.value.evidence
        scene.lab.lost_connection = "it went wrong"  # the error has said it itself
        with pytest.raises(HostFailure) as told:
            scene.perform(monkeypatch, name, target)
        assert (str(told.value), told.value.evidence) == ("it went wrong", "")


def test_what_goes_wrong_as_a_host_is_silent_is_no_failure_of_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections are there still, for a minute."""
    name, target = next(iter(cases()))
    scene = Told(wanted(name, target)[0])
    scene.pair = Pair(LOCAL, cast(Host, SimpleNamespace(unanswered=lambda: "no SSH connection to b: timed out")))
    with pytest.raises(HostFailure, match="timed out"):
        scene.perform(monkeypatch, name, target)


def test_a_migration_that_a_host_hindered_is_none_that_lost_something() -> None:
    report = Report(Mode.AUTO, "a", "b", reason="in phase start", hindered="files could not be put on b")
    pair = SimpleNamespace(other=lambda host: host)
    lab = SimpleNamespace(migrate=lambda *_, **__: report)
    scene = SimpleNamespace(pair=pair, guest=SimpleNamespace(host="a", name="guest"), lab=lab, comes_back=False)
    with pytest.raises(HostFailure, match="goes on as before"):
        acts.hop(cast(Scene, scene), cast(SoakedDevice, None), 0.5)


def test_an_event_of_the_guest_is_possible_where_it_is_with_each_device_and_others_with_those_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacks(scene: Any, device: SoakedDevice) -> str:
        return "it cannot" if device.name == CARD else ""

    told = {name: replace(EVENTS[name], lacks=lacks) for name in ("hop", "flr")}
    monkeypatch.setattr("vfio_user.soak.performance.EVENTS", told)
    found = Performance(cast(Scene, Told()), 5)
    assert found.possible == {"flr": [EDU, DISK]}
    assert found.left_out == {f"hop {CARD}": "it cannot", f"flr {CARD}": "it cannot"}


def test_a_disk_whose_image_is_on_one_machine_hops_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lacks, "require_movable", lambda *_: None)
    elsewhere = cast(Host, SimpleNamespace(name="b", shares_memory=False))
    for to, image, told in (
        (LOCAL, "{scratch}/d", ""),
        (elsewhere, "/shared/d", ""),
        (elsewhere, "{scratch}/d", "nvme"),
    ):
        device = SoakedDevice(DISK, Assignment.of(f"nvme --image {image}", "fio"))
        scene = SimpleNamespace(guest=None, plugged=lambda _: None, pair=Pair(LOCAL, to))
        lack = lacks.no_migration(cast(Scene, scene), device)
        assert (bool(lack), told in lack) == (bool(told), True), (to.name, image)


def test_how_a_device_would_have_a_function_level_reset_is_told_where_it_has_none() -> None:
    for said, told in (
        ("edu", "'edu --flr yes'"),
        ("edu --msix 0", "'edu --flr yes'"),
        ("userdev_servers.edu:Edu", "PciExpress(flr=True)"),
        ("./server {socket}", "no function-level reset"),
    ):
        device = SoakedDevice("device", Assignment.of(said, "none"))
        for methods, lacks_it in ((["pm", "bus"], True), (["flr", "bus"], False)):
            guest = SimpleNamespace(call=lambda *_, methods=methods: methods)
            scene = SimpleNamespace(guest=guest, plugged=lambda _: SimpleNamespace(address="0000:01:00.0"))
            lack = lacks.no_flr(cast(Scene, scene), device)
            assert (bool(lack), told in lack) == (lacks_it, lacks_it), (said, methods)


# -- what an event changes for its time -------------------------------------------------------------------------------


def staged(done: list[str], ends: Callable[[], None]) -> Scene:
    """A scene whose server, QEMU and cable write down what is done to them; `ends` comes in the middle of it."""

    def migrate(guest: Any, *, to: Any, plan: Any, conductor: Any) -> Any:
        conductor.watch(Phase.PRE_COPY)
        ends()

    def noting(*names: str) -> dict[str, Callable[..., None]]:
        return {name: lambda *_, said=name: done.append(said) for name in names}

    server = SimpleNamespace(owner=SimpleNamespace(**noting("pause", "go_on")))
    pair = SimpleNamespace(cable=SimpleNamespace(**noting("cut", "mend")), other=lambda host: host)
    guest = SimpleNamespace(qmp=SimpleNamespace(command=done.append), host="a", name="guest")
    scene = SimpleNamespace(server=lambda _: server, pair=pair, guest=guest, lab=SimpleNamespace(migrate=migrate))
    return cast(Scene, scene)


def test_what_an_event_changes_for_its_time_is_undone_whatever_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SoakedDevice(EDU, Assignment.of(*SOAKED[EDU]))
    for error in (UserError("it failed"), KeyboardInterrupt()):

        def ends(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr("vfio_user.soak.acts.time.sleep", ends)
        for act, changes in (
            (acts.cut, ["cut", "mend"]),
            (acts.pause_server, ["pause", "go_on"]),
            (acts.pause_qemu, ["stop", "cont"]),
        ):
            done: list[str] = []
            with pytest.raises(type(error)):
                act(staged(done, ends), device, 0.5)
            assert done == changes, (act.__name__, error)


# -- a guest's devices and machines -----------------------------------------------------------------------------------


def test_devices_of_one_kind_are_told_apart_by_their_number() -> None:
    assignments = [Assignment.of(*SOAKED[name]) for name in (EDU, DISK, EDU, EDU, DISK, CARD)]
    names = [device.name for device in named_devices(assignments)]
    assert names == [EDU, DISK, f"{EDU}:2", f"{EDU}:3", f"{DISK}:2", CARD]


def test_after_each_event_the_guest_is_the_same_and_each_work_is_judged_by_what_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    devices = [SoakedDevice(name, Assignment.of(*SOAKED[name])) for name in (EDU, DISK, CARD)]
    for device in devices[:2]:
        device.work = cast(Any, SimpleNamespace(name=device.name, ask=lambda name=device.name: asked.append(name)))
    scene = Scene(cast(Any, None), cast(Any, None), cast(Any, "the guest"), devices)
    for boot_id, wrong, lost in (
        ("booted", "", ""),
        ("booted", DISK, f"work of {DISK}"),
        ("booted", EDU, f"work of {EDU}"),
        ("booted again", "", "no reboot"),
    ):

        def answers(
            guest: object, works: Any, known: str, boot_id: str = boot_id, wrong: str = wrong
        ) -> tuple[str, list[Exercise]]:
            assert (guest, [work.name for work in works], known) == ("the guest", asked, "booted")
            done = [Exercise(work.name, work.name != wrong, {}, (), {}, 0.0) for work in works]
            return boot_id, done if boot_id == known else []

        monkeypatch.setattr("vfio_user.soak.guest.answers", answers)
        monkeypatch.setattr(scene, "_boot_id", "booted")
        asked.clear()
        if lost:
            with pytest.raises(Failed) as told:
                scene.verify()
            assert told.value.check == lost
        else:
            scene.verify()
        assert asked == [EDU, DISK], lost


def test_logs_of_the_machines_that_a_guest_left_last_stay_and_others_are_let_go() -> None:
    forgotten: list[str] = []
    lab: Any = SimpleNamespace(records=SimpleNamespace(forget=forgotten.append))
    scene = Scene(lab, cast(Any, None), cast(Any, None), [])
    for number in range(6):
        scene.left(f"guest.{number}")
    assert forgotten == [f"guest.{number}" for number in range(4)], "the two before the one that runs stay"


def test_what_a_disk_keeps_outlives_its_server_unless_it_is_in_that_servers_memory() -> None:
    for image, persists in (("memory:64M", False), ("memory:1G", False), ("disk.img:64M", True), ("in/memory", True)):
        for work, keeps in (("fio", persists), ("files", False)):
            device = SoakedDevice("disk", Assignment.of(f"nvme --image {image}", work))
            assert (device.persists, device.has_kept) == (persists, keeps), (image, work)


def test_a_link_that_was_cut_is_mended_and_a_guest_that_did_not_stay_has_lost() -> None:
    for verdict in Verdict:
        done: list[str] = []
        cable = SimpleNamespace(cut=lambda done=done: done.append("cut"), mend=lambda done=done: done.append("mend"))

        def migrate(
            _guest: object, *, conductor: Any, done: list[str] = done, verdict: Verdict = verdict, **_: Any
        ) -> Any:
            conductor.watch(Phase.START)
            conductor.watch(Phase.PRE_COPY)
            return SimpleNamespace(
                verdict=verdict, ok=verdict is Verdict.MIGRATED, sentence="it did", machine="guest.1", hindered=""
            )

        pair = SimpleNamespace(cable=cable, other=lambda host: host)
        scene = SimpleNamespace(
            pair=pair, guest=SimpleNamespace(host="a"), lab=SimpleNamespace(migrate=migrate), left=done.append
        )
        if verdict is Verdict.STAYED:
            acts.cut(cast(Scene, scene), cast(SoakedDevice, None), 0.5)
        else:
            with pytest.raises(Failed, match="link that was cut"):
                acts.cut(cast(Scene, scene), cast(SoakedDevice, None), 0.5)
        assert done == ["cut", "mend", *(["guest.1"] if verdict is Verdict.STAYED else [])], verdict


def test_a_hop_is_measured_with_its_phases_and_all_pages_that_a_device_had_written() -> None:
    pages = PhaseRecord(Phase.DIRTY_PAGES, 1.0, 0.25, details={"pages": 7, "unmapped": 2})
    for phases, facts in (([pages], {"dirty_pages": 9, "phases": {"dirty pages": 0.25}}), ([], {"phases": {}})):
        report = Report(Mode.COORDINATED, "a", "b", verdict=Verdict.MIGRATED, phases=phases, downtime=0.5, ram_bytes=64)
        left: list[str] = []
        scene = SimpleNamespace(
            pair=SimpleNamespace(other=lambda host: host),
            guest=SimpleNamespace(host="a", name="guest"),
            lab=SimpleNamespace(migrate=lambda *_, report=report, **__: report),
            left=left.append,
            comes_back=False,
        )
        found = acts.hop(cast(Scene, scene), cast(SoakedDevice, None), 0.5)
        assert found == {"downtime": 0.5, "ram_bytes": 64, **facts}
        assert left == ["guest"]


# -- what servers raise -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Logging:
    """What is asked of a program that has a log."""

    name: str
    log: Path
    began: float = 0.0


def test_what_a_server_raises_is_told_once_for_each_place_of_it(tmp_path: Path) -> None:
    """Of whichever program it is, one that has ended since too; what was forgotten is read no more."""

    def said(child: Any, line: int, name: str = "ValueError: no") -> None:
        with child.log.open("a") as log:
            log.write("10:00:00.000 INFO it is served\n10:00:01.000 ERROR a request failed\n")
            log.write(f'Traceback (most recent call last):\n  File "/a/dev.py", line {line}, in fill\n{name}\n')

    one, other, third = (cast(Any, Logging(name, tmp_path / name)) for name in ("a", "b", "c"))
    children = [one, other]
    raised = Raised()
    assert raised.told_by(children) == []
    said(one, 7)
    assert [text.rpartition(": ")[2] for text in raised.told_by(children)] == ["no (/a/dev.py:7, in fill)"]
    said(one, 8)
    said(other, 7, "ValueError: another message")
    assert raised.told_by(children) == [], "the first of each program, and this place is known"
    said(third, 9)
    assert len(raised.told_by([other, third])) == 1
    assert raised._read.keys() == {other, third}
    one.log.unlink()
    assert raised.told_by([*children, third]) == []
