"""DPDK's virtio_user drives our network card: as a client, and where it is virtio_user that listens.

`scripts/test provisioning`: it comes from the machine's Debian mirror.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.test_station import STATION, arp, icmp, ipv4
from tests.virtio_user import VirtioUser
from userdev_servers.net import Net
from vfio_user.harness.vhost_user_peers import InstalledPeer, install_peer
from vhost_user.backend import Server

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

PINGS = [ipv4(icmp(data=bytes(place + size & 0xFF for place in range(size)))) for size in [0, 1000, 56, 1472] * 100]
AT_ONCE = 40
"""Fewer than a ring holds: testpmd drops what has no place there."""


@pytest.fixture(scope="module")
def testpmd() -> InstalledPeer:
    return install_peer("dpdk-virtio-user")


@contextmanager
def card(tmp_path: Path) -> Iterator[Net]:
    device = Net()
    with Server(device, f"unix:{tmp_path}/s"):
        yield device
    device.close()


def answered(front_end: VirtioUser, frames: list[bytes]) -> bool:
    """Whether it receives the answer to each of the frames that it sends, in order, and nothing else."""
    before = len(front_end.received())
    for frame in frames:
        front_end.send(frame)
    return front_end.wait_received(before + len(frames))[before:] == [STATION.answer(frame) for frame in frames]


def test_all_that_it_sends_is_answered(testpmd: InstalledPeer, tmp_path: Path) -> None:
    with card(tmp_path) as device, VirtioUser(testpmd, tmp_path / "s", tmp_path) as front_end:
        assert answered(front_end, [arp()])
        for first in range(0, len(PINGS), AT_ONCE):
            assert answered(front_end, PINGS[first : first + AT_ONCE])
        assert device.counts == {"transmitted": 1 + len(PINGS), "received": 1 + len(PINGS)}


def test_it_comes_again(testpmd: InstalledPeer, tmp_path: Path) -> None:
    """It ends with ENABLE 0 and GET_VRING_BASE of each ring."""
    with card(tmp_path):
        for turn in range(2):
            folder = tmp_path / str(turn)
            folder.mkdir()
            with VirtioUser(testpmd, tmp_path / "s", folder) as front_end:
                assert answered(front_end, [arp()])
                assert front_end.close() == 0
