"""The doctor says whether guests can run here, and what to do when not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner, Result

from tests.cases import for_each_row
from userdev.errors import UserError
from vfio_user.cli.doctor import command
from vfio_user.harness import accelerator, cache, doctor, qemu, remedies
from vfio_user.harness.debian import Progress
from vfio_user.harness.doctor import Finding, Readiness, can_run, examine_machine
from vfio_user.harness.hosts.sshd import ensure_sshd
from vfio_user.harness.qemu import PROGRAM
from vfio_user.harness.toolchain import boot_loader, c_compiler, debugger

from .test_harness_qemu import answers_like_qemu


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing but the tools of /bin: no QEMU, no apt, an empty cache; returns the folder on its PATH."""
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.delenv(qemu.ENVIRONMENT, raising=False)
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "cat"):
        (tmp_path / "bin" / tool).symlink_to(f"/bin/{tool}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(doctor, "KVM", tmp_path / "kvm")
    monkeypatch.setattr(accelerator, "KVM", tmp_path / "kvm")
    return tmp_path / "bin"


@pytest.fixture
def with_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (doctor, qemu):
        monkeypatch.setattr(module, "has_apt", lambda: True)
    monkeypatch.setattr(doctor, "find_mirror", lambda: None)


def state_of(name: str) -> Readiness:
    return {finding.name: finding.state for finding in examine_machine()}[name]


def run_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_every_question_gets_an_answer() -> None:
    assert [finding.name for finding in examine_machine()] == list(doctor.CHECKS)


def test_without_qemu_and_without_apt_it_cannot_work() -> None:
    assert state_of("QEMU") is Readiness.BAD
    assert run_doctor().exit_code == 2


@pytest.mark.usefixtures("with_apt")
def test_without_qemu_but_with_apt_the_first_run_gets_one() -> None:
    assert state_of("QEMU") is Readiness.LATER
    assert state_of("guest image") is Readiness.LATER
    assert run_doctor().exit_code == 0


def test_a_good_qemu_is_found_and_an_old_one_is_not_taken_for_it(machine: Path) -> None:
    answers_like_qemu(machine / PROGRAM, "7.2.22")
    assert state_of("QEMU") is Readiness.BAD
    answers_like_qemu(machine / PROGRAM, "11.1.3")
    assert state_of("QEMU") is Readiness.GOOD


@pytest.mark.parametrize(
    ("behaviour", "detail"), [("exit 85", "KVM: "), ("echo KVM internal error; exec cat /dev/zero", "TCG: ")]
)
def test_the_accelerator_is_what_a_guest_runs_under(machine: Path, tmp_path: Path, behaviour: str, detail: str) -> None:
    program = answers_like_qemu(machine / PROGRAM, "11.1.3")
    program.write_text(program.read_text().replace("esac", f"*accel*) {behaviour};; esac"))
    (tmp_path / "kvm").touch()
    assert doctor.check_accelerator()[1].startswith(detail)


def test_who_may_not_use_kvm_is_told_of_its_nodes_own_group_where_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    for mode, gid, helps in (
        *((0o660, 54321, True), (0o600, 54321, False), (0o600, 0, False), (0o660, 0, False)),
        *((0o640, 54321, False), (0o620, 54321, False), (0o666, 54321, True), (0o606, 54321, False)),
    ):
        node = SimpleNamespace(st_mode=mode, st_gid=gid)
        monkeypatch.setattr(doctor, "KVM", SimpleNamespace(exists=lambda: True, stat=lambda node=node: node))
        state, _, hint = cast(tuple[Readiness, str, str], doctor.check_accelerator())
        assert state is Readiness.ABSENT
        assert ("usermod --append --groups 54321 " in hint) is helps, f"{mode:o} of {gid}"
        assert ("usermod" in hint) is helps, f"{mode:o} of {gid}"
        assert helps or f"{mode:04o}" in hint


def test_namespaces_are_there_where_the_harness_makes_them(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user namespace of somebody's own is none that it enters."""
    (machine / "nsenter").symlink_to("/bin/true")
    for can, state in ((True, Readiness.GOOD), (False, Readiness.ABSENT)):
        monkeypatch.setattr(doctor, "can_make_namespaces", lambda can=can: can)
        assert doctor.check_namespaces()[0] is state


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "file/cache"))
    finding = next(finding for finding in examine_machine() if finding.name == "cache")
    assert finding.state is Readiness.BAD
    assert cache.ENVIRONMENT in finding.hint


@pytest.mark.usefixtures("with_apt")
def test_a_system_without_a_codename_has_no_packages_for_it_and_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing() -> dict[str, str]:
        raise OSError("no os-release")

    systems: tuple[Callable[[], dict[str, str]], ...] = (
        nothing,
        lambda: {"ID": "arch"},
        lambda: {"VERSION_CODENAME": ""},
    )
    for system in systems:
        monkeypatch.setattr("platform.freedesktop_os_release", system)
        assert doctor.examine("debugger").state is not Readiness.BAD
        for fetch in (debugger, c_compiler, boot_loader, ensure_sshd):
            with pytest.raises(UserError, match="no codename"):
                fetch()


def test_a_small_disk_is_bad_for_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FIRST_RUN_SPACE", 1e18)
    assert state_of("disk") is Readiness.BAD


def test_less_space_will_do_where_both_qemu_and_image_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    later, first = doctor.LATER_RUN_SPACE, doctor.FIRST_RUN_SPACE
    for has_qemu, has_image, needed in ((True, True, later), (True, False, first), (False, True, first)):
        for name, has in (("qemu", has_qemu), ("image", has_image)):
            state = Readiness.GOOD if has else Readiness.LATER
            monkeypatch.setattr(doctor, f"check_{name}", lambda state=state: (state, ""))
        for free, good in ((needed, True), (needed - 1, False)):
            monkeypatch.setattr("shutil.disk_usage", lambda _path, free=free: SimpleNamespace(free=free))
            found = doctor.examine("disk")
            assert (found.state is Readiness.GOOD) is good, (has_qemu, has_image, free)
            assert good or f"{needed / 1e9:.1f} GB needed" in found.detail


def raises(error: Exception) -> Callable[[], doctor.Examination]:
    def check() -> doctor.Examination:
        raise error

    return check


@pytest.mark.parametrize("error", [UserError("no such thing", hint="get one"), ZeroDivisionError("oops")])
def test_a_check_that_fails_is_a_finding_and_the_rest_is_still_asked(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"first": raises(error), "second": doctor.check_python})
    first, second = examine_machine()
    assert (first.state, second.state) == (Readiness.BAD, Readiness.GOOD)
    assert str(error) in first.detail


@for_each_row([(Readiness.GOOD, True), (Readiness.LATER, True), (Readiness.ABSENT, True), (Readiness.BAD, False)])
def test_only_what_is_bad_keeps_guests_from_running(state: Readiness, works: bool) -> None:
    assert can_run([Finding("one", Readiness.GOOD, ""), Finding("other", state, "")]) is works


def test_programs_get_the_same_as_json() -> None:
    ran = run_doctor("--json")
    said = json.loads(ran.stdout)
    assert said["ok"] is (ran.exit_code == 0)
    assert [each["name"] for each in said["findings"]] == list(doctor.CHECKS)
    assert {"name", "state", "detail", "hint"} <= said["findings"][0].keys()


class Cupboard:
    """Remedies that put there what a machine lacks, or fail."""

    def __init__(self, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[str] = []
        self._machine = machine
        monkeypatch.setattr(
            remedies, "REMEDIES", {"QEMU": self.qemu, "guest image": self.image, "debugger": self.nothing}
        )

    def qemu(self, progress: Progress) -> str:
        progress("fetching")
        self.taken.append("QEMU")
        answers_like_qemu(self._machine / PROGRAM, "11.1.3")
        return "installed a QEMU"

    def image(self, progress: Progress) -> str:
        raise UserError("the archive is not reached")

    def nothing(self, progress: Progress) -> str:
        return ""


@pytest.fixture
def cupboard(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Cupboard:
    return Cupboard(machine, monkeypatch)


@pytest.mark.usefixtures("with_apt")
def test_what_can_be_fixed_is_and_each_says_what_was_done(cupboard: Cupboard) -> None:
    before = run_doctor()
    assert cupboard.taken == [], "without --fix nothing is done"
    assert "installed" not in before.output
    document = json.loads(run_doctor("--fix", "--json").stdout)
    found = {finding["name"]: finding for finding in document["findings"]}
    assert (found["QEMU"]["state"], found["QEMU"]["done"]) == ("good", "installed a QEMU")
    assert (found["guest image"]["state"], found["guest image"]["failure"]) == ("later", "the archive is not reached")
    assert found["debugger"]["done"] == ""
    assert run_doctor("--fix").exit_code == 0
    assert cupboard.taken == ["QEMU"], "what is good is left alone"


@pytest.mark.usefixtures("with_apt")
def test_what_nobody_but_its_owner_can_fix_is_said_at_the_end(
    cupboard: Cupboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(doctor.CHECKS, "memory", lambda: (Readiness.BAD, "0.1 GB", "end other programs"))
    monkeypatch.setitem(doctor.CHECKS, "namespaces", lambda: (Readiness.ABSENT, "no root", "be root"))
    monkeypatch.setitem(doctor.CHECKS, "cache", lambda: (Readiness.GOOD, "there", "nothing to do"))
    monkeypatch.setitem(doctor.CHECKS, "system", lambda: (Readiness.ABSENT, "there is no way"))
    done = run_doctor("--fix")
    assert done.exit_code == 2
    left = [line.strip() for line in done.stdout.partition("left for you:\n")[2].partition("\n\n")[0].splitlines()]
    assert {"memory: end other programs", "namespaces: be root"} <= {*left}
    assert not any(line.startswith(("cache:", "system:")) for line in left)


def test_a_quiet_doctor_says_nothing_of_what_is_well() -> None:
    loud, quiet = run_doctor(), run_doctor("--quiet")
    assert "python" in loud.output
    assert "python" not in quiet.output
    assert "QEMU" in quiet.output
    assert loud.exit_code == quiet.exit_code == 2


def test_a_disk_that_is_full_is_rid_of_what_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        folder = tmp_path / "cache" / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "memory").write_bytes(bytes(4096))
    (tmp_path / "cache" / "images").mkdir()
    monkeypatch.setitem(doctor.CHECKS, "disk", lambda: (Readiness.BAD, "full", "make room"))
    treated = {each.finding.name: each for each in remedies.treat()}
    assert "2 checkpoints" in treated["disk"].done
    assert [path.name for path in (tmp_path / "cache" / "checkpoints").iterdir()] == []
    assert (tmp_path / "cache" / "images").is_dir(), "what takes long to make is left"
