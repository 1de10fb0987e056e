"""A slot that is used again as soon as its device has gone, while the guest still has other requests before it.

The devices are QEMU's own: no server has a part in this. The first two have a user in the guest, which decides when
they go: Linux takes devices out one after the other, in the order in which it was told, and waits for a user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vfio_user.avocado_test import GuestTest
from vfio_user.harness import (
    BootedGuest,
    Deadline,
    GuestFailure,
    Job,
    Lab,
    Plugged,
    QmpTimeout,
    inside_qemu,
    slot_address,
)

DEVICE = "qemu:edu"
ELSEWHERE = 2
"""A slot that nothing was in."""

PATIENCE = 30.0


@dataclass(frozen=True)
class Held:
    """A device in the hands of a program in the guest."""

    device: Plugged
    user: Job

    @property
    def slot(self) -> int:
        assert isinstance(self.device.place, int)
        return self.device.place


class Eject(GuestTest):
    """
    :avocado: tags=hotplug,nightly
    """

    def test_a_device_stays_where_another_was(self) -> None:
        """The guest was asked for the second device when the first had gone."""
        with self.lab() as lab:
            guest, first, second = self.two_held(lab)
            self.ask_for(guest, first)
            self.release(guest, first)
            self.ask_for(guest, second)
            self.plug(guest, "elsewhere", ELSEWHERE)
            self.plug(guest, "next", first.slot)
            self.release(guest, second)
            self.assert_arrives(guest, "next", first.slot)

    def test_a_device_stays_where_one_of_two_was(self) -> None:
        """The guest was asked for the second device when it still had the first.

        By the third event, which is behind the second request in any case, it is told of the first request again.
        """
        with self.lab() as lab:
            guest, first, second = self.two_held(lab)
            self.ask_for(guest, first)
            self.ask_for(guest, second)
            self.plug(guest, "elsewhere", ELSEWHERE)
            self.release(guest, first)
            self.plug(guest, "next", first.slot)  # the guest waits for the second's user, and does no more
            self.release(guest, second)
            with self.known_issue("eject-twice", guest):
                self.assert_arrives(guest, "next", first.slot)

    # -- what is done -------------------------------------------------------------------------------------------------

    def two_held(self, lab: Lab) -> tuple[BootedGuest, Held, Held]:
        guest = lab.boot(devices=[DEVICE, DEVICE], iommu=True)
        first, second = (self.hold(guest, device) for device in guest.devices)
        return guest, first, second

    def hold(self, guest: BootedGuest, device: Plugged) -> Held:
        user = guest.start(["python3", "-c", HOLD, device.address], timeout=300)
        guest.wait_until_succeeds(f"test -e /tmp/held-{device.address}")
        return Held(device, user)

    def ask_for(self, guest: BootedGuest, held: Held) -> None:
        with self.told(guest):
            guest.qmp.command("device_del", id=held.device.identity)

    def plug(self, guest: BootedGuest, identity: str, slot: int) -> None:
        with self.told(guest):
            guest.machine.attach(inside_qemu("edu", identity, slot))

    def release(self, guest: BootedGuest, held: Held) -> None:
        """Let the guest go on with a device that it was asked for, until it has given it back."""
        held.user.kill()
        guest.qmp.wait_event("DEVICE_DELETED", PATIENCE * guest.patience, {"device": held.device.identity})
        guest.devices.remove(held.device)

    @contextmanager
    def told(self, guest: BootedGuest) -> Iterator[None]:
        """The guest has read what QEMU has for it, and knows what to do, before anything else happens."""
        before = self.events(guest, after=BUSY)
        yield
        self.events(guest, after=before)

    def events(self, guest: BootedGuest, *, after: int) -> int:
        """How many hot-plug events the guest has handled, as soon as that is more than `after`."""
        deadline = Deadline(PATIENCE * guest.patience)
        while (count := int(guest.call(hotplug_events))) <= after:
            if deadline.passed:
                raise GuestFailure("the guest did not take the hot-plug event", evidence=guest.evidence())
        return count

    # -- what becomes of it -------------------------------------------------------------------------------------------

    def assert_arrives(self, guest: BootedGuest, identity: str, slot: int) -> None:
        """The guest comes to see it: the guest's own work is in order, so that what was asked before is done then."""
        deadline = Deadline(PATIENCE * guest.patience)
        while not guest.call(devices_behind, slot_address(slot)):
            with suppress(QmpTimeout):
                guest.qmp.wait_event("DEVICE_DELETED", 0.1, {"device": identity})
                raise GuestFailure(f"the guest has ejected {identity!r}, for which nobody has asked")
            if deadline.passed:
                raise GuestFailure(f"the guest never saw {identity!r}, and QEMU has it", evidence=guest.evidence())


# -- in the guest -----------------------------------------------------------------------------------------------------

BUSY = -1

HOLD = """
import signal, sys
sys.path.append("/opt/vfio-user")
from guest_pci import PciFunction
from guest_vfio import open_device
with open_device(PciFunction(sys.argv[1]), "vfio"):
    open(f"/tmp/held-{sys.argv[1]}", "w").close()
    signal.pause()
"""


def hotplug_events() -> int:
    """How many events of QEMU's hot-plug controller the guest has handled; BUSY (-1) while it is at one.

    The kernel disables an event until the firmware's method for it has ended (drivers/acpi/acpica/evgpe.c).
    """
    from pathlib import Path

    count, *state = Path("/sys/firmware/acpi/interrupts/gpe01").read_text().split()  # _E01 of QEMU's hw/i386
    return int(count) if "EN" in state and "STS" not in state else -1


def devices_behind(port: str) -> list[str]:
    """What the guest sees behind a root port."""
    from pathlib import Path

    return [function.name for function in Path(f"/sys/bus/pci/devices/{port}").glob("????:??:??.?")]
