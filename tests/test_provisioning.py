"""QEMU from the machine's own Debian mirror, for real: `scripts/test provisioning`."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from userdev.errors import UserError
from vfio_user.harness import qemu as qemus
from vfio_user.harness.accelerator import KVM, guest_runs, probe_accelerator
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.debian import DebianArchive
from vfio_user.harness.qemu import Qemu, QemuRecipe, find_qemu, install_qemu

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def own_cache() -> Iterator[Path]:
    # not pytest's folder, which stays for three runs: this is half a gigabyte
    with tempfile.TemporaryDirectory(prefix="vfio-user-cache-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, folder)
        patch.delenv(qemus.ENVIRONMENT, raising=False)
        yield Path(folder)


NAMES = ["default", "forky"]  # not sid, where a package may lack what it needs for some days


@pytest.fixture(scope="module", params=NAMES)
def qemu(request: pytest.FixtureRequest) -> Qemu:
    return install_qemu(request.param)


def test_what_the_manifest_names_installs_and_can_be_a_client(qemu: Qemu) -> None:
    assert qemu.version >= qemus.FIRST_VERSION
    assert qemus.DEVICE in qemu.devices()


def test_the_command_runs_as_it_stands(qemu: Qemu) -> None:
    ran = subprocess.run([*qemu.argv, "-machine", "help"], capture_output=True, text=True, timeout=30, check=True)
    assert f"pc-q35-{qemu.version.major}.{qemu.version.minor}" in ran.stdout


def test_a_guest_runs_under_tcg(qemu: Qemu) -> None:
    assert guest_runs(qemu, "tcg")


def test_the_accelerator_that_is_chosen_runs_a_guest(qemu: Qemu) -> None:
    assert guest_runs(qemu, probe_accelerator(qemu))
    if not KVM.exists():
        assert probe_accelerator(qemu) == "tcg"


def test_a_second_install_downloads_and_unpacks_nothing(qemu: Qemu) -> None:
    said: list[str] = []
    name = next(name for name in NAMES if (found := qemus.installed_qemu(name)) and found.argv == qemu.argv)
    assert install_qemu(name, progress=said.append) == qemu
    assert said == []


def test_several_versions_stand_side_by_side(own_cache: Path) -> None:
    assert len({install_qemu(name).digest for name in NAMES}) == len(NAMES)
    assert find_qemu("default").version == install_qemu("default").version


def test_an_archive_whose_qemu_is_too_old_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = QemuRecipe(about="Debian 13 as released", suites=("trixie",), packages=("qemu-system-x86",), minimum="10.1")
    monkeypatch.setattr(qemus, "manifest", lambda: {"old": old})
    with pytest.raises(UserError, match="too old"):
        install_qemu("old")
    assert not (own_cache / "qemu/old").exists()
    assert list((own_cache / "qemu").glob(".old.*")) == []


def test_a_suite_that_the_mirror_lacks_is_the_users_error() -> None:
    with pytest.raises(UserError, match="nonesuch"):
        DebianArchive(["nonesuch"]).fetch(["busybox-static"])
