"""A C compiler and a debugger, from Debian's packages for this machine's C library: unpacked, not installed.

Those of the machine, where it has them, are not used: what is built, and said of a crash, is then the same everywhere.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, quiet

_COMPILER = "usr/bin/gcc"
_DEBUGGER = "usr/bin/gdb"
_COMPILE_SECONDS = 120.0  # seconds for one program, which takes three


@dataclass(frozen=True)
class Unpacked:
    """`root` is where packages are unpacked: a program, and its libraries."""

    root: Path

    def environment(self) -> dict[str, str]:
        """The environment that the program is started with."""
        libraries = [str(path) for path in (*self.root.glob("usr/lib/*-linux-gnu"), *self.root.glob("lib/*-linux-gnu"))]
        return {
            **os.environ,
            "PATH": f"{self.root / 'usr/bin'}:{os.environ['PATH']}",  # for what it starts in turn
            "LD_LIBRARY_PATH": ":".join(libraries),
            "LC_ALL": "C.UTF-8",
        }


class Compiler(Unpacked):
    """gcc, with what it links."""

    def compile(self, arguments: Sequence[str], folder: Path) -> None:
        """Run it in `folder`.

        Raises:
            UserError: it complains; it has the first complaint.
        """
        command = [str(self.root / _COMPILER), f"--sysroot={self.root}", *arguments]
        environment = self.environment()
        try:
            ran = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the compiler took over {_COMPILE_SECONDS:.0f} s in {folder}") from None
        if ran.returncode != 0:
            errors = [line for line in ran.stderr.splitlines() if "error" in line] or ran.stderr.splitlines()[-1:]
            raise UserError(f"{folder} does not compile: {errors[0] if errors else f'status {ran.returncode}'}")


class Debugger(Unpacked):
    """gdb, without Python in it."""

    @property
    def program(self) -> Path:
        """The program, to be started with `environment`."""
        return self.root / _DEBUGGER


def c_compiler(*, progress: Progress = quiet) -> Compiler:
    """The compiler, fetched when the cache has none.

    Raises:
        UserError: it cannot be fetched: no apt, no network, no space.
    """
    return Compiler(_unpacked("toolchain", ("gcc", "libc6-dev"), _COMPILER, progress))


def debugger(*, progress: Progress = quiet) -> Debugger:
    """The debugger, fetched when the cache has none.

    Raises:
        UserError: it cannot be fetched: no apt, no network, no space.
    """
    return Debugger(_unpacked("debugger", ("gdb-minimal",), _DEBUGGER, progress))


def is_fetched(name: str) -> bool:
    """Whether the cache has it: "toolchain" or "debugger"."""
    return _place(name).exists()


def _place(name: str) -> Path:
    return cache_dir() / name / platform.freedesktop_os_release()["VERSION_CODENAME"]


def _unpacked(name: str, packages: Sequence[str], program: str, progress: Progress) -> Path:
    root = _place(name)
    with locked(name):
        if not (root / program).exists():
            archive = DebianArchive((root.name,))
            debs = archive.fetch(packages, progress=progress)
            root.parent.mkdir(exist_ok=True)
            with publish(root) as making:
                archive.unpack(debs, making)
                _link_merged_folders(making)
    return root


def _link_merged_folders(root: Path) -> None:
    """Have /lib where packages have /usr/lib only: what links them on a system is no package's file."""
    for name in ("lib", "lib64"):
        if (root / "usr" / name).is_dir() and not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
