"""How many descriptors this process has, for tests of what leaves none behind."""

from __future__ import annotations

import gc
from pathlib import Path


def fd_count(*, collect: bool = False) -> int:
    """Open descriptors, the one that looks among them; `collect`: without what is kept by frames and circles only."""
    if collect:
        gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
