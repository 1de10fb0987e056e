"""The PCI-IDIO-16 under the kernel's own driver, gpio-pci-idio-16, and libgpiod; the host is what is wired to it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from userdev.control import ControlClient
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, BootOptions, Job, Lab, two_hosts
from vfio_user.interposer.control.client import InterposerControl

CHIP = "gpiochip0"
EDGES = "/tmp/edges"
OUTPUTS, INPUTS = 0, 16
"""The first line of each in the driver's numbering."""

KEPT_ALIVE = (
    "vfio-user interpose --listen {socket} --server-command 'vfio-user serve {gpio} --fd {fd}' --keep-alive"
    " --control {folder}/interposer --faults {folder}/faults"
)
LATE = """
rules:
  - match: {direction: to-client, kind: reply, region: BAR2}
    act: {delay: {seconds: 0.002, jitter: 0.004}}
"""


@dataclass
class Wired:
    """A guest with a card, and the folder of the control sockets of its lines' other side: each host's has its name."""

    lab: Lab
    guest: BootedGuest
    folder: Path

    @property
    def control(self) -> Path:
        """That of the server where the guest is: one that moves leaves the old server its own."""
        return self.folder / self.guest.host.name

    def ask(self, command: str, **parameters: Any) -> dict[str, Any]:
        """Do something on the host's side of the card."""
        with ControlClient(self.control) as outside:
            lines: dict[str, Any] = outside.call(command, **parameters)
            return lines

    def watching(self) -> ControlClient:
        """A connection that is told of outputs and of interrupts taken."""
        watcher = ControlClient(self.control, timeout=20 * self.guest.patience)
        watcher.call("watch")
        return watcher


class Gpio(GuestTest):
    """
    :avocado: tags=gpio
    """

    def test_outputs_are_seen_outside(self) -> None:
        with self.card() as card, card.watching() as watcher:
            for line in range(16):
                self.hold(card.guest, f"{OUTPUTS + line}=1")
                self.assertEqual(watcher.next_event()["changed"], 1 << line)
                card.guest.succeed("killall gpioset")
            self.assertEqual(card.ask("get")["outputs"], 0xFFFF)
            self.hold(card.guest, *(f"{OUTPUTS + line}={line & 1}" for line in range(16)))
            card.guest.wait_until_succeeds("pidof gpioset", interval=0.01)
            seen = [watcher.next_event()["outputs"]]
            while seen[-1] != 0xAAAA:
                seen.append(watcher.next_event()["outputs"])
            self.assertEqual(card.ask("get")["outputs"], 0xAAAA)

    def test_inputs_are_seen_by_the_guest_which_cannot_drive_them(self) -> None:
        with self.card() as card:
            lines = [str(INPUTS + line) for line in range(16)]
            for value in (0x0000, 0xFFFF, 0xA5C3, *(1 << line for line in range(16))):
                card.ask("set", inputs=value)
                read = card.guest.succeed(["gpioget", "--numeric", "-c", CHIP, *lines]).split()
                self.assertEqual(read, [str(value >> line & 1) for line in range(16)], hex(value))
            card.guest.fail(["gpioset", "-t", "0", "-c", CHIP, f"{INPUTS}=1"])

    def test_every_edge_is_an_event(self) -> None:
        """As many as the outside made, in order, by INTx."""
        with self.card() as card, card.watching() as watcher:
            monitor = self.monitor(card, line=5, count=20)
            for number in range(20):
                self.toggle(card, watcher, 5, (number + 1) % 2, number + 1)
            monitor.wait()
            self.assertEqual(self.edges(card), ["rising", "falling"] * 10)
            line = card.guest.succeed(f"grep {card.guest.device.address} /proc/interrupts | head -n 1")
            self.assertIn("IO-APIC", line)
            self.assertGreaterEqual(int(line.split()[1]), 20)  # a level that falls late comes twice, and tells nothing

    def test_a_reset_drops_the_outputs_and_the_driver_comes_back(self) -> None:
        """The driver leaves, the kernel resets the card, over its bus, since it has no reset of its own; all is new."""
        with self.card() as card, card.watching() as watcher:
            guest, address = card.guest, card.guest.device.address
            card.ask("set", inputs=0x0021)
            self.hold(guest, f"{OUTPUTS + 3}=1")
            self.assertEqual(watcher.next_event()["outputs"], 1 << 3)
            guest.succeed("killall gpioset", f"echo {address} > /sys/bus/pci/drivers/pci-idio-16/unbind")
            self.assertEqual(card.ask("get")["outputs"], 1 << 3)
            guest.succeed(f"echo 1 > {guest.device.sysfs}/reset")
            lines = card.ask("get")
            self.assertEqual((lines["outputs"], lines["interrupt_enabled"], lines["inputs"]), (0, False, 0x0021))
            guest.succeed(f"echo {address} > /sys/bus/pci/drivers/pci-idio-16/bind")
            self.map_interrupts(guest)
            monitor = self.monitor(card, line=9, count=2)
            for number, value in enumerate((1, 0), 1):
                self.toggle(card, watcher, 9, value, number)
            monitor.wait()
            self.assertEqual(self.edges(card), ["rising", "falling"])

    def test_lines_and_events_survive_a_migration(self) -> None:
        """Outputs stay driven, inputs stay as they are wired, and the monitor in the guest goes on counting."""
        with two_hosts() as hosts, self.card(migratable=True, host=hosts.a) as card:
            self.hold(card.guest, f"{OUTPUTS + 3}=1", f"{OUTPUTS + 12}=1")
            monitor = self.monitor(card, line=9, count=6)
            with card.watching() as watcher:
                for number, value in enumerate((1, 0, 1), 1):
                    self.toggle(card, watcher, 9, value, number)
            report = card.lab.migrate(card.guest, to=hosts.b)
            self.assertTrue(report.ok, f"{report.verdict}: {report.reason}")
            lines = card.ask("get")
            self.assertEqual((lines["outputs"], lines["inputs"]), (1 << 3 | 1 << 12, 1 << 9))
            self.assertTrue(lines["interrupt_enabled"])
            with card.watching() as watcher:
                for number, value in enumerate((0, 1, 0), 4):
                    self.toggle(card, watcher, 9, value, number)
            monitor.wait()
            self.assertEqual(self.edges(card), ["rising", "falling"] * 3)

    def test_lines_survive_an_upgrade_of_the_server(self) -> None:
        """Restarted on purpose behind an interposer that keeps it alive; replies are late all the time."""
        with self.card(server=KEPT_ALIVE, faults=LATE) as card, card.watching() as watcher:
            self.hold(card.guest, f"{OUTPUTS + 3}=1")
            self.assertEqual(watcher.next_event()["outputs"], 1 << 3)
            card.ask("set", inputs=0x8001)
            with InterposerControl(card.control.with_name("interposer")) as interposer:
                self.assertTrue(interposer.call("restart", hand_over=True)["handed_over"])
            self.assertEqual((card.ask("get")["outputs"], card.ask("get")["inputs"]), (1 << 3, 0x8001))
            read = card.guest.succeed(["gpioget", "--numeric", "-c", CHIP, str(INPUTS), str(INPUTS + 15)])
            self.assertEqual(read.split(), ["1", "1"])

    # -- what they share --------------------------------------------------------------------------------------------

    @contextmanager
    def card(self, *, server: str = "", faults: str = "", **boot: Unpack[BootOptions]) -> Iterator[Wired]:
        """`server` is a command line before the card's own, {gpio}, with {folder} for its files."""
        with tempfile.TemporaryDirectory(prefix="vfu-") as scratch, self.lab() as lab:
            Path(scratch, "faults").write_text(faults)
            device = f"gpio --control {scratch}/{{host}}"
            device = server.replace("{gpio}", device).replace("{folder}", scratch) or device
            guest = lab.boot(device=device, image="storage", **boot)
            guest.succeed("modprobe gpio-pci-idio-16")
            guest.wait_until_succeeds(f"test -e /dev/{CHIP}", interval=0.01)
            self.map_interrupts(guest)
            yield Wired(lab, guest, Path(scratch))

    def map_interrupts(self, guest: BootedGuest) -> None:
        """Ask once for the interrupt of every line, as Linux 6.12 has to be.

        All lines share one status bit, so regmap-irq handles all 16 at every interrupt, and takes those that nobody has
        asked for ever for interrupt 0: that is the timer's, which has no thread function, and the kernel oopses.
        """
        every = [str(INPUTS + line) for line in range(16)]
        guest.succeed(["gpiomon", "-c", CHIP, "--idle-timeout", "1ms", *every])

    def hold(self, guest: BootedGuest, *settings: str) -> None:
        """Drive outputs until gpioset is ended."""
        guest.start(["gpioset", "-c", CHIP, *settings], 600)

    def monitor(self, card: Wired, *, line: int, count: int) -> Job:
        """Gpiomon on one line, which ends after so many events. It is watching when this returns."""
        job = card.guest.start(f"gpiomon -c {CHIP} -n {count} {INPUTS + line} > {EDGES}", 120)
        watched = f"gpioinfo -c {CHIP} | grep -q 'line *{INPUTS + line}:.*edges=both'"
        card.guest.wait_until_succeeds(watched, interval=0.02)
        return job

    def toggle(self, card: Wired, watcher: ControlClient, line: int, value: int, count: int) -> None:
        """Change an input, and wait until the guest has taken the interrupt and told of so many edges.

        The driver looks at the line after it has acknowledged: a change before that would make two edges one.
        """
        card.ask("set", input=line, value=value)
        while watcher.next_event().get("interrupt") != "cleared":
            pass
        card.guest.wait_until_succeeds(f"test $(wc -l < {EDGES}) -ge {count}", interval=0.005)

    def edges(self, card: Wired) -> list[str]:
        """The kinds of gpiomon's events."""
        return re.findall(r"\b(rising|falling)\b", card.guest.get(EDGES).decode())
