"""Devices that come and go while the guest runs, and use what they have while they are there.

The device has no MSI-X: the harness unplugs no other (known issue unplug-abort).
"""

from __future__ import annotations

from collections.abc import Callable

import psutil

from avocado_tests.leftovers import anonymous, client_things
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, Deadline, DeviceServer, GuestFailure, Plugged

DEVICE = "edu --msix 0"
FIRST_ROUNDS = 10
"""After so many everything has been allocated that is kept."""
FIRST_OF_MANY = 100
"""Python looks for what refers to itself, as an ended session does, once there is much of it: for the first time after
most of a hundred rounds, and from peak to peak nothing grows."""

# What the rounds after the first may add. Python's heap takes pieces of 256 KiB; QEMU keeps the code of what the guest
# does for the first time. A session that a server does not free is more than 100 KiB, each time.
SERVER_GROWTH = 1024  # KiB
QEMU_GROWTH = 4096


class HotPlug(GuestTest):
    """
    :avocado: tags=edu,hotplug
    """

    def test_again_and_again_on_the_same_server(self) -> None:
        """A register access and an interrupt cause in every round; neither server nor QEMU grows."""
        self.again_and_again(FIRST_ROUNDS, 15)

    def test_a_hundred_times_on_the_same_server(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.again_and_again(FIRST_OF_MANY, 100)

    def again_and_again(self, first: int, more: int) -> None:
        with self.lab() as lab:
            server = lab.serve(DEVICE)
            guest = lab.boot(iommu=True)
            self.plug_and_unplug(guest, server, first)
            sizes = [Size(server.child.pid, SERVER_GROWTH), Size(guest.machine.child.pid, QEMU_GROWTH)]
            self.plug_and_unplug(guest, server, more)
            for size in sizes:
                self.log.info("%s", size.describe())
                self.assertEqual(size.excess(), "")
            self.assert_clean(server)

    def plug_and_unplug(self, guest: BootedGuest, server: DeviceServer, rounds: int) -> None:
        for number in range(rounds):
            device = guest.plug(DEVICE, server=server)
            guest.call(use, device.sysfs, number)
            guest.unplug(device, keep_server=True)
            self.assert_free(server)

    def test_a_new_server_each_time(self) -> None:
        """The device of the round before leaves nothing behind: the value that was written is gone with its server."""
        with self.lab() as lab:
            guest = lab.boot(iommu=True)
            qemu = psutil.Process(guest.machine.child.pid)
            descriptors = []
            for number in range(5):
                server = lab.serve(DEVICE, f"server{number}")
                device = guest.plug(DEVICE, server=server)
                self.assertEqual(guest.call(use, device.sysfs, number), 0)
                guest.unplug(device, keep_server=True)
                self.assert_free(server)
                self.assert_clean(server)
                lab.end(None, [server])
                descriptors.append(qemu.num_fds())
            self.assertEqual(set(descriptors[1:]), {descriptors[1]})

    def test_with_all_that_a_driver_does(self) -> None:
        """Interrupts and DMA in every round, and a driver that has to be told that its device goes."""
        with self.lab() as lab:
            server = lab.serve(DEVICE)
            guest = lab.boot(iommu=True)
            for kind in ("msi", "intx", "msi"):
                device = guest.plug(DEVICE, server=server)
                self.edu(guest, "--interrupts", kind, "irq", device=device)
                self.edu(guest, "dma", device=device)
                guest.unplug(device, keep_server=True)
                self.assert_free(server)
            self.assert_clean(server)

    def test_two_devices_in_turn_and_at_once(self) -> None:
        """Taking one out does nothing to the other; both can go in one moment."""
        with self.lab() as lab:
            servers = [lab.serve(DEVICE), lab.serve(DEVICE)]
            guest = lab.boot(iommu=True)
            for number in range(4):
                stays, leaves = (guest.plug(DEVICE, server=server) for server in servers)
                guest.call(use, stays.sysfs, 2 * number + 1)
                guest.call(use, leaves.sysfs, number)
                guest.unplug(leaves, keep_server=True)
                self.assertEqual(guest.call(use, stays.sysfs, number), 2 * number + 1)
                again = guest.plug(DEVICE, server=servers[1])
                self.unplug_at_once(guest, stays, again)
                for server in servers:
                    self.assert_free(server)
            for server in servers:
                self.assert_clean(server)

    def unplug_at_once(self, guest: BootedGuest, *devices: Plugged) -> None:
        for device in devices:
            guest.qmp.command("device_del", id=device.identity)
        for device in devices:
            guest.qmp.wait_event("DEVICE_DELETED", 60, {"device": device.identity})
            guest.devices.remove(device)

    def test_under_traffic(self) -> None:
        """A program that never stops using the device has it taken away; the next device works."""
        with self.lab() as lab:
            server = lab.serve(DEVICE)
            guest = lab.boot(iommu=True)
            for _ in range(3):
                device = guest.plug(DEVICE, server=server)
                user = guest.start(["python3", "-c", USE_FOR_EVER, device.sysfs])
                guest.wait_until_succeeds("test -e /tmp/used", interval=0.02)
                guest.unplug(device, keep_server=True)
                self.assert_free(server)
                ended = user.wait()
                self.assertIn("gone after", ended.stdout, ended.describe())
            self.assert_clean(server)

    # -- the server's view --------------------------------------------------------------------------------------------

    def assert_free(self, server: DeviceServer) -> None:
        """The client is gone: its sockets, its memory and its eventfds have been let go."""
        _until(lambda: not client_things(server.child.pid), lambda: ", ".join(client_things(server.child.pid)))

    def assert_clean(self, server: DeviceServer) -> None:
        """It has had nothing to complain of: every session ended between two messages."""
        self.assertRegex(server.log.read_text(), r"\A\w+ is listening on \S+\n\Z")


class Size:
    """What a process has, to see later what was added: descriptors, and anonymous memory in KiB."""

    def __init__(self, pid: int, limit: int) -> None:
        self._process = psutil.Process(pid)
        self._limit = limit
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        return self._process.num_fds(), anonymous(self._process.pid)

    def describe(self) -> str:
        return f"{self._process.name()}: descriptors and KiB were {self._before}, are {self._now()}"

    def excess(self) -> str:
        """What is too much; "" when nothing is."""
        (fds, memory), (fds_now, memory_now) = self._before, self._now()
        return self.describe() if fds_now > fds or memory_now > memory + self._limit else ""


def _until(happened: Callable[[], bool], state: Callable[[], str], limit: float = 5.0) -> None:
    """Wait for another process, which gives no event."""
    deadline = Deadline(limit)
    while not happened():
        if deadline.passed:
            raise GuestFailure(f"after {limit:g} s the server still has of its client: {state()}")


# -- in the guest -----------------------------------------------------------------------------------------------------


def use(sysfs: str, number: int) -> int:
    """Write the complement of `number` to a register, read it back, raise and acknowledge; what was there before."""
    import mmap
    from pathlib import Path

    (Path(sysfs) / "enable").write_text("1")
    with (Path(sysfs) / "resource0").open("r+b") as bar, mmap.mmap(bar.fileno(), 4096) as mapping:
        registers = memoryview(mapping).cast("I")
        before = registers[1]
        registers[1] = number ^ 0xFFFFFFFF
        registers[0x60 // 4] = number | 0x10
        seen = registers[1], registers[0x24 // 4]
        registers[0x64 // 4] = 0xFFFFFFFF
        left = registers[0x24 // 4]
        registers.release()
    assert (*seen, left) == (number, number | 0x10, 0), (seen, left)
    (Path(sysfs) / "enable").write_text("0")
    return before


USE_FOR_EVER = """
import os, sys
count = 0
with open(f"{sys.argv[1]}/config", "rb", buffering=0) as config:
    try:
        while os.pread(config.fileno(), 4, 0) == bytes.fromhex("3412e811"):
            count += 1
            if count == 100:
                open("/tmp/used", "w").close()
    except OSError as error:
        print(error)
os.unlink("/tmp/used")
print("gone after", count)
"""
