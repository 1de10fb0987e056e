"""Our edu and QEMU's own answer the same programs in the same way, in one guest."""

from vfio_user.avocado_test import GuestTest


class SameAsQemu(GuestTest):
    """
    :avocado: tags=edu,reference
    """

    def test_with_an_iommu(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.compare(
            ("identify",),
            ("registers",),
            ("liveness",),
            ("factorial",),
            ("factorial", "--interrupt"),
            ("--interrupts", "intx", "intx", "--times", "2"),
            ("--interrupts", "msi", "--vectors", "1", "irq", "--times", "2"),
            ("dma",),
            ("--interrupts", "msi", "--vectors", "1", "stress", "--rounds", "80"),
            iommu=True,
        )

    def test_without_an_iommu(self) -> None:
        self.compare(("identify",), ("liveness",), ("factorial", "--interrupt"), ("intx",), ("dma",), iommu=False)

    def compare(self, *commands: tuple[str, ...], iommu: bool) -> None:
        with self.lab() as lab:
            guest = lab.boot(devices=["edu", "qemu:edu"], iommu=iommu)
            ours, theirs = guest.devices
            for command in commands:
                seen = [self.edu(guest, *command, device=device).seen for device in (ours, theirs)]
                self.assertEqual(seen[0], seen[1], f"edu {' '.join(command)}: ours, and QEMU's")
