"""QEMU moves a guest before its memory: the disk's server at the destination waits for the pages that it wants."""

from __future__ import annotations

from dataclasses import replace

from avocado_tests.vhost_test import MIB, Bench, DiskTest
from vfio_user.harness import Deadline, Machine, Plugged, attachment_of
from vhost_user.memory.userfault import is_allowed

SLOWLY = 32 * MIB
"""Bytes a second, so that most of the memory is still to come when the guest is let go."""


class Postcopy(DiskTest):
    """
    :avocado: tags=vhost-user,blk,migration,postcopy
    """

    def test_reads_that_are_under_way_end_in_memory_that_comes_later(self) -> None:
        """
        :avocado: tags=nightly
        """
        if not is_allowed():
            self.cancel("no userfaultfd that waits for system calls too, as for an ordinary user")
        with self.bench() as bench:
            digest = bench.write()
            job = bench.begin_reading()
            self.move_by_postcopy(bench)
            done = bench.end_reading(job)
            self.assertEqual((done.exit_code, done.stdout), (0, "no wrong buffer\n"), done.stderr)
            self.assertEqual(bench.read(), digest)

    def move_by_postcopy(self, bench: Bench) -> None:
        """To another machine on the same host; both sides end with `completed`."""
        guest, lab = bench.guest, bench.lab
        (plugged,) = guest.devices
        server = lab.serve(bench.device, "destination")
        name = lab.next_name(guest.name)
        attachment = attachment_of(server.device, plugged.identity, server, plugged.place)
        spec = guest.spec.moved(name, guest.host, attachment)
        source, destination = guest.machine, lab.machine(spec, restore=True)
        for machine in (source, destination):
            # A checkpoint that was restored may have left the second and the third on.
            wanted = {"events": True, "mapped-ram": False, "x-ignore-shared": False, "postcopy-ram": True}
            capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
            machine.qmp.command("migrate-set-capabilities", capabilities=capabilities)
            machine.qmp.events.forget("MIGRATION")
        source.qmp.execute("migrate-set-parameters", {"max-bandwidth": SLOWLY, "max-postcopy-bandwidth": SLOWLY})
        destination.qmp.execute("migrate-incoming", {"uri": "tcp:127.0.0.1:0", "exit-on-error": False})
        destination.qmp.command("cont")  # as soon as the guest has come, and not when all of it has
        (where,) = destination.qmp.command("query-migrate")["socket-address"]
        source.qmp.execute("migrate", {"uri": f"tcp:127.0.0.1:{where['port']}"})
        self.await_status(source, "active")
        source.qmp.command("migrate-start-postcopy")
        for machine in (source, destination):
            self.await_status(machine, "completed")
        self.log.info("%s", source.qmp.command("query-migrate"))
        self.assertTrue(destination.qmp.command("query-status")["running"])
        moved: list[Plugged] = [replace(plugged, server=server, attachment=attachment)]
        guest.continue_on(destination, spec, moved)
        assert plugged.server is not None
        lab.end(source, [plugged.server])

    def await_status(self, machine: Machine, status: str) -> None:
        """Of a migration, as QEMU tells it."""
        deadline = Deadline(120.0)
        while (told := machine.qmp.wait_event("MIGRATION", deadline.remaining)["data"]["status"]) != status:
            self.assertNotIn(told, ("failed", "cancelled", "postcopy-paused"))
