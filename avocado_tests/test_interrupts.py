"""Every interrupt comes, on its own vector, as often as it was raised."""

from vfio_user.avocado_test import GuestTest


class Interrupts(GuestTest):
    """
    :avocado: tags=edu,irq
    """

    def test_msix_on_each_vector(self) -> None:
        """
        :avocado: tags=msix
        """
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            done = self.edu(guest, "--interrupts", "msix", "irq", "--times", "5")
            self.assertEqual(done.device["interrupts"], "msix")
            self.assertEqual(done.seen["counts"], {str(vector): 5 for vector in range(4)})

    def test_msi_on_each_vector(self) -> None:
        """
        :avocado: tags=msi
        """
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            counts = self.edu(guest, "--interrupts", "msi", "irq", "--times", "5").seen["counts"]
            self.assertEqual(counts, {str(vector): 5 for vector in range(4)})

    def test_intx_is_a_level(self) -> None:
        """It comes again until it is acknowledged, by VFIO in a guest with an IOMMU.

        :avocado: tags=intx
        """
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            self.assertEqual(self.edu(guest, "intx", "--times", "3").seen["count"], 6)

    def test_intx_without_an_iommu(self) -> None:
        """The same by UIO.

        :avocado: tags=intx
        """
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=False)
            done = self.edu(guest, "intx", "--times", "3")
            self.assertEqual((done.device["access"], done.seen["count"]), ("uio", 6))

    def test_factorial_tells_when_it_is_done(self) -> None:
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            self.edu(guest, "factorial", "--interrupt", "5", "12")

    def test_kinds_in_turn(self) -> None:
        """A device whose driver changes from one kind of interrupt to another loses none."""
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            for kind in ("msix", "intx", "msi", "msix"):
                self.assertEqual(self.edu(guest, "--interrupts", kind, "irq").device["interrupts"], kind)
