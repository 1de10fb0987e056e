"""What goes wrong in a migration, when, and how it must end: the table that test_migration.py goes through."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from vfio_user.harness.booted import BootedGuest
from vfio_user.harness.hosts import Pair
from vfio_user.harness.interposed import InterposedServer
from vfio_user.harness.lab import Lab
from vfio_user.harness.machine import Machine
from vfio_user.harness.migration import Limits, Phase, Plan, Tuning, Verdict


@dataclass
class Scene:
    """A migration as it happens: what a fault can get at."""

    lab: Lab
    guest: BootedGuest
    pair: Pair
    plan: Plan

    @property
    def machine(self) -> Machine:
        """The destination's QEMU."""
        return self.lab.machines[-1]

    @property
    def server(self) -> InterposedServer:
        """The destination's, of the last device."""
        server = self.lab.servers[-1]
        assert isinstance(server, InterposedServer)
        return server

    @property
    def source(self) -> InterposedServer:
        """The source's server, of the first device."""
        server = self.guest.device.server
        assert isinstance(server, InterposedServer)
        return server

    def cut(self) -> None:
        assert self.pair.cable is not None
        self.pair.cable.cut()

    def kill_interposer(self, server: InterposedServer) -> None:
        server.interposer.signal(signal.SIGKILL)
        server.interposer.wait(5)

    def corrupt(self) -> None:
        """Something in the middle of the state that is no state."""
        self.server.control.call("mig_data_write", data="AAECAwQFBgcICQ==")

    def reset_the_device(self) -> None:
        self.guest.succeed(f"echo 1 > {self.guest.devices[-1].sysfs}/reset")

    def reboot(self) -> None:
        self.guest.qmp.events.forget("RESET")
        self.guest.start("reboot -f")
        self.guest.qmp.wait_event("RESET", 30)


FAULTS: Mapping[str, Callable[[Scene], object]] = MappingProxyType(
    {
        "cancelled": lambda scene: scene.plan.cancel.set(),
        "no time": lambda scene: None,
        "no bandwidth": lambda scene: None,
        "the destination's QEMU dies": lambda scene: scene.machine.kill(),
        "the destination's server dies": lambda scene: scene.server.kill(),
        "the destination's interposer dies": lambda scene: scene.kill_interposer(scene.server),
        "the destination's server stalls": lambda scene: scene.server.child.signal(signal.SIGSTOP),
        "the link is cut": Scene.cut,
        "the state is refused": Scene.corrupt,
        "the guest resets the device": Scene.reset_the_device,
        "the guest reboots": Scene.reboot,
        "the source's server dies": lambda scene: scene.source.kill(),
        "the source's interposer dies": lambda scene: scene.kill_interposer(scene.source),
        "the source's server stalls": lambda scene: scene.source.child.signal(signal.SIGSTOP),
        "the source's QEMU dies": lambda scene: scene.guest.machine.kill(),
    }
)


@dataclass(frozen=True)
class Case:
    """`fault` happens at the beginning of `phase`; the migration must have this verdict and say `says`."""

    phase: Phase
    fault: str
    verdict: Verdict = Verdict.STAYED
    says: str = ""
    tuning: Tuning = field(default_factory=Tuning)
    limits: Limits = field(default_factory=lambda: Limits(total=30, answer=1))

    def plan(self, lab: Lab, guest: BootedGuest, pair: Pair) -> Plan:
        """The plan of a migration that meets this."""
        plan = Plan(self.tuning, self.limits)
        scene = Scene(lab, guest, pair, plan)

        def watch(phase: Phase) -> None:
            if phase is self.phase:
                FAULTS[self.fault](scene)

        plan.watch = watch
        return plan


_COORDINATED = tuple(phase for phase in Phase if phase is not Phase.START)
_SHORT = Limits(total=4, pre_copy=2, answer=1)

AT_EVERY_PHASE = (
    *(Case(phase, "cancelled", says="cancelled") for phase in Phase if phase is not Phase.RESUME),
    *(
        Case(phase, "the destination's QEMU dies", says="the destination's QEMU was killed by SIGKILL")
        for phase in _COORDINATED
    ),
    *(Case(phase, "the destination's server dies", says="server") for phase in _COORDINATED),
    *(Case(phase, "the destination's interposer dies", says="interposer") for phase in _COORDINATED),
    *(Case(phase, "the destination's server stalls") for phase in _COORDINATED),
    *(Case(phase, "the link is cut", limits=_SHORT) for phase in (Phase.PRE_COPY, Phase.SWITCHOVER)),
)
"""Everything is on the source until the guest runs on the destination, and so the source goes on."""

ON_THE_WAY = (
    Case(Phase.PRE_COPY, "no time", says="s was over", limits=Limits(total=0.05)),
    Case(Phase.PRE_COPY, "no bandwidth", says="was not copied", tuning=Tuning(bandwidth=1 << 20), limits=_SHORT),
    Case(Phase.DEVICE_STATE, "the state is refused", says="MIG_DATA_WRITE: EINVAL"),
)

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
    Case(Phase.PREPARE, "the destination's server dies", says="server"),
    Case(Phase.PRE_COPY, "cancelled", says="cancelled"),
    Case(Phase.PRE_COPY, "the destination's QEMU dies", says="the destination's QEMU was killed by SIGKILL"),
    Case(Phase.PRE_COPY, "the link is cut", limits=_SHORT),
    Case(Phase.DIRTY_PAGES, "the destination's interposer dies", says="interposer"),
    Case(Phase.SWITCHOVER, "the destination's QEMU dies", says="the destination's QEMU was killed by SIGKILL"),
    Case(Phase.RESTORE, "the destination's server stalls"),
    Case(Phase.RESUME, "the destination's server dies", says="server"),
    *ON_THE_WAY,
)
