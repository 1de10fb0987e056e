"""SHA-256 of what a run is made of: programs, files, this package's sources."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import vfio_user


def file_digest(path: Path) -> str:
    """Of a file; "" of what cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@functools.cache
def sources_digest() -> str:
    """Of this package's sources, for those who run a checkout: as they were when it was first asked, nearer to what
    this process has imported than what is edited while a soak runs.
    """
    root = Path(vfio_user.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
