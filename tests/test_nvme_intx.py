"""The NVMe controller's INTx: when its line is up, and which vectors are masked."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cases import for_each
from tests.nvme_kit import CSTS, NSSR, PAGE, READY, QueuePair, controller
from userdev_servers.nvme.spec import Admin, Io
from vfio_user.client import EventFd
from vfio_user.wire.constants import IrqIndex

INTMS, INTMC = 0x0C, 0x10


def test_intx_is_up_until_the_guest_has_taken_its_completions(tmp_path: Path) -> None:
    with controller(tmp_path, msix=False, vectors=0) as (device, host), EventFd() as line:
        host.vectors.append(line)
        host.client.enable_irqs(IrqIndex.INTX, [line])
        host.enable()
        cid = host.admin.put(Admin.IDENTIFY, prp1=host.allocate(PAGE), cdw10=1)
        host.client.wait_interrupt(line)
        host.client.unmask_irqs(IrqIndex.INTX)
        assert line.take() == 1  # still up, so that it comes again
        assert [done.cid for done in host.admin.take()] == [cid]
        host.client.unmask_irqs(IrqIndex.INTX)
        assert line.take() == 0
        host.store(0x0C, 4, 1)  # INTMS
        host.admin.put(Admin.IDENTIFY, prp1=host.allocate(PAGE), cdw10=1)
        host.until(lambda: device.admin_sq != 0 and bool(host.admin.take(acknowledge=False)))
        assert line.take() == 0
        host.store(0x10, 4, 1)  # INTMC
        assert line.wait() == 1


@for_each(("disabled", "reset"))
def test_intx_falls_with_what_it_was_up_for(way: str) -> None:
    """A line that stays up is an interrupt without an end for a driver that has gone."""
    with (
        TemporaryDirectory() as folder,
        controller(Path(folder), msix=False, vectors=0, subsystem_reset=True) as (_, host),
        EventFd() as line,
    ):
        host.vectors.append(line)
        host.client.enable_irqs(IrqIndex.INTX, [line])
        host.enable()
        host.admin.put(Admin.IDENTIFY, prp1=host.allocate(PAGE), cdw10=1)
        host.client.wait_interrupt(line)
        if way == "disabled":
            host.disable()
        else:
            host.store(NSSR, 4, 0x4E564D65)
            host.until(lambda: not host.load(CSTS) & READY)
        host.client.unmask_irqs(IrqIndex.INTX)
        assert line.take() == 0


def test_with_intx_a_shadow_doorbell_asks_to_be_told_of_completions_taken(tmp_path: Path) -> None:
    """Else the line would stay up, and the guest would hear of nothing any more."""
    with controller(tmp_path, msix=False, vectors=0) as (_, host), EventFd() as line:
        host.vectors.append(line)
        host.client.enable_irqs(IrqIndex.INTX, [line])
        host.enable()

        def complete(queue: QueuePair, cid: int) -> None:
            while cid not in queue.arrived:
                host.client.wait_interrupt(line)
                queue.take()
                host.client.unmask_irqs(IrqIndex.INTX)

        values, events = host.allocate(PAGE), host.allocate(PAGE)
        complete(host.admin, host.admin.put(Admin.DOORBELL_BUFFER_CONFIG, prp1=values, prp2=events))
        queue = QueuePair(host, 1, 8, 0)
        complete(host.admin, host.admin.put(Admin.CREATE_CQ, prp1=queue.cq, cdw10=7 << 16 | 1, cdw11=3))
        complete(host.admin, host.admin.put(Admin.CREATE_SQ, prp1=queue.sq, cdw10=7 << 16 | 1, cdw11=1 << 16 | 1))
        line.take()
        for turn in range(20):
            queue.put(Io.FLUSH, ring=False, nsid=1)
            host.write(values + 8, queue.tail.to_bytes(4, "little"))
            queue.ring()
            assert host.client.wait_interrupt(line) == 1
            assert len(queue.take(acknowledge=False)) == 1
            host.write(values + 12, queue.head.to_bytes(4, "little"))
            asked = int.from_bytes(host.read(events + 12, 4), "little")
            assert asked == turn % 8  # passed now: the guest rings
            queue.acknowledge()
            host.client.unmask_irqs(IrqIndex.INTX)
            assert line.take() == 0


def test_the_vectors_of_intx_are_masked_each_by_itself(tmp_path: Path) -> None:
    with controller(tmp_path) as (_, host):
        for register, vectors, masked in [
            (INTMS, 0b0101, 0b0101),
            (INTMS, 0b0010, 0b0111),
            (INTMS, 0b0001, 0b0111),
            (INTMC, 0b0100, 0b0011),
            (INTMC, 0b1000, 0b0011),
            (INTMS, 0, 0b0011),
            (INTMC, 0b0011, 0),
        ]:
            host.store(register, 4, vectors)
            assert (host.load(INTMS), host.load(INTMC)) == (masked, masked)


def test_a_reset_unmasks_the_vectors_of_intx(tmp_path: Path) -> None:
    with controller(tmp_path) as (_, host):
        host.enable()
        host.store(INTMS, 4, 0b0101)
        host.disable()
        host.enable()
        assert (host.load(INTMS), host.load(INTMC)) == (0, 0)
