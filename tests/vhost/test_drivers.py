"""The driver's side of rings, with what real devices write there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vhost_user.frontend import GuestMemory
from vhost_user.frontend.driver import Descriptor
from vhost_user.frontend.packed import PackedDriver
from vhost_user.rings.packed import BOTH
from vhost_user.rings.ring import DESCRIPTOR, WRITE
from vhost_user.wire import VirtioFeature


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.close()


@pytest.mark.parametrize(("flags", "written"), [(0, 0), (WRITE, 12)], ids=["read", "written"])
def test_a_packed_ring_says_how_much_was_written_only_of_what_was(
    memory: GuestMemory, flags: int, written: int
) -> None:
    """DPDK 24.11.8, net_vhost: the length of what was read stays; it is reserved (virtio 1.3, "Packed Virtqueues")."""
    at = memory.allocate(PackedDriver.room(8))
    driver = PackedDriver(memory, at, 8, VirtioFeature.VERSION_1 | VirtioFeature.RING_PACKED)
    known_by = driver.put([Descriptor(0x1000, 12, flags), Descriptor(0x2000, 60, flags)])
    memory[at : at + 16] = DESCRIPTOR.pack(0x1000, 12, known_by, BOTH | flags)
    assert list(driver.take_used()) == [(known_by, written)]
    driver.close()
