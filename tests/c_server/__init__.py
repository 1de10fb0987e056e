"""A vfio-user server in C (edu.c) that shares nothing with this project: what is said of any server is tried on it."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import Progress, quiet
from vfio_user.harness.toolchain import c_compiler

SOURCE = Path(__file__).with_name("edu.c")
FLAGS = ("-O2", "-g", "-Wall", "-Wextra", "-Werror", "-std=gnu11")


def c_server(*defined: str, progress: Progress = quiet) -> Path:
    """The program, compiled into the cache when it is not there yet; `defined` are faults of it, as STALE=50 (edu.c).

    Raises:
        UserError: there is no compiler to be had.
    """
    flags = [*FLAGS, *(f"-D{each}" for each in defined)]
    digest = hashlib.sha256(repr((SOURCE.read_text(), flags, platform.machine())).encode()).hexdigest()[:16]
    home = cache_dir() / "c-server" / digest
    with locked("c-server"):
        if not home.exists():
            compiler = c_compiler(progress=progress)
            with publish(home) as making:
                compiler.compile([*flags, "-o", "edu", str(SOURCE)], making)
    return home / "edu"
