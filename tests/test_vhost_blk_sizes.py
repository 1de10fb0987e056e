"""The size of the disk behind vhost-user: given another, and kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_vhost_blk import DATA, IN, OUT, SIZE, Blk_of, header, request
from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, Queue, R
from userdev.control import ControlClient, ControlError
from userdev_servers.blk import Blk
from userdev_servers.blk.spec import SECTOR, Status
from vhost_user.backend import Server
from vhost_user.frontend.channel import Channel
from vhost_user.wire import BackEndRequest
from vhost_user.wire.payloads import Config


@dataclass
class Resized:
    """A disk with a control socket, and its driver."""

    image: Path
    control: ControlClient
    front_end: FrontEnd
    channel: Channel
    ring: Queue

    def capacity(self) -> int:
        """What the driver reads once it is told to."""
        assert self.channel.next().request is BackEndRequest.CONFIG_CHANGE_MSG
        return int.from_bytes(self.front_end.ask(R.GET_CONFIG, Config(0, 8, 0, bytes(8))).data, "little")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def resized(image: Path, tmp_path: Path) -> Iterator[Resized]:
    disk = Blk(image=str(image), control=f"{tmp_path}/control")
    with (
        Server(disk, f"unix:{tmp_path}/z") as server,
        ControlClient(tmp_path / "control") as control,
        FrontEnd(str(server.listener.address)) as front_end,
    ):
        front_end.negotiate(FEATURES, PROTOCOL | P.CONFIG | P.BACKEND_REQ)
        front_end.share_memory()
        channel = front_end.open_channel()
        ring = front_end.queue()
        ring.start()
        yield Resized(image, control, front_end, channel, ring)
        ring.close()
    disk.close()


def test_a_disk_that_is_given_another_size_has_it_and_its_driver_is_told(resized: Resized) -> None:
    assert request(resized.ring, header(OUT, 64), DATA, 1)[1] == Status.IOERR
    assert resized.control.call("resize", size="64K") == {"size": 64 << 10}
    assert resized.capacity() == 128
    assert request(resized.ring, header(OUT, 126), DATA, 1)[1] == Status.OK
    assert resized.image.stat().st_size == 64 << 10
    assert resized.control.call("resize", size=str(16 * SECTOR)) == {"size": 16 * SECTOR}
    assert resized.capacity() == 16
    assert request(resized.ring, header(IN, 16), SECTOR, 1)[1] == Status.IOERR
    assert resized.image.stat().st_size == 64 << 10


def test_an_image_that_somebody_made_larger_is_looked_at_when_that_is_said(resized: Resized) -> None:
    os.truncate(resized.image, 100 * SECTOR)
    assert request(resized.ring, header(IN, 99), SECTOR, 1)[1] == Status.IOERR
    assert resized.control.call("resize") == {"size": 100 * SECTOR}
    assert resized.capacity() == 100
    assert request(resized.ring, header(IN, 99), SECTOR, 1)[1] == Status.OK
    assert resized.control.call("image") == {
        "image": str(resized.image),
        "size": 100 * SECTOR,
        "read_only": False,
        "in_use": True,
        "failure": None,
    }


@pytest.mark.parametrize("size", ["1000", "0", "many", "9223372036854775807"])
def test_a_size_that_cannot_be_is_refused_and_nothing_changes(resized: Resized, size: str) -> None:
    with pytest.raises(ControlError):
        resized.control.call("resize", size=size)
    assert resized.control.call("image")["size"] == SIZE
    assert resized.image.stat().st_size == SIZE


def test_an_image_that_was_cut_has_no_other_size(resized: Resized) -> None:
    os.truncate(resized.image, 8 * SECTOR)
    with pytest.raises(ControlError, match="cut"):
        resized.control.call("resize")
    with pytest.raises(ControlError, match="cut"):
        resized.control.call("resize", size="64K")
    assert "cut" in resized.control.call("image")["failure"]


def test_an_image_that_was_handed_over_has_no_other_size_by_who_had_it(resized: Resized) -> None:
    resized.ring.stop()
    for size in ("64K", str(8 * SECTOR)):
        with pytest.raises(ControlError, match="not this server's"):
            resized.control.call("resize", size=size)
        assert resized.control.call("image")["size"] == SIZE
    assert resized.image.stat().st_size == SIZE
    resized.ring.start()
    assert resized.control.call("resize", size="64K") == {"size": 64 << 10}


def test_an_image_that_another_has_made_larger_meanwhile_is_so_when_it_is_taken_over(resized: Resized) -> None:
    resized.ring.stop()
    with Blk_of(resized.image) as other:
        other.on_start(0)
        other.resize(100 * SECTOR)
        other.on_stop(0)
    resized.ring.start()
    assert resized.capacity() == 100


def test_a_disk_keeps_the_size_that_it_was_given_when_its_queues_stop_and_start(resized: Resized) -> None:
    """As a guest's reset has them do, and its firmware: the image is longer. Until another makes that longer still."""
    for size in (64 << 10, 16 * SECTOR):
        resized.control.call("resize", size=str(size))
        assert resized.capacity() == size // SECTOR
        resized.ring.stop()
        resized.ring.start()
        assert resized.control.call("image")["size"] == size
    resized.ring.stop()
    os.truncate(resized.image, 128 << 10)
    resized.ring.start()
    assert resized.control.call("image")["size"] == 128 << 10


def test_a_disk_of_a_part_of_its_image_stays_that_part(image: Path) -> None:
    with Blk_of(Path(f"{image}:{8 * SECTOR}")) as disk:
        for _ in range(2):
            disk.on_start(0)
            disk.on_stop(0)
        assert disk.capacity == 8
