"""A vfio-user server in C that shares nothing with this project: what is said of any server is tried on it."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import Progress, quiet
from vfio_user.harness.toolchain import c_compiler

SOURCES = tuple(Path(__file__).with_name(name) for name in ("edu.c", "proposal.c"))
FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11")


def c_server(*defined: str, progress: Progress = quiet) -> Path:
    """The program, compiled into the cache when it is not there yet; `defined` are faults of it, as STALE=50 (edu.c).

    Raises:
        UserError: there is no compiler to be had.
    """
    flags = [*FLAGS, *(f"-D{each}" for each in defined)]
    read = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.[ch]"))]
    digest = hashlib.sha256(repr((read, flags, platform.machine())).encode()).hexdigest()[:16]
    home = cache_dir() / "c-server" / digest
    with locked("c-server"):
        if not home.exists():
            compiler = c_compiler(progress=progress)
            with publish(home) as making:
                compiler.compile([*flags, "-o", "edu", *map(str, SOURCES)], making)
    return home / "edu"
