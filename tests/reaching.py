"""A device that does DMA inside its register handlers, as many in C do."""

from vfio_user import PciDevice, PciIds, register, state


class Reaching(PciDevice):
    """`source` is an address; a read of `there` gives the 4 bytes there, a write of `back` puts its value there."""

    ids = PciIds(vendor=0x1AF4, device=0x10FA)
    source: int = state(0)

    @register(bar=0, offset=0, width=4)
    def where(self, value: int) -> None:
        self.source = value

    @register(bar=0, offset=4, width=4)
    def there(self) -> int:
        return int.from_bytes(self.dma.read(self.source, 4), "little")

    @register(bar=0, offset=8, width=4)
    def back(self, value: int) -> None:
        self.dma.write(self.source, value.to_bytes(4, "little"))
