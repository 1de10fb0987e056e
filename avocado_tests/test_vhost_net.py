"""A network card behind vhost-user, used by the guest's own driver: the station behind it answers, and can go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from userdev.control import ControlClient
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, Deadline, DeviceServer, Mode, Verdict, Workload

STATION, GUEST = "192.0.2.1", "192.0.2.15"
MAC = "52:55:c0:00:02:01"
DEVICE = f"vhost-user-net --ip {STATION} --control {{scratch}}/card"


def join(address: str, ip: str) -> str:
    """In the guest: give the card at a PCI address an IPv4 address and bring it up; its name."""
    import subprocess
    from pathlib import Path

    (interface,) = Path(f"/sys/bus/pci/devices/{address}").glob("virtio*/net/*")
    for words in (f"addr replace {ip}/24 dev {interface.name}", f"link set {interface.name} up"):
        subprocess.run(["ip", *words.split()], check=True)
    return interface.name


def ping(station: str, count: int, size: int, seconds: float) -> int:
    """In the guest: how many of so many pings of `size` bytes were answered, each with what was sent."""
    import os
    import socket
    import struct
    import time

    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as wire:
        for number in range(count):
            data = os.urandom(size)
            message = struct.pack("!BBHHH", 8, 0, 0, 4711, number) + data
            total = sum(struct.unpack(f"!{len(message) // 2}H", message))
            total = (total & 0xFFFF) + (total >> 16)
            check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            wire.sendto(message[:2] + struct.pack("!H", check) + message[4:], (station, 0))
            wanted, end = struct.pack("!HH", 4711, number) + data, time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0:
                wire.settimeout(left)
                try:
                    packet = wire.recv(65536)
                except TimeoutError:
                    break
                if packet[20] == 0 and packet[24:] == wanted:
                    answered += 1
                    break
    return answered


def neighbour(station: str) -> str:
    """In the guest: the MAC address that ARP has found for an address."""
    with open("/proc/net/arp") as table:
        return next((line.split()[3] for line in table if line.split()[0] == station), "none")


def wait_for_carrier(interface: str, wanted: bool, seconds: float) -> bool:
    """In the guest: whether the card's link is, in so many seconds, as it is wanted."""
    import time
    from pathlib import Path

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (Path("/sys/class/net") / interface / "carrier").read_text().strip() == str(int(wanted)):
            return True
        time.sleep(0.01)
    return False


class NetworkCardBehindVhostUser(GuestTest):
    """
    :avocado: tags=vhost-user,net
    """

    def test_the_station_answers_arp_and_ping(self) -> None:
        with self.card() as guest:
            self.join(guest)
            self.assertEqual(self.ping(guest, 20, 56), 20)
            self.assertEqual(self.ping(guest, 3, 1472), 3)
            self.assertEqual(guest.call(neighbour, STATION), MAC)
            guest.qmp.command("stop")
            guest.qmp.command("cont")
            self.assertEqual(self.ping(guest, 3, 56), 3)
            guest.reset()
            self.join(guest)
            self.assertEqual(self.ping(guest, 3, 56), 3)

    def test_a_link_that_is_down_carries_nothing(self) -> None:
        with self.card() as guest, ControlClient(self.server(guest).path.with_name("card")) as control:
            self.join(guest)
            self.assertEqual(self.ping(guest, 1, 56), 1)
            control.call("link", up=False)
            self.assertEqual(self.ping(guest, 1, 56, 0.2), 0)
            self.assertGreaterEqual(control.call("link", up=True)["counts"]["dropped_link_down"], 1)
            self.assertEqual(self.ping(guest, 1, 56), 1)

    def test_the_guest_sees_its_link_go_with_the_server_and_come_with_the_next(self) -> None:
        with self.card() as guest:
            interface = self.join(guest)
            self.assertEqual(self.ping(guest, 1, 56), 1)
            self.server(guest).kill()
            self.assert_carrier(guest, interface, False)
            self.server(guest).restart()
            self.assert_carrier(guest, interface, True)
            self.assertEqual(self.ping(guest, 3, 56), 3)

    def test_it_goes_and_another_comes(self) -> None:
        with self.card() as guest:
            self.join(guest)
            self.assertEqual(self.ping(guest, 1, 56), 1)
            guest.unplug(guest.device)
            card = guest.plug(DEVICE)
            guest.call(join, card.address, GUEST)
            self.assertEqual(self.ping(guest, 3, 56), 3)

    def test_it_moves_while_it_is_used_and_its_driver_says_where_it_is_now(self) -> None:
        """QEMU moves it and loses no ping; the driver announces its address, which a switch would learn by."""
        with self.lab() as lab, TemporaryDirectory(prefix="vfu-") as sockets:
            hosts = lab.hosts()
            device = f"vhost-user-net --ip {STATION} --control {sockets}/{{host}}"
            guest = lab.boot(device=device, migratable=True, host=hosts.a)
            pinging = Workload(guest, "ping")
            for host in (hosts.b, hosts.a):
                before = pinging.look().seen["answers"]
                report = lab.migrate(guest, to=host)
                self.assertEqual((report.verdict, report.mode), (Verdict.MIGRATED, Mode.NATIVE), report.reason)
                with ControlClient(Path(sockets, host.name)) as control:
                    deadline = Deadline(20 * guest.patience)
                    while not control.call("status")["counts"].get("announced"):
                        self.assertFalse(deadline.passed, control.call("status"))
                        pinging.look()
                self.assertGreater(pinging.look().seen["answers"], before)
            done = pinging.end()
            self.assertTrue(done.ok, done.verdict)

    @contextmanager
    def card(self) -> Iterator[BootedGuest]:
        """A guest with a card of ours beside the machine's own."""
        with self.lab() as lab:
            yield lab.boot(device=DEVICE)

    def server(self, guest: BootedGuest) -> DeviceServer:
        assert guest.device.server is not None
        return guest.device.server

    def join(self, guest: BootedGuest) -> str:
        interface: str = guest.call(join, guest.device.address, GUEST)
        return interface

    def ping(self, guest: BootedGuest, count: int, size: int, seconds: float = 5.0) -> int:
        answered: int = guest.call(ping, STATION, count, size, seconds * guest.patience, timeout=60)
        return answered

    def assert_carrier(self, guest: BootedGuest, interface: str, wanted: bool) -> None:
        self.assertTrue(guest.call(wait_for_carrier, interface, wanted, 20 * guest.patience, timeout=40))
