"""The header of config space as drivers of guests use it: what turns decoding on, and what an interrupt line has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from userdev.conformance.check import Group, Skip, require
from vfio_user.client.client import Client
from vfio_user.client.config_space import COMMAND_INTX_DISABLE, COMMAND_IO, COMMAND_MEMORY, LARGEST_IO, ConfigSpaceDump
from vfio_user.client.conformance.access import WRITTEN
from vfio_user.client.conformance.bench import Bench
from vfio_user.wire.constants import IrqIndex

config = Group[Bench]("config", "PCI 3.0, 6.2: Configuration Space Functions")

_COMMAND = 0x04
_HEADER = 64
_DECODING = {"I/O": (COMMAND_IO, "I/O"), "32-bit": (COMMAND_MEMORY, "memory"), "64-bit": (COMMAND_MEMORY, "memory")}
"""By the kind of a BAR: the bit that turns its decoding on, and what that is called."""


def _header(bench: Bench) -> ConfigSpaceDump:
    return ConfigSpaceDump(bench.client.config_read(0, _HEADER))


@contextmanager
def _command(client: Client, *, set: int = 0, clear: int = 0) -> Iterator[int]:
    """Set and clear bits of the command register for the block, which is given what is read back."""
    before = client.config_read(_COMMAND, 2)
    try:
        client.config_write(_COMMAND, (int.from_bytes(before, "little") & ~clear | set).to_bytes(2, "little"))
        yield int.from_bytes(client.config_read(_COMMAND, 2), "little")
    finally:
        client.config_write(_COMMAND, before)


@config.check("io-bar-size", rule="PCI 3.0, 6.2.5.1: a device may not take more than 256 bytes per I/O BAR")
def io_bar_size(bench: Bench) -> None:
    """No I/O BAR has more than 256 bytes, for which a guest may have no room among its ports."""
    found = [bar.index for bar in _header(bench).bars() if bar.kind == "I/O" and bench.region(bar.index).size]
    if not found:
        raise Skip("the device has no I/O BAR")
    for index in found:
        size = bench.region(index).size
        require(size <= LARGEST_IO, f"the I/O BAR{index} has {size} bytes; make it a memory BAR, or several")


@config.check("decodes-its-bars", needs=WRITTEN, rule="PCI 3.0, 6.2.2: Device Control, bits 0 and 1")
def decodes_its_bars(bench: Bench) -> None:
    """The decoding of what its BARs are, memory or I/O, can be turned on, as each driver does first."""
    header = _header(bench)
    needed = {_DECODING[bar.kind]: bar.index for bar in header.bars() if bench.region(bar.index).size}
    if not needed:
        raise Skip("the device has no BAR")
    for (bit, name), index in needed.items():
        with _command(bench.client, set=bit) as got:
            require(got & bit, f"BAR{index} is there, and {name} decoding stays off (command {got:#06x})")


def _need_pin(bench: Bench) -> None:
    if _header(bench).interrupt_pin is None:
        raise Skip("the device has no interrupt pin")


@config.check("pin-has-a-vector", rule="PCI 3.0, 6.2.4: Interrupt Pin; QEMU: vfio_intx_enable()")
def pin_has_a_vector(bench: Bench) -> None:
    """A device with an interrupt pin has INTx, which QEMU sets up for it before all else."""
    _need_pin(bench)
    vectors = bench.irq_type(IrqIndex.INTX).nr_vectors
    require(vectors == 1, f"there is an interrupt pin, and the interrupt type INTx has {vectors} vectors")


@config.check("intx-disable", needs=WRITTEN, rule="PCI 3.0, 6.2.2: Interrupt Disable; Linux: pci_intx_mask_broken()")
def intx_disable(bench: Bench) -> None:
    """A device with an interrupt pin can be kept from raising it.

    Linux tries that: uio_pci_generic does not take a device without, and vfio-pci only one that is alone on its line.
    """
    _need_pin(bench)
    with _command(bench.client, set=COMMAND_INTX_DISABLE) as got:
        require(got & COMMAND_INTX_DISABLE, f"Interrupt Disable cannot be set (command {got:#06x})")
    with _command(bench.client, clear=COMMAND_INTX_DISABLE) as got:
        require(not got & COMMAND_INTX_DISABLE, f"Interrupt Disable cannot be cleared (command {got:#06x})")


@config.check("no-interrupt-status", rule="PCI 3.0, 6.2.3: Device Status, bit 3")
def no_interrupt_status(bench: Bench) -> None:
    """A function without an interrupt pin never says that it has raised one: Linux would take it for who did."""
    header = _header(bench)
    if header.interrupt_pin is not None:
        raise Skip("the device has an interrupt pin")
    require(not header.interrupt_status, "there is no interrupt pin, and the status says that it is raised")
