"""The edu device, checked register by register against QEMU's (docs/specs/edu.rst, hw/misc/edu.c)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import CONFIG, INTX, MSI, MSIX
from userdev_servers.edu import Edu
from vfio_user import ResetKind
from vfio_user.device import function_of
from vfio_user.testing import RecordingLink, Vectors, find_capability, memory_file, read_register, write_register

ONES = 0xFFFFFFFF
FACTORIAL, STATUS, IRQ_STATUS, VECTOR, RAISE, ACKNOWLEDGE = 0x08, 0x20, 0x24, 0x28, 0x60, 0x64
SOURCE, DESTINATION, COUNT, COMMAND = 0x80, 0x88, 0x90, 0x98
RUN, TO_RAM, INTERRUPT = 1, 2, 4
BUFFER = 0x40000


class Driver:
    """What a guest's driver does, on a device with 64 KiB of guest memory at address 0."""

    def __init__(self, edu: Edu) -> None:
        self.edu = edu
        self.ram = memory_file(0x10000)
        self.client = RecordingLink()
        function_of(edu).attach(self.client)
        edu.dma.map(0, 0x10000, 3, os.dup(self.ram))
        write_register(edu, CONFIG, 4, 2, 0x0006)

    def read(self, offset: int, width: int = 4) -> int:
        return read_register(self.edu, 0, offset, width)

    def write(self, offset: int, value: int, width: int = 4) -> None:
        write_register(self.edu, 0, offset, width, value)

    def transfer(self, source: int, destination: int, count: int, command: int) -> None:
        for offset, value in ((SOURCE, source), (DESTINATION, destination), (COUNT, count), (COMMAND, command)):
            self.write(offset, value, 8)

    def close(self) -> None:
        function_of(self.edu).detach()
        self.edu.close()
        os.close(self.ram)


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver(Edu())
    yield driver
    driver.close()


def test_it_has_the_ids_and_bars_of_qemus(driver: Driver) -> None:
    assert function_of(driver.edu).region_read(CONFIG, 0, 4) == b"\x34\x12\xe8\x11"
    assert function_of(driver.edu).region_read(CONFIG, 8, 4) == b"\x10\x00\xff\x00"
    assert function_of(driver.edu).region_read(CONFIG, 0x2C, 4) == b"\xf4\x1a\x00\x11"
    assert function_of(driver.edu).region_read(CONFIG, 0x3D, 1) == b"\1"
    assert function_of(driver.edu).regions[0].size == 1 << 20
    assert [irq.count for irq in function_of(driver.edu).irqs[:3]] == [1, 4, 4]


def test_identification_and_liveness(driver: Driver) -> None:
    assert driver.read(0x00) == 0x010000ED
    driver.write(0x04, 0x12345678)
    assert driver.read(0x04) == 0xEDCBA987


@for_each([0, 1, 5, 12, 13, 20, 33, 34, 35, 1000, ONES])
def test_factorial_modulo_2_to_32(number: int, driver: Driver) -> None:
    driver.write(FACTORIAL, number)
    assert driver.read(STATUS) & 1 == 0
    assert driver.read(FACTORIAL) == (math.factorial(number) % (1 << 32) if number < 2000 else 0)


def test_the_interrupt_after_a_factorial_is_wanted_or_not(driver: Driver) -> None:
    wires = Vectors(driver.edu, INTX)
    driver.write(FACTORIAL, 5)
    assert (driver.read(IRQ_STATUS), wires.fired()) == (0, [0])
    driver.write(STATUS, ONES)
    assert driver.read(STATUS) == 0x80
    driver.write(FACTORIAL, 5)
    assert (driver.read(IRQ_STATUS), wires.fired()) == (1, [1])
    wires.close()


@for_each_row(
    [
        (0x00, 8, (1 << 64) - 1),
        (0x20, 8, (1 << 64) - 1),
        (0x0C, 4, ONES),
        (0x60, 4, ONES),
        (0x64, 4, ONES),
        (0x24, 8, 0),
        (0x84, 4, ONES),
        (BUFFER, 4, ONES),
        (BUFFER, 8, (1 << 64) - 1),
        (0x00, 1, 0),
        (0x00, 2, 0),
        (0x02, 4, 0),
        (0x84, 8, 0),
    ]
)
def test_accesses_that_no_register_takes_read_as_in_qemu(offset: int, width: int, value: int, driver: Driver) -> None:
    assert driver.read(offset, width) == value
    driver.write(offset, 0, width)
    assert driver.read(offset, width) == value


def test_narrow_and_wide_writes_to_four_byte_registers_are_ignored(driver: Driver) -> None:
    driver.write(0x04, 0)
    for width in (1, 2, 8):
        driver.write(0x04, 0x55, width)
    driver.write(0x06, 0x55)
    assert driver.read(0x04) == ONES


def test_dma_registers_take_four_and_eight_bytes(driver: Driver) -> None:
    driver.write(SOURCE, 0x1122334455667788, 8)
    assert (driver.read(SOURCE, 8), driver.read(SOURCE)) == (0x1122334455667788, 0x55667788)
    driver.write(SOURCE, 0x99)
    assert driver.read(SOURCE, 8) == 0x99


def test_intx_is_raised_until_everything_is_acknowledged(driver: Driver) -> None:
    wires = Vectors(driver.edu, INTX)
    driver.write(RAISE, 0x5A)
    assert (driver.read(IRQ_STATUS), wires.fired()) == (0x5A, [1])
    assert function_of(driver.edu).region_read(CONFIG, 6, 1)[0] & 8
    driver.write(ACKNOWLEDGE, 0x50)
    assert function_of(driver.edu).region_read(CONFIG, 6, 1)[0] & 8
    driver.write(ACKNOWLEDGE, 0x0A)
    assert driver.read(IRQ_STATUS) == 0
    assert not function_of(driver.edu).region_read(CONFIG, 6, 1)[0] & 8
    wires.close()


def test_raising_nothing_interrupts_only_while_something_is_unacknowledged(driver: Driver) -> None:
    wires = Vectors(driver.edu, MSI)
    for value, fired in ((0, 0), (1, 1), (0, 1), (1, 1)):
        driver.write(RAISE, value)
        assert wires.fired() == [fired]
    wires.close()


@pytest.mark.parametrize("index", [MSI, MSIX])
def test_the_vector_of_interrupts_can_be_chosen(driver: Driver, index: int) -> None:
    wires = Vectors(driver.edu, index, count=4)
    assert driver.read(VECTOR) == 0
    for vector in (0, 3, 1, 2):
        driver.write(VECTOR, vector)
        assert driver.read(VECTOR) == vector
        driver.write(RAISE, 1)
        assert wires.fired() == [int(each == vector) for each in range(4)]
    driver.write(VECTOR, 4)
    assert driver.read(VECTOR) == 2
    wires.close()


@for_each_row([(MSI, 4), (MSIX, 8)])
def test_with_more_vectors_than_msi_has_those_behind_its_last_are_its_first_again(index: int, wrapped_at: int) -> None:
    driver = Driver(Edu(msix=8))
    wires = Vectors(driver.edu, index, count=wrapped_at)
    for vector in range(8):
        driver.write(VECTOR, vector)
        driver.write(RAISE, 1)
        assert wires.fired() == [int(each == vector % wrapped_at) for each in range(wrapped_at)]
    wires.close()
    driver.close()


def test_dma_goes_both_ways_after_the_reply(driver: Driver) -> None:
    pattern = os.urandom(3000)
    os.pwrite(driver.ram, pattern, 0x0F00)
    driver.transfer(0x0F00, BUFFER + 96, 3000, RUN)
    assert driver.read(COMMAND) & RUN
    driver.client.run_deferred()
    assert driver.read(COMMAND) == 0
    driver.transfer(BUFFER + 96, 0x7FFF, 3000, RUN | TO_RAM)
    driver.client.run_deferred()
    assert os.pread(driver.ram, 3000, 0x7FFF) == pattern
    assert driver.read(IRQ_STATUS) == 0


def test_dma_can_interrupt_at_its_end(driver: Driver) -> None:
    wires = Vectors(driver.edu, MSIX, count=4)
    driver.transfer(0, BUFFER, 16, RUN | INTERRUPT)
    assert wires.fired() == [0] * 4
    driver.client.run_deferred()
    assert (wires.fired(), driver.read(IRQ_STATUS), driver.read(COMMAND)) == ([1, 0, 0, 0], 0x100, INTERRUPT)
    wires.close()


def test_registers_of_a_running_transfer_cannot_be_changed(driver: Driver) -> None:
    driver.transfer(0x100, BUFFER, 4, RUN)
    driver.transfer(0x200, BUFFER + 8, 8, RUN | TO_RAM)
    assert [driver.read(offset) for offset in (SOURCE, DESTINATION, COUNT, COMMAND)] == [0x100, BUFFER, 4, RUN]
    driver.client.run_deferred()


def test_a_command_without_run_is_ignored(driver: Driver) -> None:
    driver.write(COMMAND, TO_RAM | INTERRUPT)
    assert driver.read(COMMAND) == 0


def test_addresses_are_cut_to_the_mask() -> None:
    for edu, expected in ((Edu(), b"data"), (Edu(dma_mask=(1 << 32) - 1), bytes(4))):
        driver = Driver(edu)
        os.pwrite(driver.ram, b"data", 0x1000)
        driver.transfer((1 << 28) + 0x1000, BUFFER, 4, RUN)
        driver.client.run_deferred()
        assert bytes(edu.buffer[:4]) == expected
        driver.close()


@pytest.mark.parametrize("direction", [0, TO_RAM])
def test_a_transfer_may_be_of_the_whole_buffer_and_of_addresses_above_the_mask(driver: Driver, direction: int) -> None:
    ram = (1 << 28) + 0x1000
    pattern = os.urandom(4096)
    if direction:
        driver.edu.buffer[:] = pattern
        driver.transfer(BUFFER, ram, 4096, RUN | TO_RAM)
    else:
        os.pwrite(driver.ram, pattern, 0x1000)
        driver.transfer(ram, BUFFER, 4096, RUN)
    driver.client.run_deferred()
    assert bytes(driver.edu.buffer) == os.pread(driver.ram, 4096, 0x1000) == pattern


@for_each_row(
    [
        (0, BUFFER + 4090, 16, 0),
        (0, BUFFER - 1, 1, 0),
        (0, BUFFER, 4097, 0),
        (BUFFER, 0xFFF8, 16, TO_RAM),
        (BUFFER + 4096, 0, 1, TO_RAM),
        (0, 0, 1 << 63, 0),
    ]
)
def test_a_transfer_out_of_bounds_moves_nothing_and_ends(
    source: int, destination: int, count: int, direction: int, driver: Driver
) -> None:
    driver.edu.buffer[:] = b"\xee" * 4096
    driver.transfer(source, destination, count, RUN | INTERRUPT | direction)
    driver.client.run_deferred()
    assert driver.read(COMMAND) & RUN == 0
    assert driver.read(IRQ_STATUS) == 0x100
    assert bytes(driver.edu.buffer) == b"\xee" * 4096
    assert os.pread(driver.ram, 0x10000, 0) == bytes(0x10000)


def test_without_bus_mastering_nothing_moves(driver: Driver) -> None:
    os.pwrite(driver.ram, b"data", 0)
    write_register(driver.edu, CONFIG, 4, 2, 0x0002)
    driver.transfer(0, BUFFER, 4, RUN)
    driver.client.run_deferred()
    assert bytes(driver.edu.buffer[:4]) == bytes(4)


def test_dma_works_by_messages_too(driver: Driver) -> None:
    driver.edu.dma.unmap_all()
    driver.edu.dma.map(0, 0x4000, 3)
    driver.client.memory[0x100:0x104] = b"mail"
    driver.transfer(0x100, BUFFER, 4, RUN)
    assert driver.client.messages == 0
    driver.client.run_deferred()
    driver.transfer(BUFFER, 0x200, 4, RUN | TO_RAM)
    driver.client.run_deferred()
    assert bytes(driver.client.memory[0x200:0x204]) == b"mail"


def test_a_reset_ends_a_transfer_and_clears_everything(driver: Driver) -> None:
    driver.write(RAISE, 3)
    driver.transfer(0, BUFFER, 4, RUN | INTERRUPT)
    function_of(driver.edu).reset(ResetKind.DEVICE)
    driver.client.run_deferred()
    assert driver.edu.digest() == Edu().digest()


def test_a_transfer_under_way_goes_on_where_the_device_is_moved_to(driver: Driver) -> None:
    os.pwrite(driver.ram, b"data", 0)
    driver.transfer(0, BUFFER, 4, RUN)
    function_of(driver.edu).stop()
    driver.client.run_deferred()
    assert bytes(driver.edu.buffer[:4]) == bytes(4)
    target = Driver(Edu())
    os.pwrite(target.ram, b"data", 0)
    function_of(target.edu).load_state(function_of(driver.edu).save_state())
    assert target.read(COMMAND) == RUN
    target.client.run_deferred()
    assert (bytes(target.edu.buffer[:4]), target.read(COMMAND)) == (b"data", 0)
    target.close()


def test_options_leave_msix_out_and_add_reset_by_the_guest() -> None:
    plain = Edu(msix=0)
    assert function_of(plain).regions[4].size == 0
    assert function_of(plain).irqs[MSIX].count == 0
    with pytest.raises(LookupError):
        find_capability(plain, 0x11)
    express = Edu(flr=True)
    write_register(express, 0, RAISE, 4, 1)
    control = find_capability(express, 0x10) + 8
    write_register(express, CONFIG, control, 2, 0x8000)
    assert read_register(express, 0, IRQ_STATUS, 4) == 0


def test_it_can_have_power_states_and_waking_up_resets_it() -> None:
    edu = Edu(pm=True)
    write_register(edu, 0, RAISE, 4, 1)
    control = find_capability(edu, 0x01) + 4
    write_register(edu, CONFIG, control, 2, 3)
    assert read_register(edu, 0, IRQ_STATUS, 4) == 1
    write_register(edu, CONFIG, control, 2, 0)
    assert read_register(edu, 0, IRQ_STATUS, 4) == 0
