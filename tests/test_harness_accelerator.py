"""KVM is used only when a guest has computed something under it. Scripts act as QEMUs on good and bad machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.version import Version

from vfio_user.harness import accelerator, cache
from vfio_user.harness.accelerator import guest_runs, probe_accelerator
from vfio_user.harness.qemu import Qemu

HEALTHY = "exit 85"  # isa-debug-exit with 42
DIES = "echo 'KVM internal error. Suberror: 1'; exec sleep 60"
NEVER_ANSWERS = "exec sleep 60"
REFUSES = "echo 'failed to initialize kvm: Permission denied'; exit 1"


@pytest.fixture
def qemu_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Qemu]:
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setattr(accelerator, "KVM", tmp_path / "kvm")
    (tmp_path / "kvm").touch()

    def make(behaviour: str) -> Qemu:
        program = tmp_path / "qemu"
        program.write_text(f"#!/bin/sh\necho $* >> {tmp_path / 'runs'}\n{behaviour}\n")
        program.chmod(0o755)
        return Qemu((str(program),), Version("11.1.3"), "QEMU", "option", "d" * 64)

    return make


@pytest.mark.parametrize(("behaviour", "expected"), [(HEALTHY, True), (DIES, False), (REFUSES, False)])
def test_only_the_guests_own_answer_counts(qemu_that: Callable[[str], Qemu], behaviour: str, expected: bool) -> None:
    began = time.monotonic()
    assert guest_runs(qemu_that(behaviour), "kvm", limit=30) is expected
    assert time.monotonic() - began < 15  # nobody waited for the limit


def test_a_guest_that_hangs_is_given_up_at_the_limit(qemu_that: Callable[[str], Qemu]) -> None:
    assert guest_runs(qemu_that(NEVER_ANSWERS), "kvm", limit=0.2) is None


def test_a_guest_that_did_not_answer_is_tried_again_but_not_by_every_test_of_a_night(
    qemu_that: Callable[[str], Qemu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[bool | None] = [None, True, False]
    monkeypatch.setattr(accelerator, "guest_runs", lambda *_: answers.pop(0))
    qemu = qemu_that(HEALTHY)
    assert [probe_accelerator(qemu), probe_accelerator(qemu), len(answers)] == ["tcg", "tcg", 2]
    monkeypatch.setattr(accelerator, "_SILENT_SECONDS", 0.0)
    assert [probe_accelerator(qemu), probe_accelerator(qemu), len(answers)] == ["kvm", "kvm", 1]


def test_the_answer_is_kept_until_the_machine_boots_again(
    qemu_that: Callable[[str], Qemu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe_accelerator(qemu_that(HEALTHY)) == "kvm"
    assert probe_accelerator(qemu_that(DIES)) == "kvm"
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
    monkeypatch.setattr(accelerator, "BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another boot\n")
    assert probe_accelerator(qemu_that(DIES)) == "tcg"


def test_a_machine_without_kvm_is_not_asked(qemu_that: Callable[[str], Qemu], tmp_path: Path) -> None:
    (tmp_path / "kvm").unlink()
    assert probe_accelerator(qemu_that(HEALTHY)) == "tcg"
    assert not (tmp_path / "runs").exists()
