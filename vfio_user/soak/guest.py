"""The guest of a soak: its devices, the work that it does with them throughout, and what it has to find again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from userdev.counted import counted
from userdev.errors import UserError, VerdictError
from vfio_user.harness import (
    SUBJECTS,
    Assignment,
    BootedGuest,
    Device,
    DeviceServer,
    Exercise,
    HardwareOptions,
    Interposition,
    Lab,
    Pair,
    Plugged,
    Workload,
)
from vfio_user.harness.migration.guest_view import look
from vfio_user.harness.migration.workload import NONE, answers, image_for
from vfio_user.soak.failed import Failed
from vfio_user.soak.kept import KEPT, differing, write_kept

WORKED_BYTES = 1 << 20
"""Of a disk, for work that takes as much as it is given: each round and each look is through it."""

_DRIVEN_BY_PROGRAM = frozenset({"dma", "interrupts", "registers", "idle"})
"""Work whose device keeps what a program in the guest has told it, and nobody else knows."""
_OF_DISKS = frozenset({"fio", "blocks"})
"""Work that leaves the end of a disk alone."""
_LOSSY = frozenset({"ping"})
"""Work of a medium that may lose what is on its way when a server goes."""
_PATIENCE = 30.0
"""Seconds that QEMU waits for a reply of a vfio-user server: 5, its own, are few for one that starts on a busy host."""
_FOR_EVER = 2e5  # seconds; the guest's poll(2) takes no more than 2**31 ms, after they were multiplied for patience
_KEPT_LOGS = 3  # machines whose logs stay: the one that runs, those before


@dataclass
class SoakedDevice:
    """A device and what the guest does with it. `name` is the same from guest to guest."""

    name: str
    assignment: Assignment
    identity: str = ""
    work: Workload | None = None
    kept: str = ""
    """The seed of what its disk has at its end."""

    @property
    def interposition(self) -> Interposition:
        """The interposer before its server, which keeps a session where a client connects only once."""
        keeps = self.assignment.device.family.keeps_sessions
        return Interposition(keep_alive=keeps, msg_timeout=_PATIENCE if keeps else None)

    @property
    def wanted(self) -> Device:
        """The device as it is plugged in, with QEMU's patience for its server."""
        device = self.assignment.device
        patience = {"x-msg-timeout": int(_PATIENCE * 1000)} if device.family.keeps_sessions else {}
        return replace(device, properties={**patience, **device.properties})

    @property
    def is_driven_by_program(self) -> bool:
        """Whether what the device knows is lost to the work when it forgets."""
        return self.assignment.kind in _DRIVEN_BY_PROGRAM

    @property
    def may_lose(self) -> bool:
        """Whether something on its way may be lost with a server."""
        return self.assignment.kind in _LOSSY

    @property
    def persists(self) -> bool:
        """Whether what it keeps outlives its server."""
        return not any(option.startswith("memory:") for option in self.assignment.device.options)

    @property
    def has_kept(self) -> bool:
        """Whether there are bytes on it that have to be found again."""
        return self.assignment.kind in _OF_DISKS and self.persists


@dataclass(frozen=True)
class SoakedSpec:
    """What is soaked, in the words of a command line.

    `workloads` are of the first device, of the second and so on; a device beyond them does its first, "" too.
    `interrupts` are enabled beside the work of those that let one choose.

    Raises:
        UserError: work that there is not, or of more devices than there are.
    """

    devices: tuple[str, ...]
    workloads: tuple[str, ...] = ()
    interrupts: str = ""
    hosts: str = "auto"
    image: str = ""
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
    capture_dma: bool = False

    def __post_init__(self) -> None:
        if len(self.workloads) > len(self.devices):
            raise UserError(f"{counted(len(self.workloads), 'workload')} for {counted(len(self.devices), 'device')}")
        _ = self.assignments

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, hardware among them."""
        said = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        hardware = {name: list(value) if isinstance(value, tuple) else value for name, value in self.hardware.items()}
        del said["hardware"]
        return said | hardware

    @property
    def words(self) -> list[str]:
        """The same as options of a command line."""
        words = [word for device in self.devices for word in ("--device", device)]
        words += [word for kind in self.workloads for word in ("--workload", kind)]
        said = {"interrupts": self.interrupts, "hosts": self.hosts, "image": self.image}
        words += [word for name, value in said.items() if value for word in (f"--{name}", value)]
        for name, value in self.hardware.items():
            match value:
                case bool():
                    words.append(f"--{name}" if value else f"--no-{name}")
                case tuple():
                    words += [f"--{name}", ",".join(value)]
                case _:
                    words += [f"--{name}", str(value)]
        return [*words, "--capture-dma"] if self.capture_dma else words

    @property
    def works(self) -> bool:
        """Whether the guest has work with any of its devices."""
        return any(each.kind != NONE for each in self.assignments)

    @property
    def assignments(self) -> list[Assignment]:
        """Devices, workloads and interrupts that they are used with."""
        kinds = (*self.workloads, *("" for _ in self.devices))
        found = [Assignment.of(device, kind) for device, kind in zip(self.devices, kinds, strict=False)]
        if not self.interrupts:
            return found
        choosing = [each.kind for each in found if _chooses_interrupts(each)]
        if not choosing:
            raise UserError("the drivers choose the interrupts of all that is soaked", hint="leave out --interrupts")
        return [
            Assignment.of(device, each.kind, self.interrupts) if _chooses_interrupts(each) else each
            for device, each in zip(self.devices, found, strict=True)
        ]


def _chooses_interrupts(assignment: Assignment) -> bool:
    subject = SUBJECTS.get(assignment.device.served)
    return assignment.kind != NONE and (subject is None or subject.chooses_interrupts)


class Scene:
    """A guest in its lab, with two hosts."""

    def __init__(self, lab: Lab, pair: Pair, guest: BootedGuest, devices: Sequence[SoakedDevice]) -> None:
        self.lab, self.pair, self.guest = lab, pair, guest
        self.devices = list(devices)
        self.comes_back = False
        """Whether the next event is a hop, so that the guest comes back from where one takes it now."""
        self._boot_id = ""
        self._machines: list[str] = []

    # -- its devices ------------------------------------------------------------------------------------------------

    def device(self, name: str) -> SoakedDevice:
        """The device of this name."""
        return next(device for device in self.devices if device.name == name)

    def plugged(self, device: SoakedDevice) -> Plugged:
        """The device as it is in the guest now."""
        return next(plugged for plugged in self.guest.devices if plugged.identity == device.identity)

    def server(self, device: SoakedDevice) -> DeviceServer:
        """The server that it has now.

        Raises:
            UserError: it has none.
        """
        server = self.plugged(device).server
        if server is None:
            raise UserError(f"{device.name} is inside QEMU: there is no server of it to soak")
        return server

    def plug(self, device: SoakedDevice) -> None:
        """Plug it in, with a new server."""
        plugged = self.guest.plug(device.wanted, interpose=device.interposition)
        device.identity = plugged.identity

    # -- its work ---------------------------------------------------------------------------------------------------

    def begin_work(self, device: SoakedDevice) -> None:
        """Have the guest work with it; its first round was right on return."""
        wanted = device.assignment
        if wanted.kind == NONE:
            return
        options = ["--interrupts", wanted.interrupts] if wanted.interrupts else []
        options += ["--bytes", str(WORKED_BYTES)] if wanted.kind in _OF_DISKS else []
        device.work = Workload(self.guest, wanted.kind, *options, device=self.plugged(device), limit=_FOR_EVER)

    def end_work(self, device: SoakedDevice) -> None:
        """End it, and judge all that it did."""
        work, device.work = device.work, None
        if work is not None:
            _judge(device, work.end())

    def keep(self, device: SoakedDevice, seed: str) -> None:
        """Write what has to be found again."""
        device.kept = f"{seed} {device.name}"
        self.guest.call(write_kept, self.plugged(device).address, KEPT, device.kept)

    def find_kept(self, device: SoakedDevice) -> None:
        """Find it again."""
        if wrong := self.guest.call(differing, self.plugged(device).address, KEPT, device.kept):
            raise Failed(f"what was written to {device.name}", wrong)

    def verify(self) -> None:
        """Ask the guest whether it is the same, and each work what it has seen."""
        working = [(device, device.work) for device in self.devices if device.work is not None]
        for _, work in working:
            work.ask()
        boot_id, done = answers(self.guest, [work for _, work in working], self._boot_id)
        if boot_id != self._boot_id:
            raise Failed("no reboot", f"the guest has boot id {boot_id}, and had {self._boot_id}")
        for (device, _), exercise in zip(working, done, strict=True):
            _judge(device, exercise)

    def came_up(self) -> None:
        """The guest has booted, on purpose: from now on this is the same guest.

        Raises:
            Failed: it has not.
        """
        before, self._boot_id = self._boot_id, look(self.guest).boot_id
        if before == self._boot_id:
            raise Failed("the guest boots anew", f"it still has boot id {before}")

    # -- its machines -----------------------------------------------------------------------------------------------

    def left(self, machine: str) -> None:
        """Let go of the logs of machines that it has left, or never arrived in, some time ago."""
        self._machines.append(machine)
        while len(self._machines) >= _KEPT_LOGS:
            self.lab.records.forget(self._machines.pop(0))


@contextmanager
def scene_of(spec: SoakedSpec, lab: Lab) -> Iterator[Scene]:
    """Boot the guest of a soak, plug its devices in and have it work."""
    pair = lab.hosts(spec.hosts)
    wanted = spec.assignments
    guest = lab.boot(image=spec.image or image_for(wanted), host=pair.a, **spec.hardware)
    scene = Scene(lab, pair, guest, named(wanted))
    for device in scene.devices:
        scene.plug(device)
        scene.server(device)
    scene.came_up()
    for device in scene.devices:
        scene.begin_work(device)
    try:
        yield scene
    except VerdictError:
        for each in lab.guests:
            each.collect(lab.folder)
        raise


def named(assignments: Sequence[Assignment]) -> list[SoakedDevice]:
    """The devices of a soak by their names; of two that have the same, the second has a 2."""
    found: list[SoakedDevice] = []
    for assignment in assignments:
        name = assignment.device.name
        same = sum(device.name.partition(":")[0] == name for device in found)
        found.append(SoakedDevice(f"{name}:{same + 1}" if same else name, assignment))
    return found


def _judge(device: SoakedDevice, done: Exercise) -> None:
    if not done.ok:
        raise Failed(f"work of {device.name}", done.verdict, evidence="\n".join(done.wrong))
