"""DPDK's virtio_user drives our network card: as a client, and where it is virtio_user that listens.

`scripts/test provisioning`: it comes from the machine's Debian mirror.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.test_station import STATION, arp, icmp, ipv4
from tests.vhost.said import Heard, Said, listening
from tests.vhost_peers import NEWER
from tests.virtio_user import PATIENCE, VirtioUser
from userdev.process import Child, await_listening, await_text
from userdev.transport import Dialer
from userdev_servers.net import Net
from vfio_user.harness.vhost_user_peers import InstalledPeer, install_peer
from vhost_user.backend import Server
from vhost_user.backend.withheld import Withheld
from vhost_user.wire import DeviceStatus, VirtioFeature

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

PINGS = [ipv4(icmp(data=bytes(place + size & 0xFF for place in range(size)))) for size in (0, 1000, 56, 1472)] * 100
AT_ONCE = 40
"""Fewer than a ring holds: testpmd drops what has no place there."""

RINGS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture(scope="module", params=[None, pytest.param(NEWER, id="newer", marks=pytest.mark.nightly)])
def testpmd(request: pytest.FixtureRequest) -> InstalledPeer:
    return install_peer("dpdk-virtio-user", suites=request.param)


@contextmanager
def card(tmp_path: Path, *withheld: str) -> Iterator[Net]:
    """A card that does not offer these features."""
    device = Net()
    with Server(device, f"unix:{tmp_path}/s", withheld=Withheld.of(withheld)):
        yield device
    device.close()


def is_driver_ok(said: Said) -> bool:
    return said.name == "SET_STATUS" and bool(said.value & DeviceStatus.DRIVER_OK)


def answered(front_end: VirtioUser, frames: list[bytes]) -> bool:
    """Whether it receives the answer to each of the frames that it sends, in order, and nothing else."""
    before = len(front_end.received())
    for frame in frames:
        front_end.send(frame)
    return front_end.wait_received(before + len(frames))[before:] == [STATION.answer(frame) for frame in frames]


def comes_to_answers(front_end: VirtioUser, tries: int = 20) -> bool:
    """Whether it receives the answer to a frame that it sends, whatever comes before."""
    answer = STATION.answer(arp())
    for _ in range(tries):
        before = len(front_end.received())
        front_end.send(arp())
        with suppress(AssertionError):
            if front_end.wait_received(before + 1, 3.0)[-1] == answer:
                return True
    return False


@RINGS
def test_all_that_it_sends_is_answered(testpmd: InstalledPeer, tmp_path: Path, packed: bool) -> None:
    with card(tmp_path) as device, VirtioUser(testpmd, tmp_path / "s", tmp_path, packed=packed) as front_end:
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


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["split", "packed"])
def test_where_it_listens_it_goes_on_with_one_back_end_after_the_other(
    testpmd: InstalledPeer, tmp_path: Path, packed: bool
) -> None:
    """It begins with the end of its rings, as if that were the back-end which has gone.

    Packed ones it makes anew beside the thread that polls them, to which it gives 1 ms to notice (DPDK's
    drivers/net/virtio, virtio_user_reset_queues_packed). What that thread has in hand meanwhile is lost, or is no frame
    of ours where it had no core for so long, as was seen once of 24.11.8: so what comes first is not looked at there,
    and all that is sent once an answer has come is.
    """
    path = tmp_path / "s"
    device = Net()
    with VirtioUser(testpmd, path, tmp_path, serving=True, packed=packed) as front_end:
        assert await_listening(path, front_end.child.end, PATIENCE), front_end.child.last_words()
        for turn in range(4):
            with listening() as heard, Server(device, Dialer(str(path), PATIENCE)):
                assert heard.wait(is_driver_ok, PATIENCE)
                assert comes_to_answers(front_end) if packed else answered(front_end, [arp()])
                assert answered(front_end, PINGS[:AT_ONCE])
            begins = ["SET_VRING_ENABLE"] * 2 + ["GET_VRING_BASE"] * 2 if turn else ["SET_OWNER", "GET_FEATURES"]
            assert heard.names[: len(begins)] == begins
    device.close()


@contextmanager
def program(socket: Path, folder: Path) -> Iterator[Child]:
    """The card as a program that connects to its front-end, as often as that comes."""
    served = ["serve", "net", "--client", "--socket-path", str(socket), "--reconnect", str(PATIENCE)]
    child = Child("net", [sys.executable, "-m", "vhost_user", *served], log=folder / "net.log")
    try:
        yield child
    finally:
        child.stop()


def test_a_program_that_connects_outlives_who_listens_and_may_be_killed(testpmd: InstalledPeer, tmp_path: Path) -> None:
    path = tmp_path / "s"
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    with program(path, folders[0]) as card:
        with VirtioUser(testpmd, path, folders[0], serving=True) as front_end:
            assert answered(front_end, [arp()])
        with VirtioUser(testpmd, path, folders[1], serving=True) as front_end:
            assert answered(front_end, [arp()])
            card.signal(signal.SIGKILL)
            with program(path, folders[1]):
                assert await_text(front_end.child, b"reconnection succeeds", PATIENCE)
                assert answered(front_end, [arp()])


def said(testpmd: InstalledPeer, tmp_path: Path, *withheld: str) -> Heard:
    """All that it says from its beginning to its end to a card that does not offer these features."""
    with (
        listening() as heard,
        card(tmp_path, *withheld),
        VirtioUser(testpmd, tmp_path / "s", tmp_path) as front_end,
    ):
        assert await_text(front_end.child, b"io packet forwarding", PATIENCE), front_end.child.last_words()
        assert front_end.close() == 0
        return heard


def test_it_does_what_we_are_ready_for(testpmd: InstalledPeer, tmp_path: Path) -> None:
    """What tests/vhost/test_peers.py says of it is so."""
    heard = said(testpmd, tmp_path)
    order = heard.names
    assert order.index("SET_VRING_CALL") < order.index("SET_FEATURES") < order.index("SET_MEM_TABLE")
    assert {each.name for each in heard if each.needs_reply} == {"SET_MEM_TABLE", "SET_STATUS"}
    ready = DeviceStatus.ACKNOWLEDGE | DeviceStatus.DRIVER | DeviceStatus.FEATURES_OK
    assert [each.value for each in heard if each.name == "SET_STATUS"] == [ready, ready | DeviceStatus.DRIVER_OK]
    (region,) = next(each.value for each in heard if each.name == "SET_MEM_TABLE")
    assert region.guest_address == region.user_address
    assert order[-4:] == ["SET_VRING_ENABLE"] * 2 + ["GET_VRING_BASE"] * 2
    assert any(each.value.num for each in heard if each.name == "GET_VRING_BASE")  # as it stood before, not 0


def test_it_enables_rings_without_having_agreed_to(testpmd: InstalledPeer, tmp_path: Path) -> None:
    heard = said(testpmd, tmp_path, "PROTOCOL_FEATURES")
    (features,) = (each.value for each in heard if each.name == "SET_FEATURES")
    assert not features & VirtioFeature.PROTOCOL_FEATURES
    assert "SET_VRING_ENABLE" in heard.names


def test_it_agrees_on_nothing_where_the_device_is_older_than_virtio_1(testpmd: InstalledPeer, tmp_path: Path) -> None:
    heard = said(testpmd, tmp_path, "VERSION_1").names
    assert "SET_VRING_KICK" in heard
    assert not {"SET_FEATURES", "SET_VRING_CALL"} & set(heard)
