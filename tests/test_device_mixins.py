"""What a device declares by a mixin, or by a function elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cases import for_each_row
from userdev.errors import DeclarationError
from vfio_user import (
    PciDevice,
    PciIds,
    state,
    stored_register,
)
from vfio_user.device import function_of


class Counting:
    """Declarations for several devices."""

    count: int = state(0)

    scratch: int = stored_register(bar=0, offset=0x40, width=4)


class Digesting:
    digest: int = state(0)


class Closing:
    def close(self, channel: int) -> None:
        """Something else than a device's."""


def test_what_a_mixin_declares_is_the_devices() -> None:
    class Counter(Counting, PciDevice):
        ids = PciIds(1, 2)

    device = Counter()
    device.scratch = 3
    assert function_of(device).region_read(0, 0x40, 4) == b"\3\0\0\0"
    assert "count" in function_of(device).digests()


@for_each_row([(*row, first) for row in [(Digesting, "digest"), (Closing, "close")] for first in [True, False]])
def test_a_mixin_is_looked_at_too(mixin: type, name: str, first: bool) -> None:
    bases = (mixin, PciDevice) if first else (PciDevice, mixin)
    with pytest.raises(DeclarationError, match=rf"^D\.{name} "):
        type("D", bases, {"ids": PciIds(1, 2)})


def test_declarations_made_elsewhere_are_found_too() -> None:
    def speed() -> int:
        return stored_register(bar=0, offset=4, width=4, default=9)

    device: Any = type("Made", (PciDevice,), {"ids": PciIds(1, 2), "speed": speed()})()
    assert device.speed == 9
