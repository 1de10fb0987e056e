"""What is left of what was: a device that was reset is a new one, and a client finds nothing of the one before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.cases import for_each
from tests.device_kit import CONFIG, INTX, MASK, MSI, MSIX, NONE, TRIGGER, UNMASK, open_fds
from tests.device_whole import EXPRESS, PAGE, POWER_MANAGEMENT, has, scribble, whole
from tests.everything_device import Everything
from userdev_servers.edu import Edu
from userdev_servers.gpio import Gpio
from vfio_user import PciDevice, ProtocolError, ResetKind
from vfio_user.device import function_of
from vfio_user.testing import (
    RecordingLink,
    Vectors,
    attached,
    find_capability,
    memory_file,
    read_register,
    set_irqs,
    write_register,
)
from vfio_user.wire.constants import IrqSetFlags

RW = 3
MSIX_CAPABILITY = 0x11


def by_message(device: PciDevice) -> None:
    function_of(device).client_reset()


def by_flr(device: PciDevice) -> None:
    control = find_capability(device, EXPRESS) + 8
    write_register(device, CONFIG, control, 2, read_register(device, CONFIG, control, 2) | 1 << 15)


def by_waking(device: PciDevice) -> None:
    control = find_capability(device, POWER_MANAGEMENT) + 4
    write_register(device, CONFIG, control, 2, 3)
    write_register(device, CONFIG, control, 2, 0)


RESETS: dict[str, Callable[[PciDevice], None]] = {
    "DEVICE_RESET": by_message,
    "FLR": by_flr,
    "waking from D3hot": by_waking,
}


@for_each(RESETS, [Everything, Edu, Gpio])
def test_a_device_that_was_reset_is_a_new_one_whole(kind: str, make: Callable[[], PciDevice]) -> None:
    """Its configuration space, its memory and all that migration would save of it."""
    new, device = make(), make()
    if (kind == "FLR" and not has(device, EXPRESS)) or (
        kind.startswith("waking") and not has(device, POWER_MANAGEMENT)
    ):
        kind = "DEVICE_RESET"
    fresh = whole(new)
    with attached(device):
        for seed in range(3):
            scribble(device, seed)
            assert whole(device) != fresh
            RESETS[kind](device)
            assert whole(device) == fresh
    new.close()
    device.close()


def raise_while_masked(device: PciDevice) -> None:
    set_irqs(device, MSIX, 0, 8, MASK, NONE)
    device.interrupts.trigger(1)


def raise_later(device: PciDevice) -> None:
    device.interrupts.coalesce(1)


def raise_when_deferred(device: PciDevice) -> None:
    device.defer(lambda: device.interrupts.trigger(1))


def raise_when_planned(device: PciDevice) -> None:
    device.call_later(1.0, lambda: device.interrupts.trigger(1))


BEGUN = {
    "masked": raise_while_masked,
    "coalesced": raise_later,
    "deferred": raise_when_deferred,
    "planned": raise_when_planned,
}


@for_each(BEGUN.values(), RESETS.values())
def test_no_interrupt_comes_after_a_reset_that_was_on_its_way_before(
    begin: Callable[[PciDevice], None], reset: Callable[[PciDevice], None]
) -> None:
    device = Everything()
    with attached(device) as link:
        wires = Vectors(device, MSIX, count=8)
        begin(device)
        reset(device)
        set_irqs(device, MSIX, 0, 8, UNMASK, NONE)
        link.run_deferred()
        for _, work in list(link.planned):
            work()
        assert wires.fired() == [0] * 8
        device.interrupts.coalesce(1)
        link.run_deferred()
        assert wires.fired() == [0, 1, *[0] * 6], "what is asked for after it comes"
        wires.close()
    device.close()


def test_losing_a_client_is_no_reset_of_what_a_guest_sees() -> None:
    device = Everything()
    with attached(device):
        scribble(device, 7)
    before = whole(device)
    with attached(device):
        assert whole(device) == before
    function_of(device).reset(ResetKind.LOST_CONNECTION)
    assert whole(device) == before
    device.close()


# two clients in a row


def msix_on(device: PciDevice) -> None:
    write_register(device, CONFIG, find_capability(device, MSIX_CAPABILITY) + 2, 2, 1 << 15)


def mask_all(device: PciDevice) -> None:
    for index, count in ((INTX, 1), (MSI, 4), (MSIX, 8)):
        set_irqs(device, index, 0, count, MASK, NONE)


def wire_all(device: PciDevice) -> None:
    for index, count in ((INTX, 1), (MSI, 4), (MSIX, 8), (3, 1), (4, 1)):
        Vectors(device, index, count=count).close()


def resample(device: PciDevice) -> None:
    set_irqs(device, INTX, 0, 1, UNMASK, IrqSetFlags.DATA_EVENTFD, fds=[os.eventfd(0, os.EFD_NONBLOCK)])


def coalesce(device: PciDevice) -> None:
    device.interrupts.coalesce(3)


def map_memory(device: PciDevice) -> None:
    device.dma.map(0, 4 * PAGE, RW, memory_file(4 * PAGE))
    device.dma.map(8 * PAGE, 4 * PAGE, RW)
    device.dma.map(1 << 40, 0, RW)
    device.dma.read(0, 8)


def log_writes(device: PciDevice) -> None:
    map_memory(device)
    device.dma.start_log(PAGE)


def ring(device: PciDevice) -> None:
    """A doorbell that was rung as its guest went."""
    for region in function_of(device).regions:
        for found in region.io_fds:
            assert found.fd is not None
            os.eventfd_write(found.fd, 1)


LEFT_BEHIND: dict[str, Callable[[PciDevice], None]] = {
    "masks": mask_all,
    "eventfds": wire_all,
    "a resample eventfd": resample,
    "a coalesced interrupt": coalesce,
    "memory": map_memory,
    "a dirty log": log_writes,
    "a signalled ioeventfd": ring,
}


@contextmanager
def next_client(device: PciDevice) -> Iterator[tuple[RecordingLink, Vectors]]:
    with attached(device) as link:
        wires = Vectors(device, MSIX, count=8)
        yield link, wires
        wires.close()


@for_each(LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_the_next_client_finds_nothing_of_the_one_before_it(leave: Callable[[PciDevice], None]) -> None:
    device = Everything()
    before = open_fds()
    gone = RecordingLink()
    function_of(device).attach(gone)
    leave(device)
    function_of(device).detach()
    assert open_fds() == before, "descriptors of a client that has gone stay open"
    gone.deferred.clear()
    with next_client(device) as (link, wires):
        assert set(link.watched) <= {fd.fd for region in function_of(device).regions for fd in region.io_fds}
        for ready in list(link.watched.values()):
            ready()
        link.run_deferred()
        assert wires.fired() == [0] * 8, "an interrupt of the last client's"
        for vector in range(8):
            device.interrupts.trigger(vector)
        assert wires.fired() == [1] * 8
        device.interrupts.coalesce(2)
        link.run_deferred()
        assert wires.fired() == [0, 0, 1, 0, 0, 0, 0, 0]
        assert len(device.dma) == 0
        map_memory(device)
        with pytest.raises(ProtocolError):
            device.dma.take_dirty(0, PAGE, PAGE)
        device.dma.write(0, b"not logged")
        device.dma.start_log(PAGE)
        assert device.dma.take_dirty(0, 4 * PAGE, PAGE) == bytes(8), "pages of an older log"
    assert open_fds() == before
    device.close()


def test_a_client_that_masked_intx_leaves_it_unmasked_and_a_line_that_is_raised_fires_for_the_next() -> None:
    device = Everything()
    with attached(device):
        Vectors(device, INTX).close()
        set_irqs(device, INTX, 0, 1, MASK, NONE)
        device.interrupts.trigger()
    with attached(device):
        wires = Vectors(device, INTX)
        assert wires.fired() == [1]
        device.interrupts.lower()
        set_irqs(device, INTX, 0, 1, UNMASK, NONE)
        assert wires.fired() == [0]
        set_irqs(device, INTX, 0, 0, TRIGGER, NONE)
        wires.close()
    device.close()


@pytest.mark.parametrize("data", [NONE, IrqSetFlags.DATA_EVENTFD], ids=["disabled", "detached, as QEMU does it"])
def test_a_resample_eventfd_is_watched_once_whatever_is_done_to_it(data: IrqSetFlags) -> None:
    """Given twice, taken back, given again, and taken along with INTx's own eventfd."""
    device = Everything()
    with attached(device) as link:
        ours = set(link.watched)
        before = len(open_fds())
        for _ in range(3):
            resample(device)
            assert len(set(link.watched) - ours) == 1
        assert len(open_fds()) == before + 1
        set_irqs(device, INTX, 0, 1, UNMASK, IrqSetFlags.DATA_EVENTFD)
        assert set(link.watched) == ours
        resample(device)
        set_irqs(device, INTX, 0, 0 if data is NONE else 1, TRIGGER, data)
        assert set(link.watched) == ours
        assert len(open_fds()) == before
    device.close()


def test_a_client_in_process_leaves_no_work_that_deferred_work_has_deferred() -> None:
    done: list[str] = []
    device = Everything()
    with attached(device):
        device.defer(lambda: device.defer(lambda: done.append("the second")))
    assert done == ["the second"]
    device.close()
