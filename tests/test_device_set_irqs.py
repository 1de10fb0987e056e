"""SET_IRQS: what is refused and changes nothing, what wires, fires and masks (docs/protocol.md 9.3)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence

import pytest

from tests.cases import for_each_row
from tests.device_kit import BOOL, ERR, EVENTFD, INTX, MASK, MSI, MSIX, NONE, REQ, TRIGGER, UNMASK, open_fds
from vfio_user import IntX, Msi, MsiX, PciDevice, PciIds, ProtocolError
from vfio_user.device import function_of
from vfio_user.testing import RecordingLink, Vectors, set_irqs
from vfio_user.wire.constants import IrqInfoFlags, IrqSetFlags


class Ringer(PciDevice):
    ids = PciIds(vendor=1, device=2)
    interrupts = IntX() | Msi(4) | MsiX(8)


@pytest.fixture
def device() -> Iterator[Ringer]:
    before = open_fds()
    device = Ringer()
    yield device
    function_of(device).detach()
    device.close()
    assert open_fds() == before


@pytest.fixture
def wires(device: Ringer) -> Iterator[Vectors]:
    wires = Vectors(device, MSIX, count=8)
    yield wires
    wires.close()


def test_the_device_tells_how_many_vectors_it_has_and_what_can_be_done_with_them(device: Ringer) -> None:
    assert [irq.count for irq in function_of(device).irqs] == [1, 4, 8, 1, 1]
    assert (
        function_of(device).irqs[INTX].flags == IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE | IrqInfoFlags.AUTOMASKED
    )
    assert function_of(device).irqs[MSIX].flags == IrqInfoFlags.EVENTFD | IrqInfoFlags.MASKABLE


def test_a_device_hears_of_what_the_client_masks_and_of_nothing_else() -> None:
    heard: list[tuple[str, list[int], bool]] = []

    class Listener(Ringer):
        def on_irq_mask(self, mechanism: str, vectors: Sequence[int], masked: bool) -> None:
            heard.append((mechanism, list(vectors), masked))

    device, client = Listener(), RecordingLink()
    function_of(device).attach(client)
    set_irqs(device, MSIX, 1, 3, MASK, BOOL, bools=b"\1\0\1")
    set_irqs(device, MSIX, 1, 1, UNMASK, NONE)
    set_irqs(device, MSI, 0, 4, MASK, BOOL, bools=bytes(4))
    set_irqs(device, MSIX, 0, 8, TRIGGER, NONE)
    set_irqs(device, INTX, 0, 1, MASK, NONE)
    resample = os.eventfd(0)
    set_irqs(device, INTX, 0, 1, UNMASK, EVENTFD, fds=[os.dup(resample)])
    os.eventfd_write(resample, 1)
    for ready in list(client.watched.values()):
        ready()
    assert heard == [("msix", [1, 3], True), ("msix", [1], False), ("intx", [0], True), ("intx", [0], False)]
    os.close(resample)
    function_of(device).detach()
    device.close()


def test_a_device_may_have_no_interrupt_for_errors_and_none_that_asks_for_it_back() -> None:
    class Plain(Ringer):
        error_interrupt = release_interrupt = False

    device = Plain()
    assert [irq.count for irq in function_of(device).irqs] == [1, 4, 8, 0, 0]
    for index in (ERR, REQ):
        set_irqs(device, index, 0, 0, TRIGGER, NONE)
        with pytest.raises(ProtocolError):
            set_irqs(device, index, 0, 1, TRIGGER, EVENTFD, fds=[os.eventfd(0)])
    device.interrupts.error()
    device.interrupts.request_release()
    device.close()


@for_each_row(
    [
        (5, 0, 1, TRIGGER, NONE, b"", 0),
        (MSIX, 8, 1, TRIGGER, NONE, b"", 0),
        (MSIX, 0, 9, TRIGGER, NONE, b"", 0),
        (MSIX, 7, 0xFFFFFFFF, TRIGGER, NONE, b"", 0),
        (MSIX, 0xFFFFFFFF, 1, TRIGGER, NONE, b"", 0),
        (MSIX, 1, 0, TRIGGER, NONE, b"", 0),
        (MSIX, 0, 0, MASK, NONE, b"", 0),
        (MSIX, 0, 0, TRIGGER, BOOL, b"", 0),
        (MSIX, 0, 0, TRIGGER, EVENTFD, b"", 0),
        (MSIX, 0, 2, TRIGGER, EVENTFD, b"", 1),
        (MSIX, 0, 1, TRIGGER, EVENTFD, b"", 2),
        (MSIX, 0, 1, TRIGGER, NONE, b"", 1),
        (MSIX, 0, 2, TRIGGER, BOOL, b"\1", 0),
        (ERR, 0, 2, TRIGGER, NONE, b"", 0),
        (ERR, 0, 1, MASK, NONE, b"", 0),
        (REQ, 0, 1, UNMASK, NONE, b"", 0),
    ]
)
def test_a_wrong_request_is_refused_and_its_descriptors_are_closed(
    index: int,
    start: int,
    count: int,
    action: IrqSetFlags,
    data: IrqSetFlags,
    bools: bytes,
    fds: int,
    device: Ringer,
    wires: Vectors,
) -> None:
    before = open_fds()
    with pytest.raises(ProtocolError) as refusal:
        set_irqs(device, index, start, count, action, data, bools, [os.eventfd(0) for _ in range(fds)])
    assert refusal.value.errno == errno.EINVAL
    assert open_fds() == before
    for vector in range(8):
        device.interrupts.trigger(vector)
    assert wires.fired() == [1] * 8


def test_a_descriptor_that_is_no_eventfd_is_refused(device: Ringer) -> None:
    ends = os.pipe()
    with pytest.raises(ProtocolError):
        set_irqs(device, MSIX, 0, 1, TRIGGER, EVENTFD, fds=[ends[1]])
    os.close(ends[0])


def test_disabling_is_allowed_where_there_are_no_vectors() -> None:
    class Silent(PciDevice):
        ids = PciIds(vendor=1, device=2)

    device = Silent()
    set_irqs(device, MSIX, 0, 0, TRIGGER, NONE)
    with pytest.raises(ProtocolError):
        set_irqs(device, MSIX, 0, 1, TRIGGER, NONE)


def test_count_zero_disables_the_whole_index(device: Ringer, wires: Vectors) -> None:
    set_irqs(device, MSIX, 0, 0, TRIGGER, NONE)
    device.interrupts.trigger(3)
    assert wires.fired() == [0] * 8


def test_eventfds_without_descriptors_disable_exactly_their_range(device: Ringer, wires: Vectors) -> None:
    set_irqs(device, MSIX, 2, 3, TRIGGER, EVENTFD)
    for vector in range(8):
        device.interrupts.trigger(vector)
    assert wires.fired() == [1, 1, 0, 0, 0, 1, 1, 1]


def test_new_eventfds_replace_old_ones(device: Ringer, wires: Vectors) -> None:
    newer = Vectors(device, MSIX, count=2, start=1)
    for vector in range(4):
        device.interrupts.trigger(vector)
    assert wires.fired()[:4] == [1, 0, 0, 1]
    assert newer.fired() == [1, 1]
    newer.close()


def test_trigger_without_data_fires_the_range_and_skips_what_is_not_wired(device: Ringer, wires: Vectors) -> None:
    set_irqs(device, MSIX, 3, 1, TRIGGER, EVENTFD)
    set_irqs(device, MSIX, 2, 3, TRIGGER, NONE)
    assert wires.fired() == [0, 0, 1, 0, 1, 0, 0, 0]


def test_trigger_by_booleans_fires_those_that_are_one(device: Ringer, wires: Vectors) -> None:
    set_irqs(device, MSIX, 4, 4, TRIGGER, BOOL, b"\1\0\2\1")
    assert wires.fired() == [0, 0, 0, 0, 1, 0, 0, 1]


def test_a_masked_vector_waits_until_it_is_unmasked(device: Ringer, wires: Vectors) -> None:
    set_irqs(device, MSIX, 1, 2, MASK, NONE)
    for vector in (0, 1, 2, 2):
        device.interrupts.trigger(vector)
    assert wires.fired()[:3] == [1, 0, 0]
    set_irqs(device, MSIX, 0, 3, UNMASK, BOOL, b"\0\0\1")
    assert wires.fired()[:3] == [0, 0, 1]
    set_irqs(device, MSIX, 1, 1, UNMASK, NONE)
    assert wires.fired()[:3] == [0, 1, 0]


def test_eventfds_for_masking_are_taken_and_closed(device: Ringer) -> None:
    before = open_fds()
    set_irqs(device, MSIX, 0, 1, MASK, EVENTFD, fds=[os.eventfd(0)])
    set_irqs(device, MSI, 0, 2, UNMASK, EVENTFD, fds=[os.eventfd(0), os.eventfd(0)])
    assert open_fds() == before


def test_error_and_request_reach_the_client_that_listens(device: Ringer) -> None:
    device.interrupts.error()
    error, request = Vectors(device, ERR), Vectors(device, REQ)
    device.interrupts.error()
    device.interrupts.request_release()
    device.interrupts.request_release()
    assert (error.fired(), request.fired()) == ([1], [2])
    error.close()
    request.close()


def test_2048_vectors_can_be_wired_one_by_one() -> None:
    class Many(PciDevice):
        ids = PciIds(vendor=1, device=2)
        interrupts = MsiX(2048)

    before = open_fds()
    device = Many()
    wires = Vectors(device, MSIX, count=200, start=1848)
    device.interrupts.trigger(2047)
    assert wires.fired() == [0] * 199 + [1]
    wires.close()
    function_of(device).detach()
    assert open_fds() == before
