"""How each bound of vhost-user's is tried: rows of `tests/test_bounds.py`."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.vhost_kit import ALL, USER, Guest, PackedDriver, SplitDriver
from vhost_user.backend.misses import Misses
from vhost_user.frontend import BackEndError, device_state
from vhost_user.memory import Iotlb, MemoryTable
from vhost_user.memory.iotlb import IotlbMiss
from vhost_user.rings import BrokenRing
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Permission, Region


def translations(bound: int, folder: Path) -> None:
    table = MemoryTable()
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 20)
    table.set([Region(0, 1 << 20, USER, 0)], [fd])
    os.close(fd)
    iotlb = Iotlb(table)
    for page in range(5 * bound):
        iotlb.handle(IotlbMessage(page << 12, 0x1000, USER + (page << 12), Permission.READ, IotlbType.UPDATE))
        assert len(iotlb) <= bound
        assert iotlb.translate(page << 12, 1, Permission.READ) == [(page << 12, 1)]
    with pytest.raises(IotlbMiss):
        iotlb.translate(0, 1, Permission.READ)
    table.clear()


class Missing:
    """A ring that waits for translations."""

    pending = False
    broken = ""

    def break_down(self, why: str) -> None:
        self.broken = why


def answers_without_a_translation(bound: int, folder: Path) -> None:
    """Of one address: a request may need many."""
    asked: list[IotlbMessage] = []
    misses, ring = Misses(lambda wanted, answered: asked.append(wanted)), Missing()

    def miss(page: int) -> None:
        misses.wait(ring, IotlbMiss(page << 12, Permission.READ))
        misses.updated(IotlbMessage(page << 12, 0x1000, 0, Permission.READ, IotlbType.UPDATE))

    for page in range(5 * bound):
        miss(page)
    assert (len(asked), ring.broken) == (5 * bound, "")
    for _ in range(bound - 1):
        miss(5 * bound - 1)
    assert (len(asked), ring.broken) == (6 * bound - 1, "")
    miss(5 * bound - 1)
    assert (len(asked), bool(ring.broken)) == (6 * bound - 1, True)


def indirect_table(bound: int, folder: Path) -> None:
    with Guest() as guest:
        driver = SplitDriver(guest, 4, ALL)
        ring = driver.ring()
        driver.request(writable=[1] * (bound - 1), indirect=True)
        assert ring.pop() is not None
        driver.request(writable=[1] * bound, indirect=True)
        with pytest.raises(BrokenRing):
            ring.pop()


def state_of_a_back_end(bound: int, folder: Path) -> None:
    def save(size: int) -> bytes:
        (folder / "state").write_bytes(bytes(size))
        fd = os.open(folder / "state", os.O_RDONLY)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(device_state, "_begin", lambda *_: fd)
            monkeypatch.setattr(device_state, "_check", lambda _: None)
            try:
                return device_state.save(SimpleNamespace(timeout=1.0))  # type: ignore[arg-type]
            finally:
                os.close(fd)

    assert len(save(bound)) == bound
    with pytest.raises(BackEndError):
        save(bound + 1)


def descriptors_of_a_ring(bound: int, folder: Path) -> None:
    with Guest() as guest, pytest.MonkeyPatch.context() as monkeypatch:
        for module in ("split", "packed"):
            monkeypatch.setattr(f"vhost_user.rings.{module}.MAX_SIZE", bound)
        for kind in (SplitDriver, PackedDriver):
            assert kind(guest, bound).ring() is not None
            with pytest.raises(BrokenRing):
                kind(guest, 2 * bound).ring()
