"""How much longer to wait: every wait of the harness has a deadline, and every deadline grows with the accelerator."""

from __future__ import annotations

import os
from typing import Literal

from userdev.errors import UserError

Accelerator = Literal["kvm", "tcg"]

# A guest under TCG computes 5 to 20 times slower than under KVM; most of its waits are not computing.
_SLOWNESS: dict[Accelerator, float] = {"kvm": 1.0, "tcg": 4.0}

SCALE_VARIABLE = "VFIO_USER_TIMEOUT_SCALE"


def patience(accelerator: Accelerator) -> float:
    """The factor for deadlines of work done inside a guest; VFIO_USER_TIMEOUT_SCALE multiplies it."""
    return _SLOWNESS[accelerator] * _scale()


def waited(seconds: float, patience: float) -> str:
    """How long a wait for a guest was that had so many seconds under KVM, and by what they were multiplied."""
    if patience == 1:
        return f"{seconds:g} s"
    scale = _scale()
    slowness = patience / scale
    why = [f"{slowness:g} as there is no KVM"] * (slowness != 1) + [f"{scale:g} by {SCALE_VARIABLE}"] * (scale != 1)
    return f"{seconds * patience:g} s ({seconds:g} s, times {', times '.join(why)})"


def _scale() -> float:
    text = os.environ.get(SCALE_VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1e6:
        raise UserError(f"{SCALE_VARIABLE} is {text!r}, not a positive number", hint="3 waits three times as long")
    return factor
