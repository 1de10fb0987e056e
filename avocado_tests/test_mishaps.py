"""What befalls a guest is named at once, whatever is waited for: pretended panics, and real ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from userdev.errors import UserdevError
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, Conductor, Guest, GuestCrash, Lab, Phase, Verdict, Workload

# In a guest: the byte that a kernel's pvpanic driver writes when it panics (QEMU's docs/specs/pvpanic.rst).
TELL_PVPANIC = "python3 -c \"import os; os.pwrite(os.open('/dev/port', os.O_WRONLY), bytes([1]), 0x505)\""
PANIC = "echo '<0>Kernel panic - not syncing: pretended' > /dev/kmsg"
OOPS = "echo '<0>Oops: pretended: 0000 [#1]' > /dev/kmsg"

# What a guest does, and the words for it.
MISHAPS: Mapping[str, str] = MappingProxyType(
    {
        PANIC: "panicked: Kernel panic - not syncing: pretended",
        TELL_PVPANIC: "panicked",
        OOPS: "oopsed: Oops: pretended",
        "reboot -f": "was reset, which nobody had asked for: guest-reset",
        "poweroff -f": "powered itself off",
    }
)
PATIENCE = 15.0
"""Seconds that it may take to be told, on a busy host; a command that hangs is waited for five times as long."""


class Mishaps(GuestTest):
    """
    :avocado: tags=mishap,edu
    """

    def test_a_command_that_hangs_in_a_dead_guest(self) -> None:
        with self.lab() as lab:
            for cause, named in MISHAPS.items():
                guest = lab.boot()
                self.assert_named(named, guest.start(f"{cause}; exec sleep 600").wait)
                if cause != OOPS:  # then most of a kernel lives on
                    self.assert_named(named, lambda: guest.run("true"))  # noqa: B023  # it is called at once

    def test_an_image_that_has_no_room_in_its_memory(self) -> None:
        with self.lab() as lab:
            self.assert_named("Initramfs unpacking failed", lambda: lab.boot(image="storage", memory=256, fresh=True))

    def test_a_command_by_ssh(self) -> None:
        self.by_ssh(PANIC, "poweroff -f")

    def test_a_command_by_ssh_whatever_befalls_the_guest(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.by_ssh(*MISHAPS)

    def by_ssh(self, *causes: str) -> None:
        with self.lab() as lab:
            for cause in causes:
                guest = lab.boot().ssh()
                self.assert_named(MISHAPS[cause], guest.start(f"{cause}; exec sleep 600").wait)

    def test_qemu_ends_under_a_command(self) -> None:
        ways: Sequence[Callable[[BootedGuest], Guest]] = (lambda guest: guest, BootedGuest.ssh)
        with self.lab() as lab:
            for way in ways:
                booted = lab.boot()
                running = way(booted).start("sleep 600")
                os.kill(booted.machine.child.pid, signal.SIGKILL)
                self.assert_named("QEMU was killed by SIGKILL", running.wait)

    def test_what_happens_between_two_commands(self) -> None:
        """It is told to whoever wants something next, an oops only once."""
        with self.lab() as lab:
            guest = lab.boot()
            guest.start(OOPS)
            guest.machine.console.wait_for("Oops: pretended.*\n")
            self.assert_named("oopsed", lambda: guest.run("true"))
            guest.succeed("true")

    def test_what_nobody_waits_for_is_told_at_the_end(self) -> None:
        folder = Path(self.outputdir) / "run"
        with self.assertRaisesRegex(GuestCrash, "oopsed"), Lab("end", folder=folder) as lab:
            guest = lab.boot()
            guest.start(OOPS)
            guest.machine.console.wait_for("Oops: pretended.*\n")

    def test_a_device_that_the_guest_will_never_let_go(self) -> None:
        """And that goes all the same, as at a reset: unplugged once more, it leaves nothing behind."""
        with self.lab() as lab:
            guest = lab.boot(device="vhost-user-blk --image memory:8M")
            guest.start(PANIC)
            guest.machine.console.wait_for("Kernel panic")
            self.assert_named("panicked", lambda: guest.unplug(guest.device))
            guest.qmp.wait_event("DEVICE_DELETED", PATIENCE)  # in truth the guest lives
            device, server = guest.device, guest.device.server
            assert server is not None
            guest.unplug(device)
            self.assertEqual((guest.devices, server.child.running), ([], False))
            labels = [chardev["label"] for chardev in guest.qmp.command("query-chardev")]
            self.assertEqual([label for label in labels if label.startswith(device.identity)], [])

    def test_a_guest_that_was_reset_comes_up_again(self) -> None:
        """And is as good as before.

        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest = lab.boot(device="edu", iommu=True)
            began = guest.machine.console.position
            self.assert_named("was reset", lambda: guest.run("reboot -f; exec sleep 600"))
            guest.come_up(began)
            self.edu(guest, "irq")

    def test_a_migration(self) -> None:
        """The source's guest dies while it is copied: that is the verdict, before anything is given up for it."""
        with self.lab() as lab:
            pair = lab.hosts()
            guest = lab.boot(device="edu", migratable=True, host=pair.a)

            def at(phase: Phase) -> None:
                if phase is Phase.PRE_COPY:
                    guest.start(TELL_PVPANIC)
                    guest.qmp.wait_event("GUEST_PANICKED")

            began = time.monotonic()
            report = lab.migrate(guest, to=pair.b, conductor=Conductor(at))
            self.assertLess(time.monotonic() - began, PATIENCE)
            self.assertEqual(report.verdict, Verdict.DEAD, report.reason)
            self.assertRegex(report.reason, "the guest 'guest' panicked")

    def test_the_work_of_a_soak(self) -> None:
        with self.lab() as lab:
            guest = lab.boot(device="edu", migratable=True)
            work = Workload(guest, "dma")
            threading.Timer(0.2, lambda: guest.start(TELL_PVPANIC)).start()

            def look_until_it_dies() -> None:
                while True:
                    work.look()

            self.assert_named("panicked", look_until_it_dies)

    def assert_named(self, named: str, wait: Callable[[], object]) -> None:
        """`wait` fails soon, and says why."""
        began = time.monotonic()
        with self.assertRaises(UserdevError) as failure:
            wait()
        self.assertLess(time.monotonic() - began, PATIENCE)
        self.assertIn(named, str(failure.exception))
