"""A C compiler for what is built here, from Debian's packages for this machine's C library: unpacked, not installed.

That of the machine, where it has one, is not used: what is built is then the same everywhere.
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

_PACKAGES = ("gcc", "libc6-dev")
_COMPILER = "usr/bin/gcc"
_COMPILING = 120.0  # seconds for one program, which takes three


@dataclass(frozen=True)
class Compiler:
    """`root` is where the packages are unpacked: the compiler, what it links with, and their libraries."""

    root: Path

    def compile(self, arguments: Sequence[str], folder: Path) -> None:
        """Run it in `folder`. Raises `UserError` with its first complaint."""
        libraries = [str(path) for path in (*self.root.glob("usr/lib/*-linux-gnu"), *self.root.glob("lib/*-linux-gnu"))]
        environment = {
            **os.environ,
            "PATH": f"{self.root / 'usr/bin'}:{os.environ['PATH']}",  # for the assembler and the linker
            "LD_LIBRARY_PATH": ":".join(libraries),
            "LC_ALL": "C.UTF-8",
        }
        command = [str(self.root / _COMPILER), f"--sysroot={self.root}", *arguments]
        try:
            ran = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_COMPILING, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"the compiler took over {_COMPILING:.0f} s in {folder}") from None
        if ran.returncode != 0:
            errors = [line for line in ran.stderr.splitlines() if "error" in line] or ran.stderr.splitlines()[-1:]
            raise UserError(f"{folder} does not compile: {errors[0] if errors else f'status {ran.returncode}'}")


def c_compiler(*, progress: Progress = quiet) -> Compiler:
    """The compiler, fetched when the cache has none. Raises `UserError`: no apt, no network, no space."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    root = cache_dir() / "toolchain" / suite
    with locked("toolchain"):
        if not (root / _COMPILER).exists():
            archive = DebianArchive((suite,))
            debs = archive.fetch(_PACKAGES, progress=progress)
            root.parent.mkdir(exist_ok=True)
            with publish(root) as making:
                archive.unpack(debs, making)
                _link_merged_folders(making)
    return Compiler(root)


def _link_merged_folders(root: Path) -> None:
    """Have /lib where packages have /usr/lib only: what links them on a system is no package's file."""
    for name in ("lib", "lib64"):
        if (root / "usr" / name).is_dir() and not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
