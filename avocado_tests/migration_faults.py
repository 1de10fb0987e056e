"""What goes wrong in a migration, when, and how it must end: the table that test_migration.py goes through."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import psutil

from vfio_user.harness import (
    BootedGuest,
    Conductor,
    Deadline,
    DeviceServer,
    EventLog,
    Host,
    Lab,
    Limits,
    Machine,
    NamespaceHost,
    Pair,
    Phase,
    Plan,
    Report,
    SshHost,
    Tuning,
    Verdict,
)


@dataclass
class Scene:
    """A migration as it happens: what a fault can get at."""

    lab: Lab
    guest: BootedGuest
    pair: Pair
    plan: Plan
    conductor: Conductor

    @property
    def machine(self) -> Machine:
        """The destination's QEMU."""
        return self.lab.machines[-1]

    @property
    def server(self) -> DeviceServer:
        """The destination's, of the last device."""
        return self.lab.servers[-1]

    @property
    def source(self) -> DeviceServer:
        """The source's server, of the first device."""
        server = self.guest.device.server
        assert server is not None
        return server

    def cut(self) -> None:
        assert self.pair.cable is not None
        self.pair.cable.cut()

    def cut_in_the_midst(self) -> None:
        """Let there be more to send than sockets keep: QEMU serves nobody until it is sent."""
        self.source.control.call("dma_write", runs=[{"iova": 16 << 20, "size": 64 << 20}])
        self.cut()

    def interrupt(self) -> None:
        """Cut the link as soon as QEMU uses it, and mend it while TCP still has patience."""
        begins = self.guest.qmp.events.branch()  # the coordinator takes the others
        is_used = self.guest.qmp.command("query-migrate").get("status") in ("active", "pre-switchover")
        threading.Thread(target=self._interrupt, args=(None if is_used else begins,), daemon=True).start()

    def _interrupt(self, begins: EventLog | None) -> None:
        assert self.pair.cable is not None
        if begins is not None:
            begins.take("MIGRATION", {"status": "active"}, Deadline(self.plan.limits.total))
        self.pair.cable.cut()
        time.sleep(1)
        self.pair.cable.mend()

    def write_memory(self) -> None:
        """Have the guest write 64 MiB over and over again, for longer than the migration may take."""
        self.guest.succeed("rm -f /tmp/writing")
        self.guest.start(("python3", "-c", _WRITER, "15"))
        self.guest.wait_until_succeeds("test -e /tmp/writing", interval=0.05)

    def truncate(self) -> None:
        assert self.plan.file is not None
        os.truncate(self.plan.file, 0)

    def take_its_place(self) -> None:
        """Have a folder where the file is to be."""
        assert self.plan.file is not None
        self.plan.file.mkdir()

    def kill_interposer(self, server: DeviceServer) -> None:
        server.kill_interposer()
        server.interposer.child.wait(5)

    @staticmethod
    def stall(server: DeviceServer) -> None:
        server.child.pause()

    def corrupt(self) -> None:
        """Something in the middle of the state that is no state."""
        self.server.control.call("mig_data_write", data="AAECAwQFBgcICQ==")

    def reset_the_device(self) -> None:
        self.guest.succeed(f"echo 1 > {self.guest.devices[-1].sysfs}/reset")

    def reboot(self) -> None:
        self.guest.qmp.events.forget("RESET")
        self.guest.expect_reset()
        self.guest.start("reboot -f")
        self.guest.qmp.wait_event("RESET", 30)
        self.guest.agent.renew()  # what was not answered is asked again on the other host, "reboot" as well


_WRITER = """
import sys, time
memory, pattern, end = bytearray(64 << 20), bytes(range(256)) * (64 << 12), time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    memory[:] = pattern
    open("/tmp/writing", "w")
"""

FAULTS: Mapping[str, Callable[[Scene], object]] = MappingProxyType(
    {
        "cancelled": lambda scene: scene.conductor.cancel(),
        "no time": lambda scene: None,
        "no bandwidth": lambda scene: None,
        "the destination's QEMU dies": lambda scene: scene.machine.kill(),
        "the destination's server dies": lambda scene: scene.server.kill(),
        "the destination's interposer dies": lambda scene: scene.kill_interposer(scene.server),
        "the destination's server stalls": lambda scene: scene.stall(scene.server),
        "the link is cut": Scene.cut,
        "the link is cut in the midst": Scene.cut_in_the_midst,
        "the link is gone for a second": Scene.interrupt,
        "the guest writes faster than the link carries": Scene.write_memory,
        "the file cannot be made": Scene.take_its_place,
        "the file is cut short": Scene.truncate,
        "the state is refused": Scene.corrupt,
        "the guest resets the device": Scene.reset_the_device,
        "the guest reboots": Scene.reboot,
        "the source's server dies": lambda scene: scene.source.kill(),
        "the source's interposer dies": lambda scene: scene.kill_interposer(scene.source),
        "the source's server stalls": lambda scene: scene.stall(scene.source),
        "the source's QEMU dies": lambda scene: scene.guest.machine.kill(),
    }
)


_OF_THE_LINK = frozenset({Scene.cut, Scene.cut_in_the_midst, Scene.interrupt})


@dataclass(frozen=True)
class Case:
    """`fault` happens at the beginning of `phase`; the migration must have this verdict and say `says`.

    What nobody is told of takes all the time that there is: `left` seconds from then on.
    """

    phase: Phase
    fault: str
    verdict: Verdict = Verdict.STAYED
    says: str = ""
    tuning: Tuning = field(default_factory=Tuning)
    limits: Limits = field(default_factory=lambda: Limits(total=60, answer=1))
    left: float | None = None
    by_file: bool = False

    @property
    def of_the_link(self) -> bool:
        return FAULTS[self.fault] in _OF_THE_LINK

    def possible(self, pair: Pair) -> bool:
        """Only root's hosts have a cable between them that can be cut."""
        return pair.cable is not None or not self.of_the_link

    def migrate(self, lab: Lab, guest: BootedGuest, pair: Pair) -> Report:
        """Migrate the guest to the other host; it meets this on its way."""

        def watch(phase: Phase) -> None:
            if phase is self.phase:
                FAULTS[self.fault](scene)
                if self.left is not None:
                    conductor.hurry(self.left)

        conductor = Conductor(watch)
        file = lab.folder / f"memory.{self.phase.value}"  # what one takes the place of is not in the way of another
        plan = Plan(self.tuning, self.limits, file if self.by_file else None)
        scene = Scene(lab, guest, pair, plan, conductor)
        return lab.migrate(guest, to=pair.other(guest.host), plan=plan, conductor=conductor)


_COORDINATED = tuple(phase for phase in Phase if phase is not Phase.START)

AT_EVERY_PHASE = (
    *(Case(phase, "cancelled", says="cancelled") for phase in Phase if phase is not Phase.RESUME),
    *(
        Case(phase, "the destination's QEMU dies", says="the destination's QEMU was killed by SIGKILL")
        for phase in _COORDINATED
    ),
    *(Case(phase, "the destination's server dies", says="server") for phase in _COORDINATED),
    *(Case(phase, "the destination's interposer dies", says="interposer") for phase in _COORDINATED),
    *(Case(phase, "the destination's server stalls") for phase in _COORDINATED),
    *(
        Case(phase, "the link is cut", left=2)
        for phase in Phase
        if phase not in (Phase.RESTORE, Phase.RESUME)  # everything has arrived then: see IN_SPITE_OF_IT
    ),
)
"""Everything is on the source until the guest runs on the destination, and so the source goes on."""

ON_THE_WAY = (
    Case(Phase.PREPARE, "no time", says="s was over", left=0),
    Case(Phase.PRE_COPY, "no bandwidth", says="was not copied", tuning=Tuning(bandwidth=1 << 20), left=2),
    Case(
        Phase.PRE_COPY,
        "the guest writes faster than the link carries",
        says="the guest goes on writing",
        tuning=Tuning(bandwidth=48 << 20),
        left=10,
    ),
    Case(Phase.DEVICE_STATE, "the state is refused", says="MIG_DATA_WRITE: EINVAL"),
    Case(Phase.SWITCHOVER, "the link is cut in the midst", left=3),
)

BY_FILE = (
    Case(Phase.PREPARE, "the file cannot be made", says="refused migrate", by_file=True),
    Case(Phase.PRE_COPY, "cancelled", says="cancelled", by_file=True),
    Case(Phase.PRE_COPY, "the destination's QEMU dies", says="the destination's QEMU", by_file=True),
    Case(Phase.SWITCHOVER, "the file is cut short", by_file=True),
    Case(Phase.SWITCHOVER, "the destination's QEMU dies", says="the destination's QEMU", by_file=True),
    Case(Phase.RESTORE, "the destination's server dies", says="server", by_file=True),
)
"""The source has written all of its memory, and has ended migrating, before the destination reads any."""

IN_SPITE_OF_IT = (
    Case(Phase.PRE_COPY, "the link is gone for a second", Verdict.MIGRATED, tuning=Tuning(bandwidth=96 << 20)),
    Case(Phase.SWITCHOVER, "the link is gone for a second", Verdict.MIGRATED),
    Case(Phase.RESTORE, "the link is cut", Verdict.MIGRATED),
    Case(Phase.RESUME, "the link is cut", Verdict.MIGRATED),
)
"""Nothing that a migration has to fail by."""

BY_THE_GUEST = (
    Case(Phase.PRE_COPY, "the guest resets the device", Verdict.MIGRATED),
    Case(Phase.PRE_COPY, "the guest reboots", Verdict.MIGRATED),
)
"""It is right in what it does: what has been copied before is copied again."""

WITH_THE_SOURCE = (
    Case(Phase.PRE_COPY, "the source's server dies", Verdict.LOST, says="server"),
    Case(Phase.DEVICE_STATE, "the source's server dies", Verdict.LOST),
    Case(Phase.DEVICE_STATE, "the source's interposer dies", Verdict.LOST, says="interposer"),
    Case(Phase.DEVICE_STATE, "the source's server stalls", Verdict.LOST),
    Case(Phase.PRE_COPY, "the source's QEMU dies", Verdict.DEAD),
    Case(Phase.DEVICE_STATE, "the source's QEMU dies", Verdict.DEAD),
    Case(Phase.RESTORE, "the source's QEMU dies", Verdict.MIGRATED),
    Case(Phase.RESTORE, "the source's server dies", Verdict.MIGRATED),
)
"""What is lost is said, and a source that is gone after the switchover is not missed."""

REPRESENTATIVE = (
    Case(Phase.PRE_COPY, "cancelled", says="cancelled"),
    Case(Phase.DIRTY_PAGES, "the destination's interposer dies", says="interposer"),
    Case(Phase.SWITCHOVER, "the destination's QEMU dies", says="the destination's QEMU was killed by SIGKILL"),
    Case(Phase.RESTORE, "the destination's server stalls"),
    Case(Phase.RESUME, "the destination's server dies", says="server"),
    *(case for case in ON_THE_WAY if case.fault != "the guest writes faster than the link carries"),
)
"""Each fault once, and each phase; what takes its time alone is left to the night, with all phases of each fault."""


def qemus_on(host: Host) -> list[int] | None:
    """The process ids of the QEMUs in a host's network namespace; None where it has none of its own."""
    place = host.through if isinstance(host, SshHost) else host
    if not isinstance(place, NamespaceHost):
        return None
    inode = os.fstat(place.descriptor).st_ino
    relays = Path(sys.executable).resolve()  # they have QEMU's command line, and are not QEMU
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            there = Path(f"/proc/{process.pid}/ns/net").stat().st_ino == inode
            words = process.cmdline() if there and Path(process.exe()) != relays else []
            if any(Path(word).name.startswith("qemu-system") for word in words):
                found.append(process.pid)
    return found
