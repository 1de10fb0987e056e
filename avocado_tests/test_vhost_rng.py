"""An entropy source behind vhost-user: what the guest's /dev/hwrng reads is what our server gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avocado_tests.entropy import RAMP, is_ramp, read_hwrng
from userdev.errors import UserError
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest

SIZE = 4096
ACCESS_PLATFORM = 33
"""A bit of the features: addresses go through an IOMMU."""


def agreed_features() -> list[str]:
    """In the guest: of each virtio device that is an entropy source, 0 or 1 for each bit."""
    from pathlib import Path

    devices = Path("/sys/bus/virtio/devices").iterdir()
    return [(device / "features").read_text() for device in devices if int((device / "device").read_text(), 16) == 4]


class EntropyBehindVhostUser(GuestTest):
    """
    :avocado: tags=vhost-user,rng
    """

    def test_the_guest_reads_what_the_server_gives(self) -> None:
        with self.entropy() as guest:
            self.assert_served(guest)

    def test_it_works_again_after_a_pause_and_a_reboot(self) -> None:
        """A reset from outside is that of test_vhost_any.py, with the same driver.

        :avocado: tags=nightly
        """
        with self.entropy() as guest:
            self.assert_served(guest)
            guest.qmp.command("stop")
            guest.qmp.command("cont")
            self.assert_served(guest)
            guest.reboot()
            self.assert_served(guest)

    def test_it_goes_and_another_comes(self) -> None:
        with self.entropy() as guest:
            self.assert_served(guest)
            guest.unplug(guest.device)
            guest.plug(self.device)
            self.assert_served(guest)

    def test_beside_a_device_of_the_other_protocol(self) -> None:
        with self.entropy() as guest:
            edu = guest.plug("edu")
            self.assert_served(guest)
            self.edu(guest, "registers", device=edu)
            self.assert_served(guest)

    def test_through_an_iommu(self) -> None:
        """Ring and buffers have addresses of the guest's choice, which QEMU translates when it is asked to."""
        with self.lab() as lab:
            guest = lab.boot(device=self.device, iommu=True)
            self.assert_served(guest)
            agreed = [features[ACCESS_PLATFORM] for features in guest.call(agreed_features)]
            self.assertEqual(sorted(agreed), ["0", "1"])  # the machine's own is not behind it
            self.assert_served(guest)

    def test_qemu_refuses_to_move_it_and_the_guest_stays(self) -> None:
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(device=self.device, host=pair.a)
            self.assert_served(guest)
            with self.assertRaisesRegex(UserError, "vhost-user-rng cannot be migrated: QEMU says"):
                lab.migrate(guest, to=pair.b)
            self.assert_served(guest)

    @property
    def device(self) -> str:
        source = Path(self.workdir) / "ramp"
        source.write_bytes(RAMP)
        return f"vhost-user-rng --source {source}"

    @contextmanager
    def entropy(self) -> Iterator[BootedGuest]:
        """A guest with the server's device beside the machine's own."""
        with self.lab() as lab:
            yield lab.boot(device=self.device)

    def assert_served(self, guest: BootedGuest) -> None:
        data = guest.call(read_hwrng, SIZE, 20 * guest.patience, timeout=40)
        self.assertEqual(len(data), SIZE)
        self.assertTrue(is_ramp(data), data[:64].hex())
