"""BARs that are large: a device that is plugged in finds a place for them, or it is said that there is none."""

from avocado_tests.large_bars import MIB
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import GuestFailure

_DEVICES = "avocado_tests.large_bars"


class LargeBars(GuestTest):
    """
    :avocado: tags=hotplug
    """

    def test_bars_up_to_1_gib_get_an_address(self) -> None:
        with self.lab() as lab:
            guest = lab.boot()
            for device, size in (
                ("Prefetchable32", 32),
                ("Prefetchable64", 64),
                ("Prefetchable1024", 1024),
                ("Narrow64", 64),
            ):
                plugged = guest.plug(f"{_DEVICES}:{device}")
                words = guest.succeed(f"head -1 {plugged.sysfs}/resource").split()
                first, last = (int(word, 16) for word in words[:2])
                self.assertTrue(first, device)
                self.assertEqual(last - first + 1, size * MIB, device)

    def test_a_bar_without_an_address_is_a_failure_of_plugging(self) -> None:
        with self.lab() as lab:
            guest = lab.boot()
            with self.assertRaises(GuestFailure) as failure:
                guest.plug(f"{_DEVICES}:Narrow512")
            self.assertRegex(str(failure.exception), r"no address for BAR 0 .*Narrow512")
            self.assertTrue(guest.plug(f"{_DEVICES}:Prefetchable32").address)
