"""A full disk is a sentence with the path and never an internal error, tried with limits, as an ordinary user may.

A process that may write files of so many bytes only (RLIMIT_FSIZE) has EFBIG where a full disk has ENOSPC.
"""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.checkout import modules
from userdev.errors import about
from vfio_user.harness.artifacts import Timeline, record_versions, write_text
from vfio_user.harness.console import Console
from vfio_user.harness.lab import Lab
from vfio_user.harness.log import LogFile

FULL = Path("/dev/full")
COMMAND = """
import sys
sys.dont_write_bytecode = True  # as far as it may, which would be taken for all of it ever after
{first}
from vfio_user.cli import main
main()
"""


def limited(
    *arguments: str, bytes_: int, cwd: Path, stdout: int | None = subprocess.PIPE, first: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command, after the statements of `first`, in a process that may write so much into any file."""
    return subprocess.run(
        [sys.executable, "-m", "tests.program", COMMAND.format(first=first), *arguments],
        cwd=cwd,
        env={**os.environ, "VFIO_USER_RESULTS": str(cwd / "results"), "PYTHONPATH": modules()},
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bytes_, bytes_)),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )


def test_an_error_that_names_no_file_is_about_the_one_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), about(FULL):
        FULL.write_text("text")
    with pytest.raises(FileNotFoundError) as missing, about(FULL):
        (tmp_path / "none").read_text()
    assert missing.value.filename == str(tmp_path / "none")


@for_each_row(
    [
        ("versions.json", lambda path: record_versions(path.parent, {})),
        ("timeline.json", lambda path: Timeline().write(path)),
        ("error.txt", lambda path: write_text(path, "x")),
    ]
)
def test_what_a_run_writes_names_its_file(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / name
    path.symlink_to(FULL)
    with pytest.raises(OSError, match="No space left on device") as failure:
        write(path)
    assert failure.value.filename == str(path)


def test_a_console_is_read_on_when_its_log_is_full(tmp_path: Path) -> None:
    """Or the guest would stand still, and nobody would know why."""
    (tmp_path / "console.log").symlink_to(FULL)
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "console.log")
    theirs.sendall(b"one\n")
    console.wait_for("one", 10)
    theirs.sendall(b"two\n")
    console.wait_for("two", 10)
    theirs.close()
    console.close()
    [failure] = filter(None, (log.failure for log in console.logs))
    assert failure.filename == str(tmp_path / "console.log")


def test_a_log_that_failed_once_is_left_alone(tmp_path: Path) -> None:
    log = LogFile(FULL)
    log.write(b"text")
    first = log.failure
    log.write(b"more")
    assert first is not None
    assert log.failure is first
    log.close()


def test_a_lab_ends_in_order_and_says_which_file_it_could_not_write(tmp_path: Path) -> None:
    (tmp_path / "timeline.json").symlink_to(FULL)
    with pytest.raises(OSError, match=r"timeline\.json"), Lab("x", folder=tmp_path):
        pass
    with pytest.raises(ValueError, match="the first") as failure, Lab("x", folder=tmp_path):
        raise ValueError("the first is the one to show")
    assert any("timeline.json" in note for note in failure.value.__notes__)


@for_each([True, False], [("conformance", "--help"), ("doctor",)])
def test_a_full_standard_output_is_named(
    buffered: bool, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    if not buffered:
        monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    with FULL.open("w") as full:
        done = limited(*command, bytes_=1 << 30, cwd=tmp_path, stdout=full.fileno())
    assert done.returncode == 2
    assert "the standard output: No space left on device" in done.stderr
    assert "internal" not in done.stderr


# Or a new machine would begin with fetching it, and meet the limit there.
IMAGE_IS_THERE = """
from functools import partial
from pathlib import Path
from vfio_user.harness import lab
from vfio_user.harness.image import GuestImage
lab.ensure_image = lambda name, progress: GuestImage(name, *[Path("/dev/null")] * 4, "", "0")
"""


def test_a_run_at_its_limit_names_the_file(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"  # whatever is no QEMU is refused before anything is written
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 11.1.3\necho 'name \"vfio-user-pci\", bus PCI'\n")
    qemu.chmod(0o755)
    done = limited("run", "--qemu", str(qemu), bytes_=40, cwd=tmp_path, first=IMAGE_IS_THERE)
    assert done.returncode == 2, done.stderr
    assert "internal" not in done.stderr
    assert str(tmp_path / "results") in done.stderr
