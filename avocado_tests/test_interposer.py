"""What guests see of an interposer before their device's server: nothing, unless it was asked for."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from vfio_user.avocado_test import GuestTest
from vfio_user.harness import EXERCISES, BootedGuest, DeviceServer, Interposition, Workload, exercise
from vfio_user.interposer.replay import replay

EDU = f"{shlex.quote(sys.executable)} -m vfio_user serve edu --fd {{fd}}"
DMA_COMMAND = 0x98
CAPTURED = Interposition(capture_dma=True, capture_interrupts=True)
KEPT_ALIVE = Interposition(keep_alive=True)


class Transparent(GuestTest):
    """
    :avocado: tags=edu,interposer
    """

    def test_a_guest_sees_the_same_with_and_without_it(self) -> None:
        """Two devices of one guest, one of them behind an interposer, do everything that guests do with edu."""
        with self.lab() as lab:
            guest = lab.boot(iommu=True)
            bare, interposed = guest.plug("edu"), guest.plug("edu", interpose=True)
            program = EXERCISES["edu"]
            for part in program.parts:
                without, behind = (
                    exercise(guest, program.name, "--slot", device.address, *part.arguments)
                    for device in (bare, interposed)
                )
                self.assertEqual((behind.ok, behind.seen, behind.wrong), (without.ok, without.seen, without.wrong))
                self.assertTrue(behind.ok, behind.verdict)

    def test_a_scenario_is_what_the_guest_sees(self) -> None:
        """A reply that is corrupted on its way is a wrong value in the guest, and no other is."""
        match = {"direction": "to-client", "command": "REGION_READ", "region": "BAR0", "offset": 0x08}
        scenario = {"rules": [{"match": match, "act": {"corrupt": {"field": "data", "xor": "0x01"}}}]}
        file = Path(self.workdir) / "faults.yaml"
        file.write_text(yaml.safe_dump(scenario))
        command = (sys.executable, "-m", "vfio_user", "run", "--trace", "--faults", str(file), "--json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=self.workdir)
        self.assertEqual(done.returncode, 1, done.stderr)
        report = json.loads(done.stdout)
        wrong = [part["proves"] for part in report["parts"] if not part["ok"]]
        self.assertEqual(wrong, ["computes", "computes, and interrupts when done"])
        [trace] = report["traces"]
        counted = subprocess.run(
            (sys.executable, "-m", "vfio_user", "trace", "stats", trace, "--json"), capture_output=True, check=True
        )
        found = json.loads(counted.stdout)
        self.assertIn("compute", {row["register"] for row in found["registers"]})
        self.assertIn("MSIX 0", {row["interrupt"] for row in found["interrupts"]})


class Recorded(GuestTest):
    """
    :avocado: tags=edu,interposer
    """

    def test_a_recorded_guest_is_a_picture_and_can_be_played_again(self) -> None:
        """Every lane has something in it, and the same server does the same for the recording as for the guest."""
        with self.lab() as lab:
            guest = lab.boot("edu", interpose=CAPTURED, trace=True)
            server = guest.device.server
            assert server is not None
            assert server.trace is not None
            self.edu(guest, "irq", "--times", "2")
            self.edu(guest, "dma")
            guest.succeed("echo seen > /dev/console")
            for command in ("stop", "cont"):
                guest.qmp.command(command)
        logs = ("--qmp-log", lab.folder / "guest.qmp.log", "--console-log", guest.machine.console.timed_log)
        lanes = self.lanes(server.trace, *map(str, logs))
        self.assertEqual(lanes, {"client to server", "DMA", "interrupts", "interposer", "QMP", "console"})
        played = replay(
            server.trace, EDU, ignore=[f"BAR0:{DMA_COMMAND:#x}"]
        )  # asked until it is done, how often that may be
        self.log.info("%d messages, %d DMA writes played again", played.sent, len(played.dma_writes))
        self.assertTrue(played.same, played.difference)
        self.assertFalse(played.memory_was_mapped)

    def lanes(self, trace: Path, *logs: str) -> set[str]:
        """The lanes of its picture that have something in them."""
        picture = trace.with_suffix(".perfetto.json")
        command = (sys.executable, "-m", "vfio_user", "trace", "export", str(trace), "--format", "perfetto")
        done = subprocess.run((*command, "-o", str(picture), *logs), capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        events = json.loads(picture.read_text())["traceEvents"]
        names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
        return {names[event["tid"]] for event in events if event["ph"] in "Xi"}


class Survival(GuestTest):
    """Guests whose servers die or are replaced all the time, and who must not notice.

    :avocado: tags=edu,interposer,survival
    """

    def test_servers_are_killed_every_second(self) -> None:
        self.kill(times=4, every=1.0)

    def test_servers_are_killed_for_minutes(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.kill(times=60, every=2.0)

    def kill(self, *, times: int, every: float) -> None:
        """Registers and DMA of a device that keeps what was acknowledged: nothing is wrong, and nothing is lost."""
        with tempfile.TemporaryDirectory(prefix="vfu-") as folder, self.lab() as lab:
            device = f"avocado_tests.durable_edu:DurableEdu --file {folder}/"
            guest = lab.boot(devices=[device + "registers", device + "dma"], interpose=KEPT_ALIVE)
            with self.working(guest, ("registers", "dma")):
                self.again_and_again(guest, times, every, killed_once_up)
            for server in servers(guest):
                sessions, survived = server.control.call("status")["sessions"], server.control.survival()
                self.log.info("%s: %s", server.name, survived)
                self.assertEqual((sessions, survived["crashes"], survived["failed"]), (1, times, 0))

    def test_servers_are_replaced_on_purpose(self) -> None:
        """State is handed over: registers, interrupts with their counts, and DMA, of any edu.

        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest = lab.boot(devices=["edu"] * 3, interpose=KEPT_ALIVE)

            def restart(server: DeviceServer) -> None:
                self.assertTrue(server.control.call("restart", hand_over=True)["handed_over"])

            with self.working(guest, ("registers", "interrupts", "dma")):
                self.again_and_again(guest, 3, 0.3, restart)

    @contextmanager
    def working(self, guest: BootedGuest, kinds: Sequence[str]) -> Iterator[None]:
        """One kind of work on each device meanwhile, which must find nothing wrong."""
        pairs = zip(kinds, guest.devices, strict=True)
        works = [Workload(guest, kind, "--pages", "8", device=device) for kind, device in pairs]
        yield
        for work in works:
            done = work.end()
            self.log.info("%s: %s", done.command, dict(done.seen))
            self.assertTrue(done.ok, f"{done.command}: {done.verdict}")
            self.assertGreater(done.seen["rounds"], 3)

    def again_and_again(
        self, guest: BootedGuest, times: int, every: float, act: Callable[[DeviceServer], None]
    ) -> None:
        """Do it to every server whenever so many seconds have passed."""
        pause = threading.Event()
        for _ in range(times):
            for server in servers(guest):
                act(server)
            pause.wait(every)


def servers(guest: BootedGuest) -> list[DeviceServer]:
    return [plugged.server for plugged in guest.devices if plugged.server is not None]


def killed_once_up(server: DeviceServer) -> None:
    """Not before the last one was replaced: each kill is to count."""
    while server.control.survival()["recovering"]:
        threading.Event().wait(0.01)
    server.kill()
