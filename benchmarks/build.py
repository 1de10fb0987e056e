"""Which build of ours is measured: Python, or that of `VFIO_USER_COMPILED=1` (setup.py)."""

from __future__ import annotations

import subprocess
import sys

from vhost_user.rings import split

_ASK = "from vhost_user.rings import split; print(split.__file__)"


def of_this_process() -> str:
    """The build that a benchmark has loaded itself."""
    return _named(split.__file__)


def of_servers() -> str:
    """That of `python -P -m vhost_user serve`, which looks for no packages in the current folder."""
    return _named(subprocess.run([sys.executable, "-P", "-c", _ASK], capture_output=True, text=True, check=True).stdout)


def _named(file: str) -> str:
    return "Python" if file.strip().endswith(".py") else "compiled"
