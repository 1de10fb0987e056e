"""What a probe has found, as far as steps are made of it."""

from __future__ import annotations

from dataclasses import dataclass

from vfio_user.client import Client
from vfio_user.client.conformance.bench import closed
from vfio_user.client.description import CONFIG_SIZES, Description, IrqFacts, RegionFacts, describe
from vfio_user.wire import Command
from vfio_user.wire.constants import RegionIndex


@dataclass(frozen=True)
class Ground:
    """A server's device: what it says of itself (`description`), and whether it does DMA."""

    description: Description
    does_dma: bool
    registers: tuple[tuple[int, int], ...] = ()
    """Region and offset of what looks like a register: it reads otherwise than what is around it."""
    stores: tuple[tuple[int, int], ...] = ()
    """Those of them whose lowest byte reads back as it was written."""

    keeps_line: bool = True
    """Whether the interrupt line reads back as it was written."""

    @property
    def regions(self) -> list[RegionFacts]:
        """The regions that exist."""
        return [region for region in self.description.regions if region.size]

    @property
    def config_size(self) -> int:
        """Bytes of configuration space, as far as there can be any; 0 where the device says that it has none."""
        return next((min(each.size, CONFIG_SIZES[0]) for each in self.regions if each.index == RegionIndex.CONFIG), 0)

    @property
    def bars(self) -> list[RegionFacts]:
        """The regions with registers."""
        return [region for region in self.regions if region.index < RegionIndex.ROM]

    @property
    def irqs(self) -> list[IrqFacts]:
        """The interrupt types that exist."""
        return [irq for irq in self.description.irqs if irq.vectors]

    @property
    def migrates(self) -> bool:
        """Whether the device migrates by messages."""
        return self.description.migration.how == "messages"


def survey(client: Client) -> Ground:
    """Ask the server everything, without changing anything.

    Raises:
        RemoteError, ProtocolError, Disconnected, NoAnswer: as from the client.
    """
    answer = client.raw(client.dialect.number(Command.DMA_MAP), b"\0")
    assert answer is not None
    return Ground(describe(client), closed(answer).failed)
