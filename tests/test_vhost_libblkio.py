"""libblkio drives our disk: a front-end in Rust that asks for an answer to everything, and ends without a word.

`scripts/test provisioning`: it comes from the machine's Debian mirror.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.libblkio import Blkio
from tests.vhost.said import listening
from userdev_servers.blk import Blk
from userdev_servers.blk.requests import MAX_SEGMENT
from userdev_servers.blk.spec import SECTOR
from vfio_user.harness.debian import DebianArchive
from vfio_user.harness.vhost_user_peers import STABLE
from vhost_user.backend import Server

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

SIZE = 1 << 20


@pytest.fixture(scope="module")
def library() -> Iterator[Path]:
    archive = DebianArchive(STABLE)  # the first with it; it needs no newer C library than that of bookworm
    with tempfile.TemporaryDirectory(prefix="libblkio-") as folder:
        debs = [deb for deb in archive.fetch(["libblkio1"]) if deb.name.startswith("libblkio1_")]
        archive.unpack(debs, Path(folder))
        (found,) = Path(folder).glob("usr/lib/*/libblkio.so.1")
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    disk = Blk(image=f"{tmp_path}/image:{SIZE}", queues=4)
    with Server(disk, f"unix:{tmp_path}/s") as server:
        yield server
    disk.close()


@contextmanager
def connected(library: Path, tmp_path: Path) -> Iterator[Blkio]:
    blkio = Blkio(library, tmp_path / "s")
    try:
        yield blkio
    finally:
        blkio.close()


@pytest.mark.parametrize("queues", [1, 4])
def test_it_finds_what_it_wrote_and_the_image_has_it(
    library: Path, server: Server, tmp_path: Path, queues: int
) -> None:
    data = os.urandom(64 << 10)
    with connected(library, tmp_path) as blkio:
        assert (blkio.get("capacity"), blkio.get("max-queues")) == (str(SIZE), "4")
        blkio.set("num-queues", queues)
        blkio.set("queue-size", 64)
        blkio.start(len(data))
        for queue in range(queues):
            assert blkio.write(4096 * (queue + 1), data, queue) == 0
            assert blkio.read(4096 * (queue + 1), len(data), queue) == data
        assert blkio.flush() == 0
        blkio.unmap()
    assert (tmp_path / "image").read_bytes()[4096 * queues :][: len(data)] == data


@pytest.mark.parametrize("queue", [0, 3])
def test_it_discards_and_writes_zeroes_on_any_queue(library: Path, server: Server, tmp_path: Path, queue: int) -> None:
    data, image = os.urandom(64 << 10), tmp_path / "image"
    with connected(library, tmp_path) as blkio:
        blkio.set("num-queues", 4)
        blkio.start(len(data))
        assert int(blkio.get("max-discard-len")) == int(blkio.get("max-write-zeroes-len")) == MAX_SEGMENT * SECTOR
        assert int(blkio.get("discard-alignment")) == 4096
        assert blkio.write(0, data, queue) == 0
        assert blkio.flush(queue) == 0
        place = image.stat().st_blocks
        assert blkio.write_zeroes(0, 4096, queue, unmap=False) == 0
        assert image.stat().st_blocks == place
        assert blkio.write_zeroes(8192, 4096, queue) == 0
        assert blkio.discard(16384, 8192, queue) == 0
        assert image.stat().st_blocks < place
        expected = bytearray(data)
        for first, size in ((0, 4096), (8192, 4096), (16384, 8192)):
            expected[first : first + size] = bytes(size)
        assert blkio.read(0, len(data), queue) == expected
        assert blkio.discard(SIZE, 4096, queue) < 0


def test_it_comes_and_goes(library: Path, server: Server, tmp_path: Path) -> None:
    for turn in range(5):
        with connected(library, tmp_path) as blkio:
            blkio.start(4096)
            assert blkio.read(0, 512) == bytes([turn]) * 512
            assert blkio.write(0, bytes([turn + 1]) * 512) == 0


def test_a_read_only_disk_is_not_taken_for_one_to_write(library: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    disk = Blk(image=f"{image}:ro")
    with (
        Server(disk, f"unix:{tmp_path}/s"),
        connected(library, tmp_path) as blkio,
        pytest.raises(OSError, match="read-only"),
    ):
        blkio.start(4096)
    disk.close()


def test_it_does_what_we_are_ready_for(library: Path, server: Server, tmp_path: Path) -> None:
    """What tests/vhost/test_peers.py says of it is so."""
    with listening() as heard:
        with connected(library, tmp_path) as blkio:
            assert {blkio.get("capacity") for _ in range(2)} == {str(SIZE)}
            blkio.start(4096)
            blkio.unmap()
        server.close()  # once it has heard of the end
    order = heard.names
    assert order.index("SET_FEATURES") < order.index("GET_PROTOCOL_FEATURES")
    assert order.index("SET_VRING_KICK") < order.index("SET_VRING_CALL")
    asking = {each.name for each in heard if each.needs_reply}
    assert {"GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS", "GET_CONFIG"} <= asking
    assert [each.value.size for each in heard if each.name == "GET_CONFIG"][:2] == [60, 60]
    ring = next(each.value for each in heard if each.name == "ADD_MEM_REG")
    assert ring.guest_address == ring.user_address
    assert ring.size % 4096
    assert [each.fds for each in heard if each.name == "REM_MEM_REG"] == [1]
    assert order[-1] == "REM_MEM_REG"  # the end comes without a word
