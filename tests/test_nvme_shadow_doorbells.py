"""Doorbells in buffers of the guest (Doorbell Buffer Config), by drivers that use them for all queues or for some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack, unpack

from tests.cases import for_each
from tests.nvme_kit import CSTS, PAGE, Host, QueuePair, controller
from userdev_servers.nvme.spec import Admin, Io


class Buffers:
    """A driver's side of the buffers, by the book: the register is written when the value passes the event index."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.values, self.events = host.allocate(PAGE), host.allocate(PAGE)
        self._last: dict[int, int] = {}
        self.rung = 0
        done = host.admin.do(Admin.DOORBELL_BUFFER_CONFIG, prp1=self.values, prp2=self.events)
        assert done.status == 0
        self._last = {0: host.admin.tail, 1: host.admin.head}

    def ring(self, index: int, new: int) -> None:
        old = self._last.get(index, 0)
        self._last[index] = new
        self.host.write(self.values + 4 * index, pack("<I", new))
        (event,) = unpack("<I", self.host.read(self.events + 4 * index, 4))
        if new - event - 1 & 0xFFFF < new - old & 0xFFFF:
            self.rung += 1
            self.host.ring(index, new)

    def do(self, queue: QueuePair, opcode: int, **fields: int) -> int:
        """The status of a command, whose doorbells are in the buffers."""
        cid = queue.put(opcode, ring=False, **fields)
        self.ring(2 * queue.number, queue.tail)
        while cid not in queue.arrived:
            self.host.client.wait_interrupt(self.host.vectors[queue.vector])
            if queue.take(acknowledge=False):
                self.ring(2 * queue.number + 1, queue.head)
        return queue.arrived.pop(cid).status


@contextmanager
def enabled(path: Path, entries: int = 4, image: str = "", *, cq_entries: int = 0, **options: object) -> Iterator[Host]:
    with controller(path, image, shadow_doorbells=True, **options) as (_, host):
        host.enable(entries=entries, cq_entries=cq_entries)
        yield host


def identify(host: Host, page: int) -> dict[str, int]:
    return {"opcode": Admin.IDENTIFY, "prp1": page, "cdw10": 1}


@for_each([4, 32])
def test_a_driver_may_keep_the_admin_queues_doorbells_in_the_buffers_too(entries: int, tmp_path: Path) -> None:
    with enabled(tmp_path, entries) as host:
        buffers, page = Buffers(host), host.allocate(PAGE)
        assert [buffers.do(host.admin, **identify(host, page)) for _ in range(50)] == [0] * 50
        assert buffers.rung < 2 * 50, "the buffers take the place of registers"


@for_each([4, 32])
def test_a_driver_may_ring_for_the_admin_queue_in_registers_all_the_same(entries: int, tmp_path: Path) -> None:
    """As those of Linux and of SPDK do."""
    with enabled(tmp_path, entries) as host:
        buffers, page = Buffers(host), host.allocate(PAGE)
        assert [host.admin.do(**identify(host, page)).status for _ in range(50)] == [0] * 50
        queue = host.create_queues(entries=8)
        assert [buffers.do(queue, Io.FLUSH, nsid=1) for _ in range(50)] == [0] * 50
        assert host.admin.do(**identify(host, page)).status == 0


def test_an_event_finds_the_room_that_the_buffer_tells_of(tmp_path: Path) -> None:
    """The last completions were taken by the buffer, and the register has never heard of them."""
    with enabled(tmp_path, 16, cq_entries=4) as host:
        buffers, page = Buffers(host), host.allocate(PAGE)
        request = host.admin.put(Admin.ASYNC_EVENT_REQUEST, ring=False)
        buffers.ring(0, host.admin.tail)
        last = [host.admin.put(ring=False, cid=None, **identify(host, page)) for _ in range(3)][-1]
        buffers.ring(0, host.admin.tail)
        while last not in host.admin.arrived:
            host.client.wait_interrupt(host.vectors[0])
            host.admin.take(acknowledge=False)
        host.load(CSTS)  # the controller has looked for more, and found nothing
        host.write(buffers.values + 4, pack("<I", host.admin.head))
        host.ring(4, 0)  # of a queue that is not there
        while request not in host.admin.arrived:
            host.client.wait_interrupt(host.vectors[0])
            host.admin.take(acknowledge=False)
        assert host.admin.arrived[request].result & 7 == 0


def test_a_driver_may_begin_with_the_admin_queues_buffer_late(tmp_path: Path) -> None:
    with enabled(tmp_path) as host:
        buffers, page = Buffers(host), host.allocate(PAGE)
        for _ in range(6):
            assert host.admin.do(**identify(host, page)).status == 0
        buffers._last = {0: host.admin.tail, 1: host.admin.head}
        assert [buffers.do(host.admin, **identify(host, page)) for _ in range(20)] == [0] * 20


@for_each([0, 1, 5, 7, 8])
def test_a_driver_may_begin_with_the_buffers_while_a_queue_is_in_use(used: int, tmp_path: Path) -> None:
    with enabled(tmp_path) as host:
        queue = host.create_queues(entries=8)
        assert [queue.do(Io.FLUSH, nsid=1).status for _ in range(used)] == [0] * used
        buffers = Buffers(host)
        buffers._last |= {2: queue.tail, 3: queue.head}
        assert [buffers.do(queue, Io.FLUSH, nsid=1) for _ in range(20)] == [0] * 20


def test_a_register_that_comes_late_does_not_take_the_admin_queue_back(tmp_path: Path) -> None:
    """Messages take a while: the buffer may say more than the register by then."""
    with enabled(tmp_path, 16) as host:
        buffers, page = Buffers(host), host.allocate(PAGE)
        assert buffers.do(host.admin, **identify(host, page)) == 0
        first = host.admin.tail
        cids = [host.admin.put(ring=False, cid=None, **identify(host, page)) for _ in range(3)]
        host.write(buffers.values, pack("<I", host.admin.tail))
        host.ring(0, first + 1)
        for cid in cids:
            assert host.admin.wait(cid).status == 0
        host.ring(0, first + 1)
        buffers._last[0] = host.admin.tail
        assert buffers.do(host.admin, **identify(host, page)) == 0


@for_each(["buffers", "registers"])
def test_the_way_that_a_driver_rings_for_the_admin_queue_moves_along(by: str, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    image = f"{tmp_path / 'disk.img'}:4M"
    with enabled(tmp_path, image=image) as source, controller(tmp_path / "b", image) as (_, target):
        buffers, page = Buffers(source), source.allocate(PAGE)

        def ask() -> int:
            host = buffers.host
            return (
                buffers.do(host.admin, **identify(host, page))
                if by == "buffers"
                else host.admin.do(**identify(host, page)).status
            )

        assert [ask() for _ in range(5)] == [0] * 5
        target.client.load_state(source.client.save())
        source.goes_on_at(target)
        buffers.host = target
        assert [ask() for _ in range(20)] == [0] * 20


@for_each(["buffers", "registers"])
def test_the_admin_queue_beside_a_mapped_page_of_doorbells(by: str, tmp_path: Path) -> None:
    with enabled(tmp_path, map_doorbells="memfd") as host:
        host.map_doorbells()
        buffers, page = Buffers(host), host.allocate(PAGE)
        for _ in range(20):
            if by == "buffers":
                assert buffers.do(host.admin, **identify(host, page)) == 0
            else:
                assert host.admin.do(**identify(host, page)).status == 0
