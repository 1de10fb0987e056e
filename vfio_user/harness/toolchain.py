"""A C compiler, a debugger and a boot loader, from Debian's packages for this machine's C library: unpacked.

Those of the machine, where it has them, are not used: what is built, and said of a crash, is then the same everywhere.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import UserError
from userdev.process import complaint, run_to_end
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, own_suite, quiet

_COMPILER = "usr/bin/gcc"
_DEBUGGER = "usr/bin/gdb"
_LOADER_MAKER = "usr/bin/grub-mkimage"
_LOADER_PARTS = "usr/lib/grub/i386-pc"
_LOADER_MODULES = ("biosdisk", "boot", "linux")
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
            "PATH": f"{self.root / 'usr/bin'}:{os.environ.get('PATH', os.defpath)}",  # for what it starts in turn
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
        ran = run_to_end(f"the compiler in {folder}", command, _COMPILE_SECONDS, cwd=folder, env=environment)
        if ran.returncode != 0:
            raise UserError(f"{folder} does not compile: {complaint(ran.stderr) or f'status {ran.returncode}'}")


class Debugger(Unpacked):
    """gdb, without Python in it."""

    @property
    def program(self) -> Path:
        """The program, to be started with `environment`."""
        return self.root / _DEBUGGER


class BootLoader(Unpacked):
    """GRUB for a PC's firmware, and what puts it together."""

    def build(self, script: str, folder: Path) -> bytes:
        """What a disk begins with, boot sector first, to do what `script` says (GRUB's commands); made in `folder`.

        Raises:
            UserError: it cannot be put together; it has GRUB's complaint.
        """
        parts = self.root / _LOADER_PARTS
        source, core = folder / "boot-loader.cfg", folder / "boot-loader.img"
        source.write_text(script)
        command = [str(self.root / _LOADER_MAKER), "-O", "i386-pc", "-d", str(parts), "-p", "/"]
        command += ["-c", str(source), "-o", str(core), *_LOADER_MODULES]
        ran = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise UserError(f"GRUB cannot be put together: {ran.stderr.strip() or f'status {ran.returncode}'}")
        return (parts / "boot.img").read_bytes() + core.read_bytes()


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


def boot_loader(*, progress: Progress = quiet) -> BootLoader:
    """The boot loader, fetched when the cache has none.

    Raises:
        UserError: it cannot be fetched: no apt, no network, no space.
    """
    return BootLoader(_unpacked("boot-loader", ("grub-pc-bin",), _LOADER_MAKER, progress))


def is_fetched(name: str) -> bool:
    """Whether the cache has it: "toolchain", "debugger" or "boot-loader"."""
    try:
        return _place(name).exists()
    except UserError:  # there can be none for this machine
        return False


def _place(name: str) -> Path:
    return cache_dir() / name / own_suite()


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
