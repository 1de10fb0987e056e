"""Our front-end on real back-ends: each serves a request of its kind, and in every way that it offers.

`scripts/test provisioning`: they come from the machine's Debian mirror.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from tests.test_station import arp, ipv4
from tests.vhost_peers import BACK_ENDS, NEWER, RunningPeer, of, running_peer
from vfio_user.cli.vhost_probe import command as probe
from vhost_user.frontend import FEATURES, GuestMemory, Queue
from vhost_user.frontend.memory import PAGE
from vhost_user.wire import ProtocolFeature, VirtioFeature

P, V = ProtocolFeature, VirtioFeature

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]

ALL = FEATURES | V.INDIRECT_DESC | V.EVENT_IDX
MERGED = V(1 << 15)


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[RunningPeer]:
    """The back-end that a test is of."""
    with running_peer(*request.param) as running:
        yield running


OFFERS = {
    "qemu-storage-daemon": "MQ|LOG_SHMFD|REPLY_ACK|BACKEND_REQ|CONFIG|BACKEND_SEND_FD|HOST_NOTIFIER"
    "|CONFIGURE_MEM_SLOTS",
    "virtiofsd": "MQ|LOG_SHMFD|REPLY_ACK|BACKEND_REQ|CONFIG|BACKEND_SEND_FD|RESET_DEVICE|CONFIGURE_MEM_SLOTS"
    "|DEVICE_STATE",
    "passt": "LOG_SHMFD|RARP|REPLY_ACK|DEVICE_STATE",
    "vhost-device-vsock": "MQ|REPLY_ACK|CONFIG",
    "dpdk-net-vhost": "MQ|LOG_SHMFD|RARP|REPLY_ACK|MTU|BACKEND_REQ|CRYPTO_SESSION|BACKEND_SEND_FD|HOST_NOTIFIER|STATUS",
}
"""What they offer whoever starts them; PAGEFAULT is for users who may have userfaultfd."""


@of(*BACK_ENDS)
def test_it_offers_what_we_say_that_it_does(peer: RunningPeer) -> None:
    with peer.front_end() as front_end:
        offered = front_end.offered.protocol_features & ~P.PAGEFAULT
        assert "|".join(name.name or "" for name in sorted(offered)) == OFFERS[peer.child.name]
        assert FEATURES in front_end.offered.features


@of(*BACK_ENDS)
def test_a_probe_names_what_it_offers(peer: RunningPeer) -> None:
    told = CliRunner().invoke(probe, [str(peer.socket)])
    assert told.exit_code == 0, told.output
    assert set(OFFERS[peer.child.name].split("|")) | {"VERSION_1"} <= set(told.output.split())


# qemu-storage-daemon

READ, WRITE, FLUSH = 0, 1, 4
SECTOR = 512


def blk(queue: Queue, kind: int, sector: int, *data: bytes | int, indirect: bool = False) -> bytes:
    """Do one request of a disk that is to succeed; what it has read."""
    done = queue.exchange(struct.pack("<IIQ", kind, 0, sector), *data, 1, indirect=indirect)
    assert done.writable[-1] == 0
    return done.writable[:-1]


@of("qemu-storage-daemon")
@pytest.mark.parametrize("as_table", [False, True], ids=["slots", "table"])
def test_a_disk_keeps_what_each_queue_writes(peer: RunningPeer, as_table: bool) -> None:
    with peer.front_end(ALL, memory=GuestMemory(regions=4)) as front_end:
        front_end.share_memory(as_table=as_table)
        image = peer.files / "image"
        capacity = int.from_bytes(front_end.read_config(60)[:8], "little")
        assert (front_end.queue_count(), capacity * SECTOR) == (4, image.stat().st_size)
        queues = [front_end.queue(index) for index in range(4)]
        front_end.start(*queues)
        for queue in queues:
            data = os.urandom(16 * SECTOR)
            sector = 1000 * queue.index
            blk(queue, WRITE, sector, data[:SECTOR], data[SECTOR:], indirect=True)
            blk(queue, FLUSH, 0)
            assert blk(queues[queue.index - 1], READ, sector, SECTOR, 15 * SECTOR) == data
            with image.open("rb") as file:
                file.seek(sector * SECTOR)
                assert file.read(len(data)) == data


@of("qemu-storage-daemon")
def test_a_disk_goes_on_where_it_was_stopped(peer: RunningPeer) -> None:
    """Its queues at the same time, and for another front-end."""
    for turn in range(2):
        with peer.front_end(ALL) as front_end:
            front_end.share_memory()
            queue = front_end.queue()
            queue.start()
            for number in range(1, 4):
                blk(queue, WRITE, number, bytes([number]) * SECTOR)
                assert queue.stop() == number
                queue.start()
            assert blk(queue, READ, 0, 4 * SECTOR)[SECTOR * 3 :] == b"\3" * SECTOR, turn


@of("qemu-storage-daemon")
def test_a_disk_marks_what_it_writes_to_memory(peer: RunningPeer) -> None:
    with peer.front_end(ALL) as front_end:
        front_end.share_memory()
        log = front_end.share_log()
        queue = front_end.queue()
        queue.start()
        blk(queue, WRITE, 0, bytes(SECTOR))
        assert log.pages() == set()
        front_end.log_writes()
        request = queue.put(struct.pack("<IIQ", READ, 0, 0), 3 * PAGE, 1)
        queue.kick()
        queue.wait_used()
        _, data, status = request.places
        written = {place // PAGE for place in (*range(data, data + 3 * PAGE, 512), data + 3 * PAGE - 1, status)}
        assert log.pages() == written | {queue.driver.addresses.used // PAGE}


@of("qemu-storage-daemon")
def test_memory_comes_and_goes_under_a_disk(peer: RunningPeer) -> None:
    with peer.front_end(ALL) as front_end:
        front_end.share_memory()
        queue = front_end.queue()
        queue.start()
        blk(queue, WRITE, 0, bytes(SECTOR))
        queue.stop()
        front_end.take_memory()
        front_end.share_memory()
        queue.start()
        blk(queue, WRITE, 1, bytes(SECTOR))


# virtiofsd

FUSE_STATFS, FUSE_INIT = 17, 26
FUSE_IN = struct.Struct("<IIQQIIIHH")
FUSE_OUT = struct.Struct("<IiQ")
ROOT = 1


def fuse(queue: Queue, operation: int, node: int, data: bytes, answer: int) -> bytes:
    """Do one request of a file system that is to succeed; what it answers (linux/fuse.h)."""
    unique = operation * 2
    header = FUSE_IN.pack(FUSE_IN.size + len(data), operation, unique, node, 0, 0, 0, 0, 0)
    done = queue.exchange(header + data, FUSE_OUT.size + answer)
    length, error, about = FUSE_OUT.unpack_from(done.data)
    assert (length, error, about) == (done.written, 0, unique)
    return done.data[FUSE_OUT.size :]


@of("virtiofsd")
def test_a_file_system_says_how_large_it_is(peer: RunningPeer) -> None:
    with peer.front_end(ALL) as front_end:
        front_end.share_memory()
        assert front_end.read_config(40) == b"shared".ljust(36, b"\0") + (1).to_bytes(4, "little")
        requests = front_end.queue(1)
        requests.start()
        begun = fuse(requests, FUSE_INIT, 0, struct.pack("<IIII", 7, 31, 1 << 16, 0), 64)
        assert struct.unpack_from("<I", begun) == (7,)
        blocks, _, _, files, _, size = struct.unpack_from("<QQQQQI", fuse(requests, FUSE_STATFS, ROOT, b"", 80))
        here = os.statvfs(peer.files / "shared")
        assert (blocks, files, size) == (here.f_blocks, here.f_files, here.f_bsize)
    assert peer.child.wait(10) == 0


@of("virtiofsd")
def test_a_file_system_is_saved(peer: RunningPeer) -> None:
    with peer.front_end(ALL) as front_end:
        front_end.share_memory()
        requests = front_end.queue(1)
        requests.start()
        fuse(requests, FUSE_INIT, 0, struct.pack("<IIII", 7, 31, 1 << 16, 0), 64)
        requests.stop()
        state = front_end.save_state()
    assert state
    with peer.another() as other, other.front_end(ALL) as front_end:
        front_end.share_memory()
        front_end.load_state(state)
        requests = front_end.queue(1)
        requests.start()
        assert fuse(requests, FUSE_STATFS, ROOT, b"", 80)


# passt and net_vhost

HEADER = 12
UDP = 17
ANSWER = b"an answer of more than the least that a frame has"


def udp(source: int, target: int, data: bytes) -> bytes:
    """A datagram without a checksum (RFC 768)."""
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


@pytest.fixture(scope="module", params=[None, pytest.param(NEWER, id="newer", marks=pytest.mark.nightly)])
def net_vhost(request: pytest.FixtureRequest) -> Iterator[RunningPeer]:
    """One for all of its tests: it takes a second to start."""
    with running_peer("dpdk-net-vhost", request.param) as running:
        yield running


def free_port() -> int:
    """A port of the loopback that nobody has for datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@of("passt")
def test_a_network_answers_who_has_an_address_and_takes_a_datagram_to_its_host_and_back(peer: RunningPeer) -> None:
    """192.0.2.1 is the host's loopback there: nothing goes any further."""
    with (
        peer.front_end(FEATURES | MERGED) as front_end,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host,
    ):
        host.bind(("127.0.0.1", 0))
        host.settimeout(20)
        front_end.share_memory()
        receive, transmit = front_end.queue(0), front_end.queue(1)
        front_end.start(receive, transmit)

        for _ in range(4):  # what finds no buffer there is dropped
            receive.put(2048)
        receive.kick()

        def received() -> bytes:
            (frame,) = receive.wait_used()
            return frame.data[HEADER:]

        question = arp()
        transmit.exchange(bytes(HEADER) + question)
        frame = received()
        assert frame[:6] == question[6:12]
        assert frame[12:22] == question[12:20] + b"\0\2"  # the same, answered
        assert frame[28:32] == question[38:42]
        there, port, ours = frame[6:12], host.getsockname()[1], free_port()  # passt sends from the guest's port
        transmit.exchange(bytes(HEADER) + there + ipv4(udp(ours, port, b"a question"), protocol=UDP)[6:])
        asked, sender = host.recvfrom(100)
        assert asked == b"a question"
        host.sendto(ANSWER, sender)
        frame = received()
        assert (frame[23], frame[26:30]) == (UDP, question[38:42])
        assert frame[34:40] == udp(port, ours, ANSWER)[:6]
        assert frame[42:] == ANSWER


@pytest.mark.parametrize(
    "features",
    [FEATURES, FEATURES | V.INDIRECT_DESC | MERGED, FEATURES | V.RING_PACKED, FEATURES | V.RING_PACKED | V.IN_ORDER],
    ids=["split", "split-indirect", "packed", "packed-in-order"],
)
def test_a_back_end_that_polls_sends_frames_back(net_vhost: RunningPeer, features: VirtioFeature) -> None:
    with net_vhost.front_end(features) as front_end:
        assert features in front_end.negotiated.features
        front_end.share_memory()
        receive, transmit = front_end.queue(0, 256), front_end.queue(1, 256)
        front_end.start(receive, transmit)
        for first in range(0, 600, 50):  # the rings wrap
            frames = [arp() + number.to_bytes(2, "little") * 20 for number in range(first, first + 50)]
            for frame in frames:
                receive.put(2048)
                transmit.put(bytes(HEADER), frame, indirect=V.INDIRECT_DESC in features)
            transmit.kick()
            transmit.wait_used(50)
            assert [done.data[HEADER:] for done in receive.wait_used(50)] == frames


# vhost-device-vsock

CID, HOST = 5, 2
VSOCK = struct.Struct("<QQIIIHHIII")
STREAM = 1
OP_REQUEST, OP_RESPONSE, OP_RW = 1, 2, 5


def vsock(operation: int, data: bytes = b"") -> bytes:
    """A packet from the guest's port 1000 to the host's port 2000 (virtio 1.3, "Socket Device")."""
    return VSOCK.pack(CID, HOST, 1000, 2000, len(data), STREAM, operation, 0, 65536, 0) + data


@of("vhost-device-vsock")
def test_a_socket_of_the_host_hears_the_guest(peer: RunningPeer) -> None:
    with (
        peer.front_end(ALL) as front_end,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
    ):
        listener.bind(str(peer.files / "vsock_2000"))
        listener.listen()
        listener.settimeout(20)
        front_end.share_memory()
        assert front_end.read_config(8) == CID.to_bytes(8, "little")
        receive, transmit, events = (front_end.queue(index) for index in range(front_end.queue_count()))
        front_end.start(receive, transmit, events)
        for _ in range(4):
            receive.put(VSOCK.size, 4096)
        receive.kick()
        transmit.exchange(vsock(OP_REQUEST))
        (said,) = receive.wait_used()
        assert VSOCK.unpack_from(said.data)[:7] == (HOST, CID, 2000, 1000, 0, STREAM, OP_RESPONSE)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(20)
            transmit.exchange(vsock(OP_RW, b"hello"))
            assert accepted.recv(100) == b"hello"
