"""Devices and the life of a machine: several at once, plugging in and out, a boot from the beginning."""

from vfio_user.avocado_test import GuestTest


class Machine(GuestTest):
    """
    :avocado: tags=edu,machine
    """

    def test_two_devices_in_one_guest(self) -> None:
        """Each has a server, registers and interrupts of its own."""
        with self.lab() as lab:
            guest = lab.boot(devices=["edu", "edu --msix 2"], iommu=True)
            first, second = guest.devices
            self.edu(guest, "liveness", "0x11111111", device=first)
            self.edu(guest, "liveness", "0x22222222", device=second)
            values = [
                self.edu(guest, "registers", device=device).seen["registers"]["liveness"] for device in guest.devices
            ]
            self.assertEqual(values, ["0xeeeeeeee", "0xdddddddd"])
            counts = [self.edu(guest, "irq", device=device).seen["counts"] for device in guest.devices]
            self.assertEqual([len(count) for count in counts], [4, 2])

    def test_unplug_and_plug_in_again(self) -> None:
        """A device leaves and comes back, to the same server as a new session."""
        with self.lab() as lab:
            server = lab.serve("edu --msix 0")
            guest = lab.boot(iommu=True)
            for _ in range(3):
                device = guest.plug("edu", server=server)
                self.edu(guest, "--interrupts", "msi", "irq", device=device)
                guest.unplug(device, keep_server=True)

    def test_boot_from_the_beginning(self) -> None:
        """What works in a restored guest works in one that was booted."""
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True, fresh=True)
            self.edu(guest, "irq")
            self.edu(guest, "dma")
