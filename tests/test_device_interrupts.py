"""Interrupts as PCI has them: which mechanism, masking, pending bits, levels."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.cases import for_each
from tests.device_kit import CONFIG, EVENTFD, INTX, MASK, MSI, MSIX, NONE, TRIGGER, UNMASK, Ringer
from userdev.eventfd import drain
from vfio_user import Msi, MsiX, PciDevice, PciIds, ResetKind
from vfio_user.device import function_of
from vfio_user.testing import RecordingLink, Vectors, find_capability, read_register, set_irqs, write_register

MSIX_ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14
INTX_DISABLE = 1 << 10
TABLE_BAR = 0
PBA = 0x800


@pytest.fixture
def device() -> Iterator[Ringer]:
    device = Ringer()
    yield device
    function_of(device).detach()
    device.close()


@pytest.fixture
def msix(device: Ringer) -> Iterator[Vectors]:
    write_register(device, CONFIG, find_capability(device, 0x11) + 2, 2, MSIX_ENABLE)
    wires = Vectors(device, MSIX, count=4)
    yield wires
    wires.close()


@pytest.fixture
def intx(device: Ringer) -> Iterator[Vectors]:
    wires = Vectors(device, INTX)
    yield wires
    wires.close()


def msix_control(device: PciDevice, value: int) -> None:
    write_register(device, CONFIG, find_capability(device, 0x11) + 2, 2, value)


def interrupt_status(device: Ringer) -> bool:
    return bool(read_register(device, CONFIG, 6, 2) & 1 << 3)


def test_the_mechanism_with_eventfds_is_used(device: Ringer) -> None:
    assert device.interrupts.active == "intx"
    msi = Vectors(device, MSI, count=4)
    assert device.interrupts.active == "msi"
    device.interrupts.trigger(2)
    assert msi.fired() == [0, 0, 1, 0]
    msix = Vectors(device, MSIX, count=4)
    assert device.interrupts.active == "msix"
    device.interrupts.trigger(3)
    assert (msi.fired(), msix.fired()) == ([0] * 4, [0, 0, 0, 1])
    set_irqs(device, MSIX, 0, 0, TRIGGER, NONE)
    set_irqs(device, MSI, 0, 0, TRIGGER, NONE)
    assert device.interrupts.active == "intx"
    msi.close()
    msix.close()


def test_a_vector_that_is_not_there_is_the_authors_error(device: Ringer, msix: Vectors) -> None:
    with pytest.raises(ValueError, match="4 vectors"):
        device.interrupts.trigger(4)


@pytest.mark.parametrize("vector", [-1, 4, 32])
@pytest.mark.parametrize("function", ["trigger", "coalesce"])
def test_so_it_is_before_the_client_has_enabled_any(device: Ringer, vector: int, function: str) -> None:
    for each in (device, Quiet()):
        with pytest.raises(ValueError, match=str(vector)):
            getattr(each.interrupts, function)(vector)


def test_so_is_one_that_another_mechanism_has_than_the_client_has_chosen() -> None:
    class Two(PciDevice):
        ids = PciIds(vendor=1, device=2)
        interrupts = Msi(2) | MsiX(4)

    device = Two()
    device.interrupts.trigger(3)
    wires = Vectors(device, MSI, count=2)
    with pytest.raises(ValueError, match="2 vectors"):
        device.interrupts.trigger(3)
    wires.close()
    function_of(device).detach()
    device.close()


def test_a_device_that_has_no_interrupts_may_trigger_what_it_likes() -> None:
    class Mute(PciDevice):
        ids = PciIds(vendor=1, device=2)

    device = Mute()
    device.interrupts.trigger(3)
    assert device.interrupts.pending == frozenset()


class Quiet(PciDevice):
    ids = PciIds(vendor=1, device=2)
    interrupts = MsiX(1)


def test_a_device_whose_msix_is_off_and_has_nothing_else_stays_silent() -> None:
    device = Quiet()
    assert device.interrupts.active == "none"
    device.interrupts.trigger(0)
    wires = Vectors(device, MSIX)
    assert wires.fired() == [0]
    wires.close()
    function_of(device).detach()
    device.close()


def test_a_blocking_eventfd_with_a_full_counter_does_not_hold_the_device_up(device: Ringer) -> None:
    wires = Vectors(device, MSIX, flags=0)
    device.interrupts.trigger(0)
    assert wires.fired() == [1]
    os.set_blocking(wires.fds[0], True)
    os.eventfd_write(wires.fds[0], 0xFFFFFFFFFFFFFFFE)
    device.interrupts.trigger(0)
    assert wires.fired() == [0xFFFFFFFFFFFFFFFE]
    wires.close()


def test_who_waits_in_a_signal_is_freed_and_the_vector_is_cut(device: Ringer, monkeypatch: pytest.MonkeyPatch) -> None:
    signals, write = threading.Event(), os.eventfd_write

    def signal(fd: int, value: int) -> None:
        signals.set()
        write(fd, value)

    wires = Vectors(device, MSIX, count=2)
    os.set_blocking(wires.fds[1], True)
    os.eventfd_write(wires.fds[1], 0xFFFFFFFFFFFFFFFE)
    monkeypatch.setattr(os, "eventfd_write", signal)
    ringing = threading.Thread(target=device.interrupts.trigger, args=(1,), daemon=True)
    ringing.start()
    assert signals.wait(60)
    assert ringing.is_alive(), "or there would be nothing to free"
    device.interrupts.unblock()
    ringing.join(60)
    assert not ringing.is_alive()
    assert wires.fired()[1] == 1
    device.interrupts.trigger(1)
    device.interrupts.trigger(0)
    assert wires.fired() == [1, 0]
    wires.close()


def test_eventfds_that_nobody_waits_for_stay_when_somebody_looks(device: Ringer) -> None:
    wires = Vectors(device, MSIX)
    os.eventfd_write(wires.fds[0], 0xFFFFFFFFFFFFFFFE)
    device.interrupts.unblock()
    assert wires.fired() == [0xFFFFFFFFFFFFFFFE]
    device.interrupts.trigger(0)
    assert wires.fired() == [1]
    wires.close()


@for_each([0, os.EFD_NONBLOCK])
def test_taking_a_counter_never_waits(flags: int) -> None:
    fd = os.eventfd(3, flags)
    assert (drain(fd), drain(fd)) == (3, 0)
    os.close(fd)


def test_triggers_may_come_from_any_thread_while_eventfds_change(device: Ringer) -> None:
    done = threading.Event()

    def ring() -> None:
        while not done.is_set():
            device.interrupts.trigger(0)

    thread = threading.Thread(target=ring)
    wires = [Vectors(device, MSIX)]
    thread.start()
    wires.extend(Vectors(device, MSIX) for _ in range(200))
    done.set()
    thread.join(60)
    device.interrupts.trigger(0)
    assert not thread.is_alive()
    assert wires[-1].fired()[0] >= 1
    for each in wires:
        each.close()


class TestMsiX:
    def test_the_function_mask_holds_all_vectors_back(self, device: Ringer, msix: Vectors) -> None:
        msix_control(device, MSIX_ENABLE | FUNCTION_MASK)
        device.interrupts.trigger(1)
        device.interrupts.trigger(1)
        device.interrupts.trigger(3)
        assert msix.fired() == [0] * 4
        assert read_register(device, TABLE_BAR, PBA, 8) == 0b1010
        msix_control(device, MSIX_ENABLE)
        assert msix.fired() == [0, 1, 0, 1]
        assert read_register(device, TABLE_BAR, PBA, 8) == 0

    def test_a_masked_table_entry_holds_its_vector_back(self, device: Ringer, msix: Vectors) -> None:
        for vector in range(4):
            write_register(device, TABLE_BAR, 16 * vector + 12, 4, 1 if vector == 2 else 0)
        device.interrupts.trigger(1)
        device.interrupts.trigger(2)
        assert msix.fired() == [0, 1, 0, 0]
        assert read_register(device, TABLE_BAR, PBA, 4) == 0b100
        write_register(device, TABLE_BAR, 16 * 2 + 12, 4, 0)
        assert msix.fired() == [0, 0, 1, 0]

    def test_a_table_that_nobody_writes_masks_nothing(self, device: Ringer, msix: Vectors) -> None:
        """QEMU emulates the table itself: its guest's unmasking never gets here."""
        assert read_register(device, TABLE_BAR, 12, 4) == 1
        device.interrupts.trigger(0)
        assert msix.fired() == [1, 0, 0, 0]

    def test_the_table_keeps_message_address_and_data(self, device: Ringer) -> None:
        function_of(device).region_write(TABLE_BAR, 16, b"\xff" * 16)
        assert function_of(device).region_read(TABLE_BAR, 16, 16) == b"\xfc" + b"\xff" * 11 + b"\1\0\0\0"

    def test_every_pending_vector_has_its_bit(self) -> None:
        class Wide(PciDevice):
            ids = PciIds(1, 2)
            interrupts = MsiX(130)

        device = Wide()
        msix_control(device, MSIX_ENABLE | FUNCTION_MASK)
        for vector in (0, 7, 8, 63, 64, 129):
            device.interrupts.trigger(vector)
        pending = int.from_bytes(function_of(device).region_read(0, 130 * 16, 24), "little")
        assert pending == sum(1 << vector for vector in (0, 7, 8, 63, 64, 129))

    def test_the_pending_bits_are_read_only(self, device: Ringer) -> None:
        write_register(device, TABLE_BAR, PBA, 8, 0xFF)
        assert read_register(device, TABLE_BAR, PBA, 8) == 0

    def test_an_interrupt_before_its_eventfd_waits_for_it(self, device: Ringer) -> None:
        """QEMU enables MSI-X first and wires each vector when the guest unmasks it."""
        msix_control(device, MSIX_ENABLE)
        device.interrupts.trigger(1)
        assert read_register(device, TABLE_BAR, PBA, 8) == 0b10
        wires = Vectors(device, MSIX, count=4)
        assert wires.fired() == [0, 1, 0, 0]
        wires.close()

    def test_disabling_forgets_what_is_pending(self, device: Ringer) -> None:
        msix_control(device, MSIX_ENABLE)
        device.interrupts.trigger(1)
        msix_control(device, 0)
        msix_control(device, MSIX_ENABLE)
        assert device.interrupts.pending == frozenset()

    def test_reset_clears_table_and_pending_bits_and_keeps_the_wiring(self, device: Ringer, msix: Vectors) -> None:
        function_of(device).region_write(TABLE_BAR, 0, b"\x11" * 16)
        set_irqs(device, MSIX, 2, 1, MASK, NONE)
        device.interrupts.trigger(2)
        function_of(device).reset(ResetKind.DEVICE)
        assert function_of(device).region_read(TABLE_BAR, 0, 16) == bytes(12) + b"\1\0\0\0"
        assert device.interrupts.pending == frozenset()
        device.interrupts.trigger(0)
        assert msix.fired() == [1, 0, 0, 0]


class TestMsi:
    def enable(self, device: Ringer, granted: int) -> int:
        offset = find_capability(device, 0x05)
        write_register(device, CONFIG, offset + 2, 2, 1 | granted.bit_length() - 1 << 4)
        return offset

    def test_vectors_above_those_granted_wrap(self, device: Ringer) -> None:
        self.enable(device, granted=2)
        wires = Vectors(device, MSI, count=2)
        for vector in range(4):
            device.interrupts.trigger(vector)
        assert wires.fired() == [2, 2]
        wires.close()

    def test_a_mask_bit_holds_a_vector_back_and_shows_it_pending(self, device: Ringer) -> None:
        offset = self.enable(device, granted=4)
        wires = Vectors(device, MSI, count=4)
        write_register(device, CONFIG, offset + 0x10, 4, 0b0100)
        device.interrupts.trigger(2)
        assert wires.fired() == [0] * 4
        assert read_register(device, CONFIG, offset + 0x14, 4) == 0b0100
        write_register(device, CONFIG, offset + 0x10, 4, 0)
        assert wires.fired() == [0, 0, 1, 0]
        assert read_register(device, CONFIG, offset + 0x14, 4) == 0
        wires.close()


class TestIntX:
    def test_it_fires_once_while_raised_and_again_when_unmasked_still_raised(
        self, device: Ringer, intx: Vectors
    ) -> None:
        device.interrupts.trigger()
        device.interrupts.trigger()
        assert intx.fired() == [1]
        set_irqs(device, INTX, 0, 1, UNMASK, NONE)
        assert intx.fired() == [1]
        device.interrupts.lower()
        set_irqs(device, INTX, 0, 1, UNMASK, NONE)
        assert intx.fired() == [0]
        device.interrupts.trigger()
        assert intx.fired() == [1]

    def test_the_status_register_shows_the_line_even_when_it_is_disabled(self, device: Ringer, intx: Vectors) -> None:
        write_register(device, CONFIG, 4, 2, INTX_DISABLE)
        device.interrupts.trigger()
        assert interrupt_status(device)
        assert intx.fired() == [0]
        write_register(device, CONFIG, 4, 2, 0)
        assert intx.fired() == [1]
        device.interrupts.lower()
        assert not interrupt_status(device)

    def test_a_line_raised_before_the_client_listens_fires_when_it_does(self, device: Ringer) -> None:
        device.interrupts.trigger()
        wires = Vectors(device, INTX)
        assert wires.fired() == [1]
        wires.close()

    def test_masked_by_the_client_it_waits(self, device: Ringer, intx: Vectors) -> None:
        set_irqs(device, INTX, 0, 1, MASK, NONE)
        device.interrupts.trigger()
        assert intx.fired() == [0]
        set_irqs(device, INTX, 0, 1, UNMASK, NONE)
        assert intx.fired() == [1]

    def test_a_resample_eventfd_unmasks_it(self, device: Ringer, intx: Vectors) -> None:
        client = RecordingLink()
        function_of(device).attach(client)
        resample = os.eventfd(0, os.EFD_NONBLOCK)
        set_irqs(device, INTX, 0, 1, UNMASK, EVENTFD, fds=[os.dup(resample)])
        device.interrupts.trigger()
        assert intx.fired() == [1]
        (ready,) = client.watched.values()
        os.eventfd_write(resample, 1)
        ready()
        assert intx.fired() == [1]
        set_irqs(device, INTX, 0, 0, TRIGGER, NONE)
        assert not client.watched
        os.close(resample)

    def test_the_resample_eventfd_stays_until_it_is_taken_away(self, device: Ringer, intx: Vectors) -> None:
        """A guest that moves its interrupt to another processor has INTx wired anew, and would hang from then on."""
        client = RecordingLink()
        function_of(device).attach(client)
        resample, other = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)

        def wire_other() -> None:
            set_irqs(device, INTX, 0, 1, TRIGGER, EVENTFD, fds=[os.dup(other)])

        ways: dict[str, tuple[Callable[[], None], bool]] = {
            "wired anew": (wire_other, True),
            "masked": (lambda: set_irqs(device, INTX, 0, 1, MASK, NONE), True),
            "unmasked": (lambda: set_irqs(device, INTX, 0, 1, UNMASK, NONE), True),
            "triggered": (lambda: set_irqs(device, INTX, 0, 1, TRIGGER, NONE), True),
            "other vectors disabled": (lambda: set_irqs(device, MSIX, 0, 0, TRIGGER, NONE), True),
            "its eventfd taken away": (lambda: set_irqs(device, INTX, 0, 1, TRIGGER, EVENTFD), False),
            "disabled": (lambda: set_irqs(device, INTX, 0, 0, TRIGGER, NONE), False),
            "itself taken away": (lambda: set_irqs(device, INTX, 0, 1, UNMASK, EVENTFD), False),
        }
        for name, (happen, stays) in ways.items():
            set_irqs(device, INTX, 0, 1, UNMASK, EVENTFD, fds=[os.dup(resample)])
            happen()
            assert len(client.watched) == stays, name
            wire_other()
            set_irqs(device, INTX, 0, 1, UNMASK, NONE)
            drain(other)
            device.interrupts.trigger()
            assert drain(other) == 1, name
            for ready in list(client.watched.values()):
                os.eventfd_write(resample, 1)
                ready()
            assert drain(other) == stays, name
            device.interrupts.lower()
        os.close(resample)
        os.close(other)


class TestInBand:
    def test_without_eventfds_the_enabled_mechanism_goes_as_a_message(self, device: Ringer) -> None:
        client = RecordingLink(in_band_interrupts=True)
        function_of(device).attach(client)
        device.interrupts.trigger(0)
        msix_control(device, MSIX_ENABLE)
        device.interrupts.trigger(3)
        assert client.interrupts == [(INTX, 0), (MSIX, 3)]

    def test_masks_count_there_too(self, device: Ringer) -> None:
        client = RecordingLink(in_band_interrupts=True)
        function_of(device).attach(client)
        msix_control(device, MSIX_ENABLE | FUNCTION_MASK)
        device.interrupts.trigger(3)
        assert client.interrupts == []
        msix_control(device, MSIX_ENABLE)
        assert client.interrupts == [(MSIX, 3)]


def test_coalesced_interrupts_fire_once_after_the_batch(device: Ringer, msix: Vectors) -> None:
    client = RecordingLink()
    function_of(device).attach(client)
    for _ in range(5):
        device.interrupts.coalesce(1)
    device.interrupts.coalesce(2)
    assert msix.fired() == [0] * 4
    client.run_deferred()
    assert msix.fired() == [0, 1, 1, 0]
    device.interrupts.coalesce(1)
    client.run_deferred()
    assert msix.fired() == [0, 1, 0, 0]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_what_waits_at_a_reset_comes_no_more_and_what_comes_behind_it_does(device: Ringer, index: int) -> None:
    wires = Vectors(device, index, count=4)
    set_irqs(device, index, 0, 4, MASK, NONE)
    for vector in range(4):
        device.interrupts.trigger(vector)
    function_of(device).reset(ResetKind.DEVICE)
    assert device.interrupts.pending == frozenset()
    set_irqs(device, index, 0, 4, UNMASK, NONE)
    assert wires.fired() == [0] * 4
    for vector in range(4):
        device.interrupts.trigger(vector)
    assert wires.fired() == [1] * 4
    wires.close()


def test_a_line_that_has_fired_before_a_reset_fires_again_after_it(device: Ringer, intx: Vectors) -> None:
    """Nobody unmasks it: its guest has forgotten that it came."""
    device.interrupts.trigger()
    assert intx.fired() == [1]
    function_of(device).reset(ResetKind.DEVICE)
    assert intx.fired() == [0]
    device.interrupts.trigger()
    assert intx.fired() == [1]


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_an_index_that_was_disabled_masks_nothing_when_it_is_wired_again(device: Ringer, index: int) -> None:
    Vectors(device, index, count=4).close()
    set_irqs(device, index, 0, 4, MASK, NONE)
    set_irqs(device, index, 0, 0, TRIGGER, NONE)
    wires = Vectors(device, index, count=4)
    for vector in range(4):
        device.interrupts.trigger(vector)
    assert wires.fired() == [1] * 4
    wires.close()
