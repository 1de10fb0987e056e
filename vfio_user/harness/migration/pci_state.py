"""The part of a PCI device's state that QEMU keeps for it, read over QTest on one side and written on the other.

A vfio-user client emulates the BARs' mapping, MSI, MSI-X and its table (hw/vfio/pci.c): none of that is in the server's
stream. Writing it in the order of a driver makes QEMU map the BARs and hand new eventfds to the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from vfio_user.client.config_space import ConfigSpaceDump
from vfio_user.harness.qtest import PciAddress, QTest

COMMAND, CACHE_LINE, LATENCY, BARS, ROM, INTERRUPT_LINE, INTERRUPT_PIN = 0x04, 0x0C, 0x0D, 0x10, 0x30, 0x3C, 0x3D
BAR_COUNT = 6
MEMORY_DECODE, BUS_MASTER, INTX_DISABLE = 0x2, 0x4, 0x400
POWER_MANAGEMENT, MSI, EXPRESS, MSIX = 0x01, 0x05, 0x10, 0x11

_MESSAGE_CONTROL = 2  # of MSI and of MSI-X
_MSI_ENABLE, _MSI_64_BIT, _MSI_MASKABLE = 1, 1 << 7, 1 << 8
_MSIX_ENABLE, _MSIX_COUNT = 1 << 15, 0x7FF
_MSIX_TABLE = 4
_POWER_CONTROL = 4
_POWER_STATE, _NO_SOFT_RESET = 0x3, 1 << 3
_ENTRY = 16  # bytes of an entry of the MSI-X table

_CONFIG_ADDRESS = 0xCF8

_Register = tuple[int, int, int]
"""(offset in the capability, width, bits): without those that a 1 clears, and those that start something."""

_WRITABLE: Mapping[int, tuple[_Register, ...]] = MappingProxyType(
    {
        EXPRESS: ((0x08, 2, 0x7FFF), (0x10, 2, 0xFFDF)),
    }
)
"""Writable registers of the other capabilities (PCI Express Base 7.5.3)."""
_POWER_CONTROL_BITS = 0x7FFF
"""Without PME_Status, which a 1 clears (PM Interface 3.2.4)."""
_EXPRESS_2: tuple[_Register, ...] = ((0x28, 2, 0xFFFF), (0x30, 2, 0xFFEF))
"""Those of PCI Express since version 2; before it, the capability ends at 0x14."""
_EXPRESS_VERSION = 0xF
"""In the capability's register behind its header (7.5.3.2)."""


@dataclass(frozen=True)
class PciState:
    """Config space (256 bytes) and the MSI-X table of a function."""

    config: bytes
    msix_table: bytes = b""

    @property
    def space(self) -> ConfigSpaceDump:
        """Config space with its fields by name."""
        return ConfigSpaceDump(self.config)

    def word(self, offset: int, width: int) -> int:
        """The value of `width` bytes of config space at `offset`, little-endian."""
        return self.space.word(offset, width)

    @property
    def capabilities(self) -> dict[int, int]:
        """Offset of each capability by its id; of several of one kind the first."""
        found: dict[int, int] = {}
        for capability in self.space.capabilities():
            if not capability.extended:
                found.setdefault(capability.id, capability.offset)
        return found

    @property
    def registers(self) -> Iterator[_Register]:
        """Writable registers of the capabilities but for MSI, MSI-X and power; offsets are those in config space."""
        for identity, at in self.capabilities.items():
            found = _WRITABLE.get(identity, ())
            if identity == EXPRESS and self.word(at + 2, 2) & _EXPRESS_VERSION >= 2:
                found += _EXPRESS_2
            for register, width, bits in found:
                yield at + register, width, bits

    @property
    def power_control(self) -> int | None:
        """Where the register is that has the power state."""
        at = self.capabilities.get(POWER_MANAGEMENT)
        return None if at is None else at + _POWER_CONTROL

    @property
    def power(self) -> int:
        """What that register says, or 0, which is D0; without what a 1 clears."""
        return 0 if self.power_control is None else self.word(self.power_control, 2) & _POWER_CONTROL_BITS

    @property
    def interrupts(self) -> str:
        """The mechanism that the guest has enabled: "msix", "msi", "intx" or "none"."""
        where = self.capabilities
        if MSIX in where and self.word(where[MSIX] + _MESSAGE_CONTROL, 2) & _MSIX_ENABLE:
            return "msix"
        if MSI in where and self.word(where[MSI] + _MESSAGE_CONTROL, 2) & _MSI_ENABLE:
            return "msi"
        wired = self.word(INTERRUPT_PIN, 1) and not self.word(COMMAND, 2) & INTX_DISABLE
        return "intx" if wired else "none"

    @property
    def bus_master(self) -> bool:
        """Whether the command register lets the function read and write memory (PCI 3.0, 6.2.2)."""
        return bool(self.word(COMMAND, 2) & BUS_MASTER)

    def msix_table_address(self) -> int | None:
        """The MSI-X table's address in the guest; None where there is none or its BAR has no address."""
        where = self.capabilities.get(MSIX)
        if where is None:
            return None
        place = self.word(where + _MSIX_TABLE, 4)
        base = self.bar_address(place & 7)
        return base + (place & ~7) if base else None

    @property
    def msix_table_size(self) -> int:
        """Bytes of the MSI-X table."""
        where = self.capabilities.get(MSIX)
        return 0 if where is None else ((self.word(where + _MESSAGE_CONTROL, 2) & _MSIX_COUNT) + 1) * _ENTRY

    def bar_address(self, index: int) -> int:
        """The address in a memory BAR; 0 for none."""
        if not 0 <= index < BAR_COUNT:
            return 0
        low = self.word(BARS + 4 * index, 4)
        if low & 1:
            return 0
        high = self.word(BARS + 4 * index + 4, 4) if low & 6 == 4 else 0
        return high << 32 | low & ~0xF


def capture(qtest: QTest, function: PciAddress, known: bytes = b"") -> PciState:
    """Read it all from a paused machine; nothing of the guest's view changes.

    `known` is config space as the server has it, in which all is right that the guest cannot change.
    """
    with undisturbed(qtest):
        if known:
            state = PciState(qtest.config_space(function, known, _changeable(PciState(known))))
        else:
            state = PciState(qtest.config_space(function))
        table = state.msix_table_address()
        if table is None or (state.power & _POWER_STATE and not state.power & _NO_SOFT_RESET):
            return state  # waking it resets it, and the guest has to write the table again
        with _awake(qtest, function, state), _decoding(qtest, function, state.word(COMMAND, 2)):
            return PciState(state.config, qtest.read(table, state.msix_table_size))


def restore(qtest: QTest, function: PciAddress, state: PciState) -> None:
    """Bring a paused machine's device to `state`: BARs, capabilities, MSI, MSI-X, power; what starts interrupts comes
    late, and what takes the BARs away is the last.
    """
    with undisturbed(qtest), qtest.posted():
        command = state.word(COMMAND, 2)
        for index in range(BAR_COUNT):
            qtest.config_write(function, BARS + 4 * index, state.word(BARS + 4 * index, 4))
        qtest.config_write(function, ROM, state.word(ROM, 4))
        for offset in (CACHE_LINE, LATENCY, INTERRUPT_LINE):
            qtest.config_write(function, offset, state.word(offset, 1), 1)
        qtest.config_write(function, COMMAND, command, 2)
        for offset, width, bits in state.registers:
            qtest.config_write(function, offset, state.word(offset, width) & bits, width)
        where = state.capabilities
        if MSI in where:
            _restore_msi(qtest, function, state, where[MSI])
        if MSIX in where:
            _restore_msix(qtest, function, state, where[MSIX])
        if state.power_control is not None:
            qtest.config_write(function, state.power_control, state.power, 2)


def _changeable(known: PciState) -> list[int]:
    """Offsets of the words (4 bytes) of config space that `restore` writes back, or goes by."""
    words = {COMMAND, CACHE_LINE, *range(BARS, BARS + 4 * BAR_COUNT, 4), ROM, INTERRUPT_LINE}
    for identity, offset in known.capabilities.items():
        length = 0x18 if identity == MSI else 4 if identity == MSIX else 0
        words.update(range(offset, offset + length, 4))
    words.update(offset & ~3 for offset, _, _ in known.registers)
    words.update([] if known.power_control is None else [known.power_control])
    return sorted(word for word in words if word < 256)


@contextmanager
def undisturbed(qtest: QTest) -> Iterator[None]:
    """Leave the address port of config space as it is: the guest may have been stopped between address and data."""
    address = qtest.inl(_CONFIG_ADDRESS)
    try:
        yield
    finally:
        qtest.outl(_CONFIG_ADDRESS, address)


@contextmanager
def _awake(qtest: QTest, function: PciAddress, state: PciState) -> Iterator[None]:
    """Have it be in D0: in any other power state QEMU has its BARs nowhere (seen with 11.1.3: zeros are read there)."""
    if state.power_control is None or not state.power & _POWER_STATE:
        yield
        return
    qtest.config_write(function, state.power_control, state.power & ~_POWER_STATE, 2)
    try:
        yield
    finally:
        qtest.config_write(function, state.power_control, state.power, 2)


@contextmanager
def _decoding(qtest: QTest, function: PciAddress, command: int) -> Iterator[None]:
    """Have memory accesses reach the device, whatever the guest has made of its command register."""
    if command & MEMORY_DECODE:
        yield
        return
    qtest.config_write(function, COMMAND, command | MEMORY_DECODE, 2)
    try:
        yield
    finally:
        qtest.config_write(function, COMMAND, command, 2)


def _restore_msi(qtest: QTest, function: PciAddress, state: PciState, offset: int) -> None:
    control = state.word(offset + _MESSAGE_CONTROL, 2)
    wide = bool(control & _MSI_64_BIT)
    data = offset + (12 if wide else 8)
    qtest.config_write(function, offset + 4, state.word(offset + 4, 4))
    if wide:
        qtest.config_write(function, offset + 8, state.word(offset + 8, 4))
    qtest.config_write(function, data, state.word(data, 2), 2)
    if control & _MSI_MASKABLE:
        qtest.config_write(function, data + 4, state.word(data + 4, 4))
    qtest.config_write(function, offset + _MESSAGE_CONTROL, control, 2)


def _restore_msix(qtest: QTest, function: PciAddress, state: PciState, offset: int) -> None:
    table = state.msix_table_address()
    if table is not None and state.msix_table:
        with _decoding(qtest, function, state.word(COMMAND, 2)):
            qtest.write(table, state.msix_table)
    control = state.word(offset + _MESSAGE_CONTROL, 2)
    qtest.config_write(function, offset + _MESSAGE_CONTROL, control, 2)
