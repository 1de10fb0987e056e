"""The device reads and writes the guest's memory, exactly where it was told to."""

from vfio_user.avocado_test import GuestTest


class Dma(GuestTest):
    """
    :avocado: tags=edu,dma
    """

    def test_physical_memory(self) -> None:
        """Patterns both ways over borders of pages, without an IOMMU: one large map of all memory."""
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=False)
            done = self.edu(guest, "dma")
            self.assertEqual(done.device["access"], "uio")
            self.assertEqual(len(done.seen["transfers"]), 8)

    def test_through_an_iommu(self) -> None:
        """The same where every page has a map of its own, scattered over the guest's memory."""
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            done = self.edu(guest, "dma")
            self.assertEqual(done.device["access"], "vfio")

    def test_maps_that_come_and_go(self) -> None:
        """One driver after the other gets other pages at the same addresses: none of the old may be used."""
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            for seed in range(2):
                self.edu(guest, "stress", "--rounds", "60", "--seed", str(seed))
            for _ in range(3):  # each begins in the page in which the one before has ended
                self.edu(guest, "dma")
