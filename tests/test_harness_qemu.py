"""Which QEMU is chosen, refused and asked for. The QEMUs here are scripts that answer as QEMUs of all ages do."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from packaging.version import Version

from tests.cases import for_each_row
from userdev.errors import UserError
from vfio_user.cli.qemu import command
from vfio_user.harness import cache, qemu
from vfio_user.harness.qemu import PROGRAM, ensure_qemu, find_qemu, install_qemu, installed_qemu, manifest

COARSE = 5
"""CLOCK_REALTIME_COARSE of time.h: by it files have their times."""
DEVICES = """\
Display devices:
name "VGA", bus PCI

Misc devices:
name "edu", bus PCI
name "vfio-user-pci", bus PCI, desc "VFIO over socket PCI device assignment"
"""


def answers_like_qemu(path: Path, version: str, devices: str = DEVICES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--version) echo "QEMU emulator version {version} (Debian 1:{version}+ds-1)";;\n'
        f"*help) cat <<'DEVICES'\n{devices}DEVICES\n;; esac\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with an empty cache and an empty PATH (beside /bin); returns the folder on its PATH."""
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.delenv(qemu.ENVIRONMENT, raising=False)
    monkeypatch.setattr(qemu, "has_apt", lambda: False)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").symlink_to("/bin/sh")
    (tmp_path / "bin/cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def in_cache(tmp_path: Path, name: str, version: str) -> None:
    """What `install_qemu` leaves: here the "loader" is a script that is the QEMU too."""
    root = tmp_path / "cache/qemu" / name
    answers_like_qemu(root / "usr/lib64/ld-linux-x86-64.so.2", version)
    (root / "install.json").write_text(json.dumps({"digest": f"digest of {name} {version}", "packages": []}))


@for_each_row(
    [
        ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)", Version("11.1.3")),
        ("QEMU emulator version 10.1.0", Version("10.1.0")),
        ("QEMU emulator version 10.2.91 (v10.2.0-rc1-dirty)", Version("10.2.91")),
        ("10.1", Version("10.1.0")),
    ]
)
def test_versions_are_read_as_qemu_prints_them(text: str, version: Version) -> None:
    assert qemu.parse_version(text) == version


def test_device_names_are_read_as_qemu_prints_them() -> None:
    assert qemu.parse_devices(DEVICES) == {"VGA", "edu", "vfio-user-pci"}


def test_the_manifest_wants_only_qemus_that_can_do_it() -> None:
    assert "default" in manifest()
    for recipe in manifest().values():
        assert qemu.parse_version(recipe.minimum) >= qemu.FIRST_VERSION


def test_the_option_comes_before_the_environment_before_path_before_the_cache(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache(tmp_path, "default", "11.1.0")
    assert (find_qemu().version, find_qemu().origin) == (Version("11.1.0"), "cache")
    answers_like_qemu(machine / PROGRAM, "11.2.0")
    assert (find_qemu().version, find_qemu().origin) == (Version("11.2.0"), "path")
    monkeypatch.setenv(qemu.ENVIRONMENT, str(answers_like_qemu(tmp_path / "own", "11.3.0")))
    assert (find_qemu().version, find_qemu().origin) == (Version("11.3.0"), "environment")
    option = str(answers_like_qemu(tmp_path / "mine", "11.4.0"))
    assert (find_qemu(option).version, find_qemu(option).origin) == (Version("11.4.0"), "option")


def test_a_name_of_the_manifest_is_a_choice_too(tmp_path: Path) -> None:
    in_cache(tmp_path, "default", "11.1.3")
    in_cache(tmp_path, "sid", "12.0.0")
    assert find_qemu("sid").version == Version("12.0.0")
    assert find_qemu("sid").origin == "option"
    with pytest.raises(UserError, match="not installed"):
        find_qemu("forky")


def test_an_old_qemu_on_path_is_passed_over(machine: Path, tmp_path: Path) -> None:
    answers_like_qemu(machine / PROGRAM, "7.2.22")
    in_cache(tmp_path, "default", "11.1.3")
    assert find_qemu().origin == "cache"


def test_when_there_is_only_an_old_one_both_versions_are_named(machine: Path) -> None:
    answers_like_qemu(machine / PROGRAM, "7.2.22")
    with pytest.raises(UserError, match=r"10\.1.*7\.2\.22"):
        find_qemu()


@for_each_row(
    [
        ("#!/bin/sh\necho QEMU emulator version 7.2.22", "too old"),
        ("#!/bin/sh\necho QEMU emulator version 11.1.3", "without vfio-user-pci"),
        ("#!/bin/sh\necho true 9.1", "not a QEMU"),
        ("#!/bin/sh\necho no library >&2; exit 127", "no library"),
        ("#!/no/such/interpreter\n", "cannot be run"),
    ]
)
def test_a_chosen_qemu_has_to_be_good(content: str, complaint: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(content)
    program.chmod(0o755)
    with pytest.raises(UserError, match=complaint):
        ensure_qemu(str(program))


def test_a_choice_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nonesuch"):
        find_qemu("nonesuch")


def test_a_machine_without_apt_is_told_what_to_install() -> None:
    with pytest.raises(UserError, match=r"10\.1") as raised:
        ensure_qemu()
    assert qemu.ENVIRONMENT in raised.value.hint
    with pytest.raises(UserError, match=r"10\.1"):
        install_qemu()


def test_a_damaged_qemu_in_the_cache_does_not_count(tmp_path: Path) -> None:
    in_cache(tmp_path, "default", "11.1.3")
    assert installed_qemu("default")
    (tmp_path / "cache/qemu/default/usr/lib64/ld-linux-x86-64.so.2").unlink()
    assert installed_qemu("default") is None


def test_one_in_the_cache_is_asked_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    in_cache(tmp_path, "default", "11.1.3")
    program = tmp_path / "cache/qemu/default/usr/lib64/ld-linux-x86-64.so.2"
    asked = tmp_path / "asked"
    program.write_text(program.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\necho . >> {asked}\n"))
    assert {find_qemu().version for _ in range(3)} == {Version("11.1.3")}
    assert len(asked.read_text().splitlines()) == 2  # its version, its devices
    in_cache(tmp_path, "default", "11.1.4")
    assert find_qemu().version == Version("11.1.4")


def test_it_is_asked_again_whichever_of_its_programs_has_changed(tmp_path: Path) -> None:
    """A loader and the program that it loads: what was said is older than one of them."""
    in_cache(tmp_path, "default", "11.1.3")
    root, asked = tmp_path / "cache/qemu/default", tmp_path / "asked"
    (root / "usr/bin").mkdir(parents=True)
    loader, program = root / "usr/lib64/ld-linux-x86-64.so.2", root / "usr/bin" / PROGRAM
    loader.write_text(loader.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\necho . >> {asked}\n"))
    for number, changed in enumerate((program, loader, program), 1):
        changed.write_bytes(changed.read_bytes() if changed.exists() else b"")
        while time.clock_gettime_ns(COARSE) <= changed.stat().st_ctime_ns:
            pass  # what is said from now on is younger
        for _ in range(2):
            qemu._devices.cache_clear()
            assert find_qemu().version == Version("11.1.3")
            assert len(asked.read_text().splitlines()) == 2 * number, changed


def test_two_qemus_have_two_digests_and_one_keeps_its_own(tmp_path: Path) -> None:
    first, second = (str(answers_like_qemu(tmp_path / name, "11.1.3")) for name in ("a", "b"))
    assert find_qemu(first).digest == find_qemu(first).digest != find_qemu(second).digest


def test_which_prints_words_that_a_shell_can_run(tmp_path: Path) -> None:
    in_cache(tmp_path, "default", "11.1.3")
    printed = CliRunner().invoke(command, ["which"])
    assert printed.exit_code == 0
    assert printed.stdout.split()[0].endswith("ld-linux-x86-64.so.2")
    as_json = json.loads(CliRunner().invoke(command, ["which", "--json"]).stdout)
    assert as_json["version"] == [11, 1, 3]


def test_list_shows_what_is_installed(tmp_path: Path) -> None:
    in_cache(tmp_path, "sid", "12.0.0")
    rows = json.loads(CliRunner().invoke(command, ["list", "--json"]).stdout)
    assert {row["name"]: bool(row["installed"]) for row in rows} == {"default": False, "forky": False, "sid": True}


def test_a_qemu_that_was_built_anew_is_another(tmp_path: Path) -> None:
    """Of the same size and version, as after a change of one line: no checkpoint of the old one is for it."""
    program = answers_like_qemu(tmp_path / PROGRAM, "11.1.3")
    first = find_qemu(str(program)).digest
    assert find_qemu(str(program)).digest == first
    os.utime(program, ns=(0, program.stat().st_mtime_ns + 1_000_000_000))
    assert find_qemu(str(program)).digest != first


def test_an_installed_qemu_is_unpacked_again_only_when_the_archive_has_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has, unpacked = ["qemu_11.1.3-1.deb"], []

    def unpack(debs: list[Path], root: Path) -> None:
        unpacked.append(debs[0].name)
        answers_like_qemu(root / "usr/lib64/ld-linux-x86-64.so.2", "11.1.3")

    archive = SimpleNamespace(fetch=lambda packages, progress: [Path(name) for name in has], unpack=unpack)
    monkeypatch.setattr(qemu, "DebianArchive", lambda suites: archive)
    monkeypatch.setattr(qemu, "has_apt", lambda: True)
    digests = [install_qemu().digest, install_qemu().digest]
    has[:] = ["qemu_11.1.3-2.deb"]
    digests += [install_qemu().digest, install_qemu().digest]
    assert unpacked == ["qemu_11.1.3-1.deb", "qemu_11.1.3-2.deb"]
    assert digests[0] == digests[1] != digests[2] == digests[3]
