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

    def __post_init__(self) -> None:
        """Compare the type with what GET_REGION_INFO has room for.

        Raises:
            ValueError: it is no pair of numbers of 32 bits.
        """
        if self.type is not None and not _is_pair(self.type):
            raise ValueError(f"type is {self.type!r}: it has to be (type, subtype), numbers of 32 bits")


def _is_pair(said: object) -> bool:
    return (
        isinstance(said, tuple) and len(said) == 2 and all(isinstance(each, int) and each >> 32 == 0 for each in said)
    )
