"""A device of anybody's class behind vhost-user: QEMU does not know its type, the guest's own driver does."""

from __future__ import annotations

from pathlib import Path

from avocado_tests.entropy import is_ramp, read_hwrng
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest

DEVICE = '''
from vhost_user.device import Chain, Queues, VhostDevice, queue, state


class Ramp(VhostDevice):
    """Gives bytes that count up."""

    virtio_id = 4
    queues = Queues(1, size=256)
    given: int = state(0)

    @queue(0)
    def fill(self, chain: Chain) -> int:
        data = bytes((self.given + at) & 0xFF for at in range(chain.writable))
        self.given += len(data)
        return chain.write(data)
'''

SIZE = 4096


class DeviceOfAnyType(GuestTest):
    """
    :avocado: tags=vhost-user,any
    """

    def test_the_guests_driver_finds_it_and_uses_it(self) -> None:
        module = Path(self.workdir) / "ramp.py"
        module.write_text(DEVICE)
        with self.lab() as lab:
            guest = lab.boot(device=f"vhost-user:{module}:Ramp")
            self.assertEqual((guest.device.vendor, guest.device.device), (0x1AF4, 0x1044))
            self.assert_served(guest)
            guest.reset()
            self.assert_served(guest)

    def assert_served(self, guest: BootedGuest) -> None:
        data = guest.call(read_hwrng, SIZE, 20 * guest.patience, timeout=40)
        self.assertEqual(len(data), SIZE)
        self.assertTrue(is_ramp(data), data[:64].hex())
