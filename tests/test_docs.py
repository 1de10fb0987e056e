"""What docs/devices.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from vfio_user.client import Client, EventFd, GuestMemory
from vfio_user.device import PciDevice, device_options
from vfio_user.server import Server
from vfio_user.wire.constants import IrqIndex

GUIDE = (Path(__file__).parent.parent / "docs" / "devices.md").read_text()


def copier() -> type[PciDevice]:
    found = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    names: dict[str, type[PciDevice]] = {}
    exec(found[1], names)
    return names["Copier"]


def test_the_copier_of_the_guide_copies_and_interrupts(tmp_path: Path) -> None:
    with (
        Server(copier()(), str(tmp_path / "socket")),
        Client.connect(str(tmp_path / "socket")) as client,
        GuestMemory(1 << 16) as ram,
        EventFd() as interrupt,
    ):
        client.dma_map(0x10000, ram)
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        ram.view[0x100:0x105] = b"hello"
        client.store(0, 0x00, 8, 0x10100)
        client.store(0, 0x08, 4, 5)
        assert client.map_region(client.region_info(2))[:6] == b"hello\0"
        assert client.load(0, 0x08, 4) == 1
        assert interrupt.wait() == 1


def test_the_option_of_the_guide_is_an_option() -> None:
    assert [(option.name, option.type, option.default) for option in device_options(copier())] == [("limit", int, 4096)]
