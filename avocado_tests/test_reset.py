"""Every kind of reset in the middle of everything that a device may be doing.

After each: registers as after power-on, nothing more of what was under way before (no interrupt, no DMA), the
migration state as before, and a driver that starts anew works. What the device does by itself is `busy_edu.py`, what
the guest does is `programs/busy.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avocado_tests.guest_programs import command_of, put_program
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, Exercise, GuestFailure, Lab, exercise, report_of

ACTIVITIES = ("idle", "dma", "storm", "held")
DEVICE = "avocado_tests.busy_edu:BusyEdu"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

NOTHING_LEFT = {
    "registers": {"identification": 0x010000ED},
    "interrupts": False,
    "bytes_written": 0,
    "work": 0,
    "wrong": [],
}


class Resets(GuestTest):
    """
    :avocado: tags=edu,reset,kind:edu
    """

    # -- by the guest, with the driver's program running through the reset ----------------------------------------

    def test_function_level_reset(self) -> None:
        self.reset_by_the_guest("flr")

    def test_power_states(self) -> None:
        """From D3hot to D0.

        :avocado: tags=nightly
        """
        self.reset_by_the_guest("pm")

    def test_secondary_bus_reset(self) -> None:
        """At the root port: QEMU makes a DEVICE_RESET of it.

        :avocado: tags=nightly
        """
        self.reset_by_the_guest("bus")

    def test_driver_leaves_and_comes_back(self) -> None:
        """The program ends in the middle, vfio-pci is unbound and bound again."""
        self.reset_by_the_guest("rebind")

    def test_function_is_removed_and_found_again(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.reset_by_the_guest("remove")

    def test_two_resets_at_once(self) -> None:
        self.reset_by_the_guest("flr", "bus")

    def reset_by_the_guest(self, *methods: str) -> None:
        with self.lab() as lab:
            guest = self.guest(lab)
            seen = self.busy(guest, "reset", *methods)
            self.assertEqual(seen, dict.fromkeys(ACTIVITIES, NOTHING_LEFT))
            self.assert_state(guest, "RUNNING")

    # -- by the client ----------------------------------------------------------------------------------------------

    def test_device_reset_by_the_client(self) -> None:
        """DEVICE_RESET behind the guest's back."""
        with self.lab() as lab:
            guest = self.guest(lab)
            with self.told(guest, "outside", times=len(ACTIVITIES)) as when:
                for _ in when:
                    self.assertEqual(control(guest).call("request", name="DEVICE_RESET")["errno"], 0)
            self.assert_state(guest, "RUNNING")

    # -- while the VMM migrates -------------------------------------------------------------------------------------

    def test_resets_during_pre_copy(self) -> None:
        """A reset is the guest's affair: the VMM's migration goes on, and can be completed."""
        with self.lab() as lab:
            guest = self.guest(lab)
            for method in ("flr", "pm", "bus"):
                with self.told(guest, "--told", "--during", "dma", "--", method, times=1) as when:
                    for _ in when:
                        control(guest).call("migration_state", set="PRE_COPY")
                self.assert_can_be_saved(guest, method)
            with self.told(guest, "--during", "storm", "--", "outside", times=1) as when:
                for _ in when:
                    control(guest).call("migration_state", set="PRE_COPY")
                    self.assertEqual(control(guest).call("request", name="DEVICE_RESET")["errno"], 0)
            self.assert_can_be_saved(guest, "DEVICE_RESET")

    def assert_can_be_saved(self, guest: BootedGuest, method: str) -> None:
        """Out of pre-copy the device stops, hands over all its state, and runs again."""
        self.assert_state(guest, "PRE_COPY", method)
        control(guest).call("migration_state", set="STOP_COPY")
        saved = control(guest).call("mig_data_read", file=str(Path(self.workdir) / "state"))
        self.assertTrue(saved["complete"] and saved["bytes"], saved)
        self.assertEqual(control(guest).call("migration_state", set="RUNNING"), {"state": "RUNNING"})

    @contextmanager
    def told(self, guest: BootedGuest, *arguments: str, times: int) -> Iterator[Iterator[None]]:
        """A program that is told when to go on: the block gets its turn each time that the device is at work."""

        def turns() -> Iterator[None]:
            for _ in range(times):
                guest.wait_until_succeeds("test -e /tmp/busy", interval=0.01)
                yield
                guest.succeed("touch /tmp/go-on; while test -e /tmp/busy; do sleep 0.01; done")

        command = self.command(guest, "reset", *arguments)
        running = guest.start(command)
        yield turns()
        seen = self.seen(guest, report_of(guest, command, running.wait()))
        self.assertEqual(list(seen.values()), [NOTHING_LEFT] * times)

    # -- of the whole machine ---------------------------------------------------------------------------------------

    def test_system_reset(self) -> None:
        """By QMP, as a button does it, and twice at once."""
        self.reset_the_machine({"dma": BootedGuest.reset, "held": reset_twice})

    def test_reboot(self) -> None:
        """By the guest's kernel."""
        self.reset_the_machine({"storm": BootedGuest.reboot})

    def test_system_reset_whatever_the_device_does(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.reset_the_machine(dict.fromkeys(ACTIVITIES, BootedGuest.reset))

    def test_reboot_whatever_the_device_does(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.reset_the_machine(dict.fromkeys(ACTIVITIES, BootedGuest.reboot))

    def reset_the_machine(self, cells: Mapping[str, Callable[[BootedGuest], object]]) -> None:
        """Whatever it did, nothing is left of that; the device is found again, and works."""
        with self.lab() as lab:
            guest = self.guest(lab)
            for activity, reset in cells.items():
                before = guest.get(BOOT_ID)
                guest.start(self.command(guest, "work", activity))
                guest.wait_until_succeeds("test -e /tmp/busy", interval=0.02)
                reset(guest)
                self.assertNotEqual(guest.get(BOOT_ID), before)
                put_program(guest, "busy")
                self.assertEqual(self.busy(guest, "left"), NOTHING_LEFT, activity)
                self.assert_state(guest, "RUNNING")
            self.edu(guest, "--interrupts", "msix", "irq")
            self.edu(guest, "dma")

    def test_no_reboot(self) -> None:
        """With -no-reboot's action a reboot ends QEMU, and the server is there for the next."""
        with self.lab() as lab:
            guest = self.guest(lab)
            server = guest.device.server
            guest.qmp.command("set-action", reboot="shutdown")
            guest.start("reboot -f")
            self.assertEqual(guest.qmp.wait_event("SHUTDOWN", 30)["data"], {"guest": True, "reason": "guest-reset"})
            self.assertEqual(guest.machine.child.wait(10), 0)
            guest.devices.clear()
            following = lab.boot(iommu=True)
            put_program(following, "busy")
            following.plug(DEVICE, server=server)
            self.assertEqual(self.busy(following, "left")["wrong"], [])

    # -- what they share --------------------------------------------------------------------------------------------

    def guest(self, lab: Lab) -> BootedGuest:
        guest = lab.boot(device=DEVICE, iommu=True, migratable=True)
        put_program(guest, "busy")
        return guest

    def command(self, guest: BootedGuest, *arguments: str) -> list[str]:
        return [command_of("busy"), "--slot", guest.device.address, *arguments]

    def busy(self, guest: BootedGuest, *arguments: str) -> Mapping[str, Any]:
        """What the guest's program has seen."""
        return self.seen(guest, exercise(guest, *self.command(guest, *arguments)))

    def seen(self, guest: BootedGuest, done: Exercise) -> Mapping[str, Any]:
        self.log.info("%s: %s", done.command, dict(done.seen))
        if not done.ok:
            raise GuestFailure(f"{done.command!r}: {done.verdict}", evidence=guest.evidence())
        return done.seen

    def assert_state(self, guest: BootedGuest, state: str, after: str = "") -> None:
        """A reset leaves the migration state machine where it was."""
        self.assertEqual(control(guest).call("migration_state"), {"state": state}, after)


def reset_twice(guest: BootedGuest) -> None:
    guest.qmp.command("system_reset")
    guest.reset()


def control(guest: BootedGuest) -> Any:
    server = guest.device.server
    assert server is not None
    return server.control
