"""Device-specific regions, declared."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExtraRegion:
    """A device-specific region, index 9 and above without gaps. Registers and memory name it as their `bar`.

    type: (type, subtype) that tells the client what it is.
    """

    index: int
    size: int
    type: tuple[int, int] | None = None
