"""What is masked and pending of each vector, and what of it moves along."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cases import for_each
from tests.device_kit import CONFIG, MASK, MSI, MSIX, NONE, UNMASK, Ringer
from vfio_user import Msi, MsiX, PciDevice, PciIds, ProtocolError
from vfio_user.device import function_of
from vfio_user.testing import Vectors, find_capability, read_register, set_irqs, write_register


@pytest.fixture
def device() -> Iterator[Ringer]:
    device = Ringer()
    yield device
    function_of(device).detach()
    device.close()


@for_each([0, 7, 8, 15, 16, 31])
def test_each_vector_of_msi_has_its_own_mask_and_pending_bit(vector: int) -> None:
    class Wide(PciDevice):
        ids = PciIds(1, 2)
        interrupts = Msi(32, maskable=True)

    device = Wide()
    wires = Vectors(device, MSI, count=32)
    masks = find_capability(device, 0x05) + 0x10
    write_register(device, CONFIG, masks, 4, 1 << vector)
    for each in range(32):
        device.interrupts.trigger(each)
    assert wires.fired() == [int(each != vector) for each in range(32)]
    assert read_register(device, CONFIG, masks + 4, 4) == 1 << vector
    write_register(device, CONFIG, masks, 4, 0)
    assert wires.fired() == [int(each == vector) for each in range(32)]
    wires.close()
    function_of(device).detach()
    device.close()


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_what_the_client_has_masked_and_what_waits_for_that_moves_along(device: Ringer, index: int) -> None:
    there = Ringer()
    wires, others = Vectors(device, index, count=4), Vectors(there, index, count=4)
    set_irqs(device, index, 1, 2, MASK, NONE)
    device.interrupts.trigger(1)
    function_of(there).load_state(function_of(device).save_state())
    for vector in range(4):
        there.interrupts.trigger(vector)
    assert others.fired() == [1, 0, 0, 1]
    set_irqs(there, index, 1, 2, UNMASK, NONE)
    assert others.fired() == [0, 1, 1, 0]
    wires.close()
    others.close()
    function_of(there).detach()
    there.close()


@pytest.mark.parametrize("index", [MSI, MSIX])
@pytest.mark.parametrize("kind", ["pending", "masked"])
def test_no_vector_behind_the_last_is_taken_of_a_saved_state(device: Ringer, index: int, kind: str) -> None:
    saved, name = device.interrupts.save(), {MSI: "msi", MSIX: "msix"}[index]
    device.interrupts.check(saved | {f"{name}_{kind}": [0, 3]})
    for wrong in (4, -1):
        with pytest.raises(ProtocolError):
            device.interrupts.check(saved | {f"{name}_{kind}": [wrong]})


def test_another_thread_may_interrupt_while_a_guest_looks_at_what_is_pending() -> None:
    """A set that grows while it is looked through is an error, which the guest would be answered with."""

    class Masked(PciDevice):
        ids = PciIds(1, 2)
        interrupts = Msi(4, maskable=True) | MsiX(4, bar=0)

    class Watched(set[int]):
        def __iter__(self) -> Iterator[int]:
            assert interrupts._lock._is_owned()  # type: ignore[attr-defined]
            return super().__iter__()

    device = Masked()
    interrupts = device.interrupts
    msi, msix = (find_capability(device, id) for id in (0x05, 0x11))
    for index, mask, value, pending in (
        (MSI, (CONFIG, msi + 0x10, 4), 0xF, (CONFIG, msi + 0x14, 4)),
        (MSIX, (CONFIG, msix + 2, 2), 0xC000, (0, 0x800, 8)),
    ):
        wires = Vectors(device, index, count=4)
        write_register(device, *mask, value)
        interrupts._pending[index] = Watched()
        interrupts.trigger(2)
        assert read_register(device, *pending) == 0b100, index
        wires.close()
    function_of(device).detach()
    device.close()
