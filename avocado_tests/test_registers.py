"""The guest finds the device, and its registers do what edu's registers do."""

from vfio_user.avocado_test import GuestTest


class Registers(GuestTest):
    """
    :avocado: tags=edu,registers
    """

    def test_enumerate(self) -> None:
        """Ids, class and BAR are edu's, and the capabilities are those that our server adds."""
        with self.lab() as lab:
            guest = lab.boot(device="edu")
            seen = self.edu(guest, "identify").seen
            self.assertEqual(seen["ids"], "1234:11e8")
            self.assertEqual(seen["bar0"], 1 << 20)
            listing = guest.succeed(f"lspci -vv -s {guest.device.address}")
            self.assertIn("MSI-X: Enable- Count=4", listing)
            self.assertIn("MSI: Enable- Count=1/4", listing)
            self.assertRegex(listing, r"Region 0: Memory at [0-9a-f]+ \(32-bit, non-prefetchable\).*\[size=1M\]")

    def test_read_and_write(self) -> None:
        """Every value that is written to the liveness register comes back inverted."""
        with self.lab() as lab:
            guest = lab.boot(device="edu")
            inverted = self.edu(guest, "liveness", "0x0", "0xdeadbeef", "0xffffffff").seen["inverted"]
            self.assertEqual(inverted["0xdeadbeef"], "0x21524110")

    def test_factorial(self) -> None:
        """Factorials, small ones and ones that leave 32 bits."""
        with self.lab() as lab:
            guest = lab.boot(device="edu")
            factorials = self.edu(guest, "factorial", "0", "5", "12", "13", "34").seen["factorials"]
            self.assertEqual(factorials, {"0": 1, "5": 120, "12": 479001600, "13": 1932053504, "34": 0})
