"""What work there is for which device, as `migrate` and `soak` choose it."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.family import VFIO_USER, VHOST_USER, devices
from vfio_user.harness.guest import GuestFailure
from vfio_user.harness.migration import workload
from vfio_user.harness.migration.workload import (
    KINDS,
    NONE,
    SUBJECTS,
    Assignment,
    Workload,
    answers,
    image_for,
    said_in,
)

PROGRAMS = Path(__file__).parent.parent / "guest_images" / "programs"


def test_without_a_word_a_device_does_the_first_of_its_own() -> None:
    assert {name: Assignment.of(name).kind for name in ("edu", "nvme", "gpio")} == {
        "edu": "dma",
        "nvme": "fio",
        "gpio": NONE,
    }


@for_each_row([("nvme", "dma"), ("edu", "fio"), ("gpio", "registers"), ("vhost-user-blk", "dma")])
def test_work_of_another_device_is_refused_and_what_there_is_is_named(device: str, kind: str) -> None:
    with pytest.raises(UserError) as refused:
        Assignment.of(device, kind)
    assert device in str(refused.value)
    for name in {*KINDS} - {NONE}:
        assert name in refused.value.hint


def test_interrupts_are_not_chosen_for_a_driver() -> None:
    assert Assignment.of("edu", "registers", "msi").interrupts == "msi"
    with pytest.raises(UserError):
        Assignment.of("nvme", "blocks", "msi")


@for_each(["my.module:Class", "server {socket}", "server.py:Disk --image x"])
def test_a_server_of_somebodys_speaks_what_is_behind_the_qemu_device_that_is_named(text: str) -> None:
    assert Device.parse(text).family is VFIO_USER
    assert Device.parse(f"{text} [x-msg-timeout=500]").family is VFIO_USER
    assert Device.parse(f"{text} [driver=vhost-user-blk-pci]").family is VHOST_USER


@for_each(["my.module:Class", "server {socket}"])
def test_a_device_that_is_not_known_may_be_like_any(device: str) -> None:
    assert Assignment.of(device).kind == NONE
    for kind in KINDS:
        assert Assignment.of(device, kind).kind == kind


def test_work_with_another_device_is_a_mistake_of_who_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a bad verdict of the device: the guest said that it was another."""
    monkeypatch.setattr(workload, "Workload", lambda *_, **__: "it works")
    guest: Any = None
    for (vendor, ident), kind, refused in (
        ((0x1AF4, 0x10E7), "idle", True),
        ((0x1234, 0x11E8), "idle", False),
        ((0x1AF4, 0x10E7), "fio", False),  # of any disk
        ((0x1AF4, 0x10E7), NONE, False),
    ):
        plugged: Any = SimpleNamespace(vendor=vendor, device=ident)
        asked = Assignment.of("summer:Summer", kind)
        if not refused:
            asked.start(guest, plugged)
            continue
        with pytest.raises(UserError, match=r"'idle' is work with edu \(1234:11e8\), and .* is 1af4:10e7"):
            asked.start(guest, plugged)


def test_a_command_line_with_its_placeholder_misspelt_is_no_unknown_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in ("vfio-user", "ed") else None)
    nowhere = "says nowhere what to listen on"
    for text, said in {
        "vfio-user serve edu --socket-path {sock}": nowhere,
        "vfio-user serve edu": nowhere,
        "mine {sock}": nowhere,
        "ed --msix 0": "there is no device called 'ed'",
        "edoo": "there is no device called 'edoo'",
    }.items():
        with pytest.raises(UserError, match=said):
            Device.parse(text)


def test_a_disk_to_work_with_is_made_unless_one_is_given() -> None:
    assert Assignment.of("nvme").device.options == ("--image", "memory:64M")
    assert Assignment.of("nvme --image disk.img").device.options == ("--image", "disk.img")


def test_a_disk_that_its_client_moves_is_in_a_file_that_both_hosts_have() -> None:
    device = Assignment.of("vhost-user-blk").device
    command = server_command(device, Path("/labs/7/dev0.sock"))
    assert command[-2:] == ["--image", "/labs/7/disk.img:64M"]


def test_the_image_has_what_the_work_of_all_devices_needs() -> None:
    edu, nvme, idle_nvme = Assignment.of("edu"), Assignment.of("nvme"), Assignment.of("nvme", NONE)
    assert image_for([edu]) == image_for([idle_nvme]) == image_for([]) == "minimal"
    assert image_for([edu, nvme]) == image_for([nvme]) == "storage"


def test_the_table_has_the_devices_that_there_are_and_the_work_that_the_guest_can_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(PROGRAMS))
    assert [*SUBJECTS] == devices()
    assert {*KINDS} - {NONE} == runpy.run_path(str(PROGRAMS / "workload.py"))["KINDS"].keys()


class Working:
    """A guest with works that answer in files of a folder, once they were asked for often enough; `looks` are ours."""

    def __init__(self, folder: Path, looks: int, patience: float = 1.0) -> None:
        self.patience, self.boot_id, self.evidence = patience, "booted once", lambda: ""
        self.waits: list[float] = []
        self._folder, self._left = folder, looks

    def work(self, name: str) -> Workload:
        work = Workload.__new__(Workload)
        work._guest, work.answers_in, work.command = cast(Any, self), str(self._folder / name), ("workload", name)
        return work

    def waiting(self, seconds: float) -> Any:
        self.waits.append(seconds)
        return self

    def without(self, what: str) -> str:
        return what

    @property
    def remaining(self) -> float:
        return float(self._left)

    def call(self, function: Callable[..., Any], files: list[str], seconds: float, boot_id: str) -> Any:
        """What is in the guest then; one file more is there each time."""
        self._left -= 1
        if files and self._left:
            Path(files[0]).write_text(f'{{"seen": {{"name": "{Path(files[0]).name}"}}, "wrong": []}}')
        said = function(files, 0.0, boot_id)
        return {"boot_id": self.boot_id, "texts": said["texts"]}


def test_answers_of_several_works_are_taken_in_one_call_each_as_soon_as_it_is_there(tmp_path: Path) -> None:
    guest = Working(tmp_path, 5)
    works = [guest.work(name) for name in ("fio", "dma", "ping")]
    boot_id, done = answers(cast(Any, guest), works)
    assert boot_id == "booted once"
    assert [exercise.seen["name"] for exercise in done] == ["fio", "dma", "ping"]
    assert not [*tmp_path.iterdir()], "the next answer is none of these"
    assert len(guest.waits) == 1


def test_of_work_that_says_nothing_it_is_told_that_and_which(tmp_path: Path) -> None:
    guest = Working(tmp_path, 2)
    with pytest.raises(GuestFailure, match="workload dma' said nothing"):
        answers(cast(Any, guest), [guest.work("fio"), guest.work("dma")])


def test_a_guest_that_has_booted_is_waited_for_no_longer(tmp_path: Path) -> None:
    own = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    said = said_in([str(tmp_path / "never")], 600.0, "another")
    assert said == {"boot_id": own, "texts": {}}
    guest = Working(tmp_path, 600)
    guest.boot_id = "booted twice"
    assert answers(cast(Any, guest), [guest.work("fio"), guest.work("dma")], "booted once") == ("booted twice", [])


def test_an_answer_is_waited_for_as_long_as_its_guest_is_slow_and_not_by_that_twice(tmp_path: Path) -> None:
    """`waiting` takes seconds of a guest under KVM, as every verb does."""
    guests = [Working(tmp_path, 2, patience) for patience in (1.0, 4.0)]
    assert all(guest.work("fio").answer().ok for guest in guests)
    assert guests[0].waits == guests[1].waits
