"""This checkout, for programs that tests start elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent


def modules() -> str:
    """A PYTHONPATH with the checkout behind what there is: a bug that is planted there stays so (`seeded_bugs`)."""
    return os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
