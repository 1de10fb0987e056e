"""What QEMU keeps of a device, read from one machine and written into another: nothing of it may be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.device_kit import CONFIG
from tests.test_harness_channels import FakeMachine
from userdev_servers.edu import Edu
from vfio_user.device import function_of
from vfio_user.harness.migration import pci_state
from vfio_user.harness.qtest import PciAddress, QTest
from vfio_user.testing import find_capability

DEVICE = PciAddress(1, 0)
TABLE = 0x400
"""Where the guest has put the BAR with the MSI-X table."""
ENABLE_MSI, ENABLE_MSIX = 1, 1 << 15


def config_of(device: Edu) -> bytearray:
    return bytearray(function_of(device).region_read(CONFIG, 0, 256))


def put(space: bytearray, offset: int, width: int, value: int) -> None:
    space[offset : offset + width] = value.to_bytes(width, "little")


@contextmanager
def machine(space: bytearray, kind: type[FakeMachine] = FakeMachine) -> Iterator[tuple[FakeMachine, QTest]]:
    """A machine whose device has this config space."""
    made = kind()
    made.config[DEVICE] = space
    try:
        yield made, QTest(made.ours)
    finally:
        made.ours.close()
        made.theirs.close()


@pytest.fixture
def device() -> Iterator[Edu]:
    device = Edu(pm=True)
    yield device
    device.close()


@pytest.fixture
def used(device: Edu) -> bytearray:
    """Config space as a guest leaves it that uses the device."""
    space = config_of(device)
    put(space, 0x04, 2, 0x0006)
    put(space, 0x10, 4, 0xFEB0_0000)
    put(space, 0x20, 4, TABLE)
    put(space, 0x0C, 1, 0x10)
    put(space, 0x3C, 1, 11)
    return space


def moved(device: Edu, used: bytearray, memory: bytes = b"") -> FakeMachine:
    """Capture from a machine with `used`, restore into one with the fresh device."""
    with machine(used) as (source, qtest):
        source.memory[TABLE : TABLE + len(memory)] = memory
        before = bytes(used)
        state = pci_state.capture(qtest, DEVICE)
        assert bytes(used) == before, "what was captured has not changed"
    with machine(config_of(device)) as (destination, qtest):
        pci_state.restore(qtest, DEVICE, state)
        return destination


def test_msi_moves_with_address_and_data(device: Edu, used: bytearray) -> None:
    msi = find_capability(device, 0x05)
    put(used, msi + 2, 2, int.from_bytes(used[msi + 2 : msi + 4], "little") | ENABLE_MSI | 2 << 4)
    put(used, msi + 4, 8, 0x1_FEE0_1004)
    put(used, msi + 12, 2, 0x4321)
    assert moved(device, used).config[DEVICE] == used


def test_msix_moves_with_its_table(device: Edu, used: bytearray) -> None:
    msix = find_capability(device, 0x11)
    put(used, msix + 2, 2, int.from_bytes(used[msix + 2 : msix + 4], "little") | ENABLE_MSIX)
    table = bytes(range(1, 65))
    destination = moved(device, used, table)
    assert destination.config[DEVICE] == used
    assert destination.memory[TABLE : TABLE + 64] == table


def test_power_state_and_line_move(device: Edu, used: bytearray) -> None:
    power = find_capability(device, 0x01)
    put(used, power + 4, 2, int.from_bytes(used[power + 4 : power + 6], "little") | 3)
    assert moved(device, used).config[DEVICE] == used


class Sleeping(FakeMachine):
    """Has the device's BAR nowhere while it is not in D0, as QEMU."""

    power: int

    def _target(self, verb: str, first: int) -> tuple[bytearray, int]:
        target, offset = super()._target(verb, first)
        asleep = target is self.memory and self.config[DEVICE][self.power] & 3
        return (bytearray(b"\xff" * len(target)) if asleep else target), offset


@pytest.mark.parametrize(("keeps", "arrives"), [(1 << 3, True), (0, False)], ids=["keeps its state", "is reset"])
def test_the_table_of_a_device_in_d3_moves_where_it_is_still_there_on_the_way_back(
    device: Edu, used: bytearray, keeps: int, arrives: bool
) -> None:
    power, msix = find_capability(device, 0x01) + 4, find_capability(device, 0x11)
    put(used, msix + 2, 2, int.from_bytes(used[msix + 2 : msix + 4], "little") | ENABLE_MSIX)
    put(used, power, 2, 3 | keeps)
    table, fresh = bytes(range(1, 65)), config_of(device)
    put(fresh, power, 2, keeps)
    Sleeping.power = power
    with machine(used, Sleeping) as (source, qtest):
        source.memory[TABLE : TABLE + 64] = table
        before = bytes(used)
        state = pci_state.capture(qtest, DEVICE)
        assert bytes(used) == before, "what was captured has not changed"
    with machine(fresh, Sleeping) as (destination, qtest):
        pci_state.restore(qtest, DEVICE, state)
    assert destination.config[DEVICE] == used
    assert destination.memory[TABLE : TABLE + 64] == (table if arrives else bytes(64))


def with_express(device: Edu, space: bytearray, version: int) -> int:
    """Put a capability of PCI Express, version 1 or 2, in front of the others; where it is."""
    at = 0xC0
    put(space, at, 4, version << 16 | space[0x34] << 8 | 0x10)
    space[0x34] = at
    return at


def moved_into(used: bytearray, fresh: bytearray) -> bytearray:
    with machine(used) as (_, qtest):
        state = pci_state.capture(qtest, DEVICE)
    with machine(fresh) as (destination, qtest):
        pci_state.restore(qtest, DEVICE, state)
        return destination.config[DEVICE]


def test_registers_of_an_express_device_move_but_for_what_would_start_something(device: Edu, used: bytearray) -> None:
    """Bit 15 of Device Control resets, bit 5 of Link Control retrains, bit 4 of Link Control 2 enters compliance."""
    fresh = config_of(device)
    with_express(device, fresh, 2)
    at = with_express(device, used, 2)
    for register, value, arrives in [
        (0x08, 0xA810, 0x2810),
        (0x10, 0x0063, 0x0043),
        (0x28, 0x0406, 0x0406),
        (0x30, 0x0033, 0x0023),
    ]:
        put(used, at + register, 2, value)
        assert moved_into(used, bytearray(fresh))[at + register : at + register + 2] == arrives.to_bytes(2, "little")


def test_what_is_behind_a_short_express_capability_is_not_taken_for_its_registers(device: Edu, used: bytearray) -> None:
    """Version 1 ends before Device Control 2: whatever is there is of another capability."""
    fresh = config_of(device)
    with_express(device, fresh, 1)
    at = with_express(device, used, 1)
    put(used, at + 0x28, 2, 0x1234)
    put(used, at + 0x30, 2, 0x1234)
    assert moved_into(used, bytearray(fresh))[at + 0x28 : at + 0x34] == bytes(12)
