"""libvfio-user's own sample device under a real guest: a server in another language, of which we know the protocol."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Unpack
from unittest import mock

from avocado_tests.migration_faults import AT_EVERY_PHASE
from userdev.errors import UserError
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import (
    BootedGuest,
    BootOptions,
    Device,
    GuestFailure,
    Interposition,
    Lab,
    Verdict,
    known_issue,
    reference_program,
    two_hosts,
)

GPIO = "gpio-pci-idio-16"
"""The sample."""
CHIP = "gpiochip0"
INPUTS = [str(line) for line in range(16, 32)]
"""The lines' numbers in the driver; the sample has nothing wired to them."""

SYSTEM_PERIPHERAL = 0x088000
"""A class: it has none of its own, and to such a device Linux gives no addresses when it is plugged in."""


class Reference(GuestTest):
    """
    :avocado: tags=gpio,libvfio-user
    """

    def test_its_driver_reads_and_it_goes_on_counting_on_another_host(self) -> None:
        """The migration is by the v1 region: nothing of ours is in the server."""
        with two_hosts() as hosts, self.gpio(migratable=True, host=hosts.a) as (lab, guest):
            self.read_inputs(guest)
            self.assertEqual(self.counted(guest, 7), [0, 0, 0, 1, 1, 1, 2])
            report = lab.migrate(guest, to=hosts.b)
            self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
            self.assertEqual(self.counted(guest, 5), [2, 2, 3, 3, 3])
            self.read_inputs(guest)

    def test_it_moves_between_hosts_reached_by_ssh(self) -> None:
        """Its program is put on them, as no host has what this one has built.

        :avocado: tags=nightly,ssh
        """
        program = reference_program(GPIO, progress=self.log.info)
        with two_hosts("ssh") as hosts, self.gpio(program, migratable=True, host=hosts.a) as (lab, guest):
            self.assertEqual(self.counted(guest, 5), [0, 0, 0, 1, 1])
            for to, counted in ((hosts.b, [1, 2, 2]), (hosts.a, [2, 3, 3])):
                report = lab.migrate(guest, to=to)
                self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
                self.assertEqual(self.counted(guest, 3), counted)

    def test_it_stays_where_the_other_host_does_not_have_the_program(self) -> None:
        """One that is not ours to put there.

        :avocado: tags=nightly,ssh
        """
        with two_hosts("ssh") as hosts, TemporaryDirectory(prefix="vfu-") as folder:
            program = Path(folder) / "server"
            shutil.copy(reference_program(GPIO, progress=self.log.info), program)
            missing = f"cannot start {program}"
            with self.lab() as lab, self.assertRaisesRegex(UserError, f"did not start on a: {missing}"):
                lab.boot(self.device(program), image="storage", host=hosts.a)
            hosts.a.provide(program)
            with self.gpio(program, migratable=True, host=hosts.a) as (lab, guest):
                report = lab.migrate(guest, to=hosts.b)
                self.assertEqual(report.verdict, Verdict.STAYED, report.reason)
                self.assertIn(f"did not start on b: {missing}", report.reason)
                self.assertEqual(self.counted(guest, 4), [0, 0, 0, 1])
                hosts.b.provide(program)
                self.assertTrue(lab.migrate(guest, to=hosts.b).ok)
                self.assertEqual(self.counted(guest, 2), [1, 1])

    def test_it_stays_and_counts_on_where_its_migration_fails(self) -> None:
        """In each phase, with the way back of the v1 region.

        :avocado: tags=nightly
        """
        cases = [case for case in AT_EVERY_PHASE if case.fault in ("cancelled", "the destination's server dies")]
        with two_hosts() as hosts, self.gpio(migratable=True, host=hosts.a) as (lab, guest):
            for number, case in enumerate(cases):
                report = case.migrate(lab, guest, hosts)
                self.assertEqual(report.verdict, case.verdict, f"{case}: {report.reason}")
                self.assertEqual(self.counted(guest, 1), [number // 3], case)
            self.read_inputs(guest)

    def test_an_upgrade_keeps_its_count_and_a_crash_its_driver(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.gpio(interpose=Interposition(keep_alive=True)) as (_, guest):
            server = guest.devices[0].server
            assert server is not None
            self.assertEqual(self.counted(guest, 4), [0, 0, 0, 1])
            self.assertTrue(server.control.call("restart", hand_over=True)["handed_over"])
            self.assertEqual(self.counted(guest, 3), [1, 1, 2])
            server.kill()
            self.assertEqual(self.counted(guest, 4), [0, 0, 0, 1])
            self.read_inputs(guest)

    def test_a_device_without_a_class_is_not_seen_and_the_reason_told(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest = lab.boot()
            soon = mock.patch("vfio_user.harness.booted_guest._PLUG_SECONDS", 1.0)
            with soon, self.assertRaisesRegex(GuestFailure, "no class"):
                guest.plug(f"{shlex.quote(str(reference_program(GPIO)))} {{socket}}")

    def test_a_server_that_qemu_does_not_survive(self) -> None:
        """The other sample: QEMU never has it, and the guest goes on.

        :avocado: tags=nightly
        """
        with self.gpio() as (lab, guest):
            if not known_issue("region-info-crash").affects(lab.qemu.version):
                self.cancel("this QEMU takes it, or refuses it by itself")
            with self.assertRaisesRegex(UserError, "does not survive"):
                guest.plug(f"{shlex.quote(str(reference_program('server')))} {{socket}}")
            self.read_inputs(guest)

    def device(self, program: Path) -> Device:
        command = f"{shlex.quote(str(program))} {{socket}}"
        return Device(command=command, properties={"x-pci-class-code": SYSTEM_PERIPHERAL})

    @contextmanager
    def gpio(self, program: Path | None = None, **boot: Unpack[BootOptions]) -> Iterator[tuple[Lab, BootedGuest]]:
        """A guest with the sample, from wherever its program is, and the sample's driver."""
        program = program or reference_program(GPIO, progress=self.log.info)
        with self.lab() as lab:
            guest = lab.boot(device=self.device(program), image="storage", **boot)
            guest.succeed("modprobe gpio-pci-idio-16")
            guest.wait_until_succeeds(f"test -e /dev/{CHIP}", interval=0.01)
            yield lab, guest

    def read_inputs(self, guest: BootedGuest) -> None:
        """By the driver, which is bound."""
        self.assertEqual(guest.succeed(["gpioget", "--numeric", "-c", CHIP, *INPUTS]).split(), ["0"] * 16)

    def counted(self, guest: BootedGuest, count: int) -> list[int]:
        """What its first port says, read so many times: a third of how often it has been."""
        ports = f"/sys/bus/pci/devices/{guest.device.address}/resource2"
        return list(guest.call(read_port, ports, count, timeout=30))


def read_port(path: str, count: int) -> list[int]:
    """Run in the guest: an access of one byte each, as the file of an I/O BAR has it."""
    import os

    ports = os.open(path, os.O_RDONLY)
    try:
        return [os.pread(ports, 1, 0)[0] for _ in range(count)]
    finally:
        os.close(ports)
