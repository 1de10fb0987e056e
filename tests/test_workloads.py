"""What work there is for which device, as `migrate` and `soak` choose it."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.family import VFIO_USER, VHOST_USER, devices
from vfio_user.harness.migration import workload
from vfio_user.harness.migration.workload import KINDS, NONE, SUBJECTS, Assignment, Workload, image_for

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


def test_an_answer_is_waited_for_as_long_as_its_guest_is_slow_and_not_by_that_twice() -> None:
    """`wait_until_succeeds` takes seconds of a guest under KVM, as every verb does."""
    waited: list[float] = []

    def wait_until_succeeds(_command: str, timeout: float, interval: float) -> str:
        waited.append(timeout)
        return '{"seen": {}, "wrong": []}'

    work = Workload.__new__(Workload)
    for patience in (1.0, 4.0):
        work._guest = cast(Any, SimpleNamespace(patience=patience, wait_until_succeeds=wait_until_succeeds))
        work._now, work.command = "now", ("workload", "fio")
        assert work.answer().ok
    assert waited[0] == waited[1]
