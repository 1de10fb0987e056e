"""User namespaces, which the kernel refuses to ordinary users of Ubuntu since 24.04, and to anybody in a container."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest


def skip_where_refused(what: str) -> None:
    """Skip a test of what makes a user namespace, where none can be made."""
    alone = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    if subprocess.run(alone, capture_output=True, check=False).returncode:
        pytest.skip(f"{what} is in a user namespace of its own, which is refused here")


def in_root(root: Path) -> list[str]:
    """Begin a command for which this folder is the root: only root needs no user namespace for that."""
    if os.geteuid() == 0:
        return ["unshare", f"--root={root}"]
    skip_where_refused(f"a program whose root is {root.name}")
    return ["unshare", "--map-root-user", f"--root={root}"]
