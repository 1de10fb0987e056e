"""The wheel in environments that have nothing else: what it brings, and what works from a stranger's folder.

The package index is asked, so this is a part of `scripts/test provisioning`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_pytest_plugin import blocks
from vfio_user.cli import COMMANDS

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
OURS = {"vfio_user", "vhost_user", "userdev", "userdev_servers"}
WITHOUT_EXTRAS = {
    "completion",
    "control",
    "docs",
    "fuzz",
    "man",
    "new",
    "serve",
    "probe",
    "conformance",
    "interpose",
    "trace",
    "replay",
    "minimize",
    "show",
}
SUITE = """
from vfio_user.avocado_test import GuestTest

class Adders(GuestTest):
    def test_the_guest_finds_it(self):
        with self.lab() as lab:
            assert "1af4:10f0" in lab.boot("adder:Adder").succeed("lspci -n")
"""


class Environment:
    """A virtual environment without pip; that of the tests' own installs into it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))

    def install(self, *wanted: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", *wanted]
        done = subprocess.run(pip, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def run(self, program: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.bin / program), *arguments]
        return subprocess.run(command, cwd=cwd, env=plain(), capture_output=True, text=True, timeout=600)

    @contextmanager
    def serving(self, device: str, cwd: Path) -> Iterator[str]:
        """`vfio-user serve` of a device; gives its socket."""
        command = [str(self.bin / "vfio-user"), "serve", device, "--socket-path", "s"]
        with subprocess.Popen(command, cwd=cwd, env=plain(), stderr=subprocess.PIPE, text=True) as program:
            try:
                assert program.stderr is not None
                assert "is listening" in program.stderr.readline()
                yield "s"
            finally:
                program.send_signal(signal.SIGTERM)


def plain() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: setuptools takes what an earlier build has left."""
    source, built = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info", "results")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    sphinx = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "--fail-on-warning",
        "-c",
        "docs",
        "-d",
        str(built / "doctrees"),
    ]
    subprocess.run([*sphinx, ".", "vfio_user/_pages"], cwd=source, check=True)
    subprocess.run([*sphinx, "-b", "man", ".", "vfio_user/_pages/man"], cwd=source, check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(built), str(source)]
    subprocess.run(pip, check=True)
    [file] = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the wheel, and what pip installs with it."""
    made = Environment(tmp_path_factory.mktemp("bare"))
    made.install(str(wheel))
    return made


@pytest.fixture(scope="module")
def author(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment of somebody who tests devices without guests."""
    made = Environment(tmp_path_factory.mktemp("author"))
    made.install(str(wheel), "pytest")
    return made


@pytest.fixture(scope="module")
def harness(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("harness"))
    made.install(f"{wheel}[harness]", "pytest")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A stranger's project, in folders that are called as those of ours."""
    for name in ("servers", "tests", "guest_images", "avocado_tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for name in ("adder", "test_adder", "test_adder_in_a_guest"):
        (tmp_path / f"{name}.py").write_text(blocks()[name])
    return tmp_path


def top_level(environment: Environment) -> set[str]:
    """What the wheel has put at the top of site-packages, but for what is written about it."""
    [record] = environment.packages.glob("vfio_user-*.dist-info/RECORD")
    names = {line.partition("/")[0] for line in record.read_text().splitlines()}
    return {name for name in names if name != ".." and not name.endswith(".dist-info")}


def test_nothing_but_our_names_stands_at_the_top_of_site_packages(bare: Environment) -> None:
    assert top_level(bare) == OURS


def test_the_documentation_comes_along(bare: Environment, folder: Path) -> None:
    for page in ("devices", "reference/api/vfio_user"):
        done = bare.run("vfio-user", "docs", page, "--path", cwd=folder)
        assert done.returncode == 0, done.stderr
        path = Path(done.stdout.strip())
        assert path.is_relative_to(bare.packages)
        assert "PciDevice" in path.read_text()


def test_the_manual_is_where_man_looks_for_programs_on_its_path(bare: Environment, folder: Path) -> None:
    for program in ("vfio-user", "vhost-user"):
        page = bare.bin.parent / "share" / "man" / "man1" / f"{program}.1"
        assert f"{program} serve" in page.read_text().replace("\\-", "-")
        told = bare.run(program, "man", cwd=folder)
        assert Path(told.stdout.strip()).read_text() == page.read_text()


def test_a_device_author_installs_click_and_nothing_else(bare: Environment) -> None:
    found = {path.name.partition("-")[0] for path in bare.packages.glob("*.dist-info")}
    assert found == {"vfio_user", "click"}


def test_a_device_is_served_probed_and_checked_without_extras(bare: Environment, folder: Path) -> None:
    with bare.serving("adder.py:Adder", folder) as socket:
        probed = bare.run("vfio-user", "probe", socket, cwd=folder)
        checked = bare.run("vfio-user", "conformance", socket, "--only", "info", cwd=folder)
    assert probed.returncode == 0, probed.stderr
    assert "1af4:10f0" in probed.stdout
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", ["edu", "gpio", "nvme"])
def test_a_shipped_device_describes_itself(bare: Environment, folder: Path, name: str) -> None:
    said = bare.run("vfio-user", "serve", name, "--print-capabilities", cwd=folder)
    assert json.loads(said.stdout)["arguments"] == ["serve", name]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_works_or_says_what_to_install(bare: Environment, folder: Path, command: str) -> None:
    done = bare.run("vfio-user", command, "--help", cwd=folder)
    if command in WITHOUT_EXTRAS:
        assert (done.returncode, done.stderr) == (0, "")
        return
    wanted = "test" if command in ("nightly", "test-e2e") else "harness"
    assert done.returncode == 2
    assert re.fullmatch(
        rf"error: `vfio-user {command}` .*\n  pip install '/path/to/vfio-user\[{wanted}\]', .*\n", done.stderr
    )


@pytest.mark.parametrize(
    "words",
    [
        ("interpose", "--listen", "front", "--connect", "back", "--faults", "faults.yaml"),
        ("conformance", "--server-command", "vfio-user serve edu --socket-path {socket}"),
    ],
    ids=lambda words: words[0],
)
def test_an_option_that_needs_an_extra_says_so(bare: Environment, folder: Path, words: tuple[str, ...]) -> None:
    (folder / "faults.yaml").write_text("[]")
    done = bare.run("vfio-user", *words, cwd=folder)
    assert done.returncode == 2
    assert "pip install '/path/to/vfio-user[harness]'" in done.stderr


def test_pytest_tests_a_device_without_extras_and_says_what_guests_need(author: Environment, folder: Path) -> None:
    done = author.run("pytest", "test_adder.py", cwd=folder)
    assert "2 passed" in done.stdout, done.stdout
    done = author.run("pytest", "test_adder_in_a_guest.py", cwd=folder)
    assert "2 errors" in done.stdout
    assert "pip install '/path/to/vfio-user[harness]'" in done.stdout


def test_a_guest_runs_from_a_strangers_folder(harness: Environment, folder: Path) -> None:
    done = harness.run("vfio-user", "run", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pytest_tests_a_strangers_device_in_a_guest(harness: Environment, folder: Path) -> None:
    done = harness.run("pytest", cwd=folder)
    assert "4 passed" in done.stdout, done.stdout


def test_avocado_runs_a_strangers_tests_and_has_none_of_its_own(
    harness: Environment, wheel: Path, folder: Path
) -> None:
    harness.install(f"{wheel}[test]")
    shutil.rmtree(folder / "avocado_tests")
    done = harness.run("vfio-user", "test-e2e", cwd=folder)
    assert done.returncode == 2
    assert "repository" in done.stderr
    (folder / "guest_tests.py").write_text(SUITE)
    done = harness.run("vfio-user", "test-e2e", "guest_tests.py", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 0 failed" in done.stdout
