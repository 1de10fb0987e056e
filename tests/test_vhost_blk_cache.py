"""A driver that has chosen write-through is kept to it by whoever serves its disk next, which nobody tells."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, R, V
from userdev_servers.blk import Blk
from userdev_servers.blk.spec import HEADER, SECTOR, Feature, RequestType
from vhost_user.backend import Server
from vhost_user.frontend import Refused
from vhost_user.wire.payloads import Config

WRITE = HEADER.pack(RequestType.OUT, 0) + bytes(SECTOR)
CHOOSES = FEATURES | V(int(Feature.FLUSH | Feature.CONFIG_WCE))
THROUGH, BACK = b"\0", b"\1"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(64 * SECTOR))
    return path


@contextmanager
def served(image: Path, queues: int = 16) -> Iterator[tuple[Blk, FrontEnd]]:
    """A server of the disk, and a front-end that has agreed on what its driver chose: nothing else is said of that."""
    disk = Blk(image=str(image), queues=queues)
    address = image.with_suffix(".socket")
    try:
        with Server(disk, f"unix:{address}"), FrontEnd(str(address)) as front_end:
            front_end.negotiate(CHOOSES, PROTOCOL | P.CONFIG | P.DEVICE_STATE)
            front_end.share_memory()
            yield disk, front_end
    finally:
        disk.close()


def choose(front_end: FrontEnd, cache: bytes) -> None:
    front_end.do(R.SET_CONFIG, Config(32, 1, 0, cache))


def cache(front_end: FrontEnd) -> bytes:
    data: bytes = front_end.ask(R.GET_CONFIG, Config(32, 1, 0, bytes(1))).data
    return data


@pytest.mark.pure
def test_the_next_server_keeps_each_write_as_the_one_before_did(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(image) as (_, front_end):
        choose(front_end, THROUGH)
    with served(image) as (disk, front_end):
        kept: list[bool] = []
        monkeypatch.setattr(disk.backing, "write_back", lambda: kept.append(True))
        with closing(front_end.queue()) as ring:
            ring.start()
            assert ring.exchange(WRITE, 1).writable == b"\0"
        assert kept
        assert cache(front_end) == THROUGH


def test_a_driver_that_has_chosen_write_back_again_has_it_with_the_next_server(image: Path) -> None:
    with served(image) as (_, front_end):
        choose(front_end, THROUGH)
        choose(front_end, BACK)
    with served(image) as (disk, front_end):
        assert (disk.disk.write_back, cache(front_end)) == (True, BACK)


def test_a_server_that_was_there_before_the_choice_takes_it_over_with_the_image(image: Path) -> None:
    """As the destination of a migration is, whose own front-end was told write-back."""
    with served(image) as (source, front_end), served_beside(image) as destination, closing(front_end.queue()) as ring:
        ring.start()
        choose(front_end, THROUGH)
        ring.stop()
        assert source.running == set()
        destination.on_start(0)
        assert (destination.writeback, destination.disk.write_back) == (0, False)
        destination.on_stop(0)


def test_a_front_end_that_was_there_before_the_choice_is_told_of_it(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: with the next choice that is another."""
    with served(image) as (source, front_end), served_beside(image) as destination, closing(front_end.queue()) as ring:
        told: list[int] = []
        monkeypatch.setattr(destination, "config_changed", lambda: told.append(destination.writeback))
        for chosen in (THROUGH, THROUGH, BACK):
            ring.start()
            choose(front_end, chosen)
            ring.stop()
            destination.on_start(0)
            destination.on_stop(0)
        assert told == [0, 1]
        assert source.running == set()


@contextmanager
def served_beside(image: Path) -> Iterator[Blk]:
    disk = Blk(image=str(image))
    disk.on_features(int(CHOOSES))
    try:
        yield disk
    finally:
        disk.close()


def test_after_a_reset_writes_are_kept_as_configuration_says(image: Path) -> None:
    """Whatever the driver had chosen before, and whether or not its front-end says its features again."""
    with served(image) as (disk, front_end):
        for chosen in (THROUGH, BACK, THROUGH):
            choose(front_end, chosen)
            assert disk.disk.write_back == (chosen == BACK)
            front_end.do(R.RESET_DEVICE)
            assert (cache(front_end), disk.disk.write_back) == (BACK, True), chosen


def test_people_are_told_where_an_image_cannot_be_marked(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(os, "setxattr", refuse)
    with served(image) as (disk, front_end):
        choose(front_end, THROUGH)
        assert not disk.disk.write_back
    assert "a server after this one will not know" in caplog.text


def test_an_image_that_is_only_read_is_not_marked(image: Path) -> None:
    with served(Path(f"{image}:ro")) as (_, front_end):
        choose(front_end, THROUGH)
    assert os.listxattr(image) == []


def test_a_disk_that_takes_the_state_of_another_keeps_each_write_as_that_did(image: Path, tmp_path: Path) -> None:
    """A copy of the image has no mark; and the next server knows of the choice all the same."""
    copy = tmp_path / "copy"
    copy.write_bytes(image.read_bytes())
    with served(image) as (_, front_end):
        choose(front_end, THROUGH)
        state = front_end.save_state()
    with served(copy) as (disk, front_end):
        front_end.load_state(state)
        assert cache(front_end) == THROUGH
        assert not disk.disk.write_back
    with served(copy) as (disk, _):
        assert not disk.disk.write_back


def test_a_disk_takes_no_state_of_one_that_it_has_no_room_for(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with served(image) as (_, front_end):
        state = front_end.save_state()
    for sectors, queues in ((63, 16), (64, 15), (64, 16), (65, 16)):
        other.write_bytes(bytes(sectors * SECTOR))
        with served(other, queues) as (disk, front_end):
            if sectors >= 64 and queues >= 16:
                front_end.load_state(state)
            else:
                with pytest.raises(Refused):
                    front_end.load_state(state)
            assert (disk.capacity, disk.num_queues) == (sectors, queues)
