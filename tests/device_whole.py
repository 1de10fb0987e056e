"""All of a device that a guest, or a migration, can tell; and a guest that has gone wild with it."""

from __future__ import annotations

import contextlib
import random

from tests.device_kit import CONFIG
from vfio_user import PciDevice, ProtocolError
from vfio_user.device import function_of
from vfio_user.testing import find_capability
from vfio_user.wire.constants import RegionFlags

PAGE = 4096
POWER_MANAGEMENT, EXPRESS = 0x01, 0x10


def whole(device: PciDevice) -> dict[str, object]:
    """All that a guest could tell this device by, with the bytes of its regions as it reads them."""
    function = function_of(device)
    found: dict[str, object] = {"state": function.save_state(), "active": device.interrupts.active}
    found["pending"] = device.interrupts.pending
    for region in function.regions:
        if region.size and region.flags & RegionFlags.READ and region.index in (6, CONFIG):
            found[f"region {region.index}"] = function.region_read(region.index, 0, region.size)
    for memory in function.memories():
        found[f"memory {memory.name}"] = bytes(memory.view)
    return found


def scribble(device: PciDevice, seed: int) -> None:
    """Write whatever into every place that takes it, as a guest that has gone wild, but ask for no reset."""
    noise = random.Random(seed)
    function = function_of(device)
    resets = {find_capability(device, id) + at for id, at in ((EXPRESS, 8), (POWER_MANAGEMENT, 4)) if has(device, id)}
    for bar, offset, width in function.writers:
        with contextlib.suppress(ProtocolError):  # DMA to nowhere
            function.region_write(bar, offset, noise.randbytes(width))
    for region in [info for info in function.regions if info.flags & RegionFlags.WRITE]:
        for _ in range(60):
            width = noise.choice((1, 2, 4))
            offset = noise.randrange(region.size // width) * width
            if region.index == CONFIG and resets & set(range(offset - 1, offset + width)):
                continue
            with contextlib.suppress(ProtocolError):  # a width, or a place, that the device does not have
                function.region_write(region.index, offset, noise.randbytes(width))
    for memory in function.memories():
        memory.view[:: PAGE // 2] = noise.randbytes(len(memory.view[:: PAGE // 2]))


def has(device: PciDevice, id: int) -> bool:
    try:
        find_capability(device, id)
    except LookupError:
        return False
    return True
