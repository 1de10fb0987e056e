"""What a guest does before it goes into a checkpoint, and a machine for one that comes from there.

On this machine that has its memory, elsewhere it loads one file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.checkpoint import Checkpoint, zero_free_memory
from vfio_user.harness.guest import GuestFailure, GuestLost
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.hotplug import wait_for_device
from vfio_user.harness.machine import Machine, MachineError
from vfio_user.harness.memory_file import MemoryFile
from vfio_user.harness.qmp import QmpLost, QmpTimeout
from vfio_user.harness.server import ServerFailure

BAD = (MachineError, ServerFailure, QmpLost, QmpTimeout, GuestLost, GuestFailure)
"""What comes of a checkpoint that is not good: QEMU refuses it, ends of it or is silent, the guest does not answer, or
is reset, panics or answers nonsense at once, as where a power cut has left zeros in its file.
"""


class StartMachine(Protocol):
    """Starts a QEMU: `Lab.machine`."""

    def __call__(self, spec: GuestSpec, /, *, restore: bool, memory: MemoryFile | None) -> Machine:
        """Start it; with `restore` it waits for a guest. `memory` is the guest's, where that is apart."""


def warm_up(guest: BootedGuest) -> None:
    """Have a guest do what every test does first, which is quicker when it has done it before, and free its memory.

    Raises:
        GuestFailure, GuestLost: it cannot, or is silent.
    """
    guest.succeed("python3 -c pass", timeout=30)
    guest.run(["modprobe", "-a", *guest.agent.prepare()])
    guest.call(wait_for_device, "none", 0.0)
    with suppress(GuestFailure):  # the checkpoint is only larger then
        guest.call(zero_free_memory, timeout=30)


def waiting_for(checkpoint: Checkpoint, spec: GuestSpec, start: StartMachine) -> Machine:
    """A machine that waits for a checkpoint; its memory comes meanwhile, where QEMU can be handed a file."""
    memory = MemoryFile(spec.hardware.memory, checkpoint.memory) if spec.host.shares_memory else None
    return start(spec, restore=True, memory=memory)


def loadable(
    checkpoint: Checkpoint, spec: GuestSpec, start: StartMachine, provide: Callable[[Host, Path], None]
) -> Path:
    """What such a machine loads: the state of its devices, or on a host that cannot be handed a file, all in one."""
    if spec.host.shares_memory:
        return checkpoint.state

    def make(path: Path) -> None:
        here = GuestSpec("checkpoint", spec.image, spec.hardware)
        machine = waiting_for(checkpoint, here, start)
        try:
            machine.load(checkpoint.state)
            machine.save(path)
        finally:
            machine.stop()

    whole = checkpoint.whole(make)
    provide(spec.host, whole)
    return whole


def load(
    machine: Machine,
    checkpoint: Checkpoint,
    stamp: int,
    spec: GuestSpec,
    start: StartMachine,
    provide: Callable[[Host, Path], None],
) -> None:
    """Load what is `loadable` of a checkpoint that had this stamp before the machine began to wait for it.

    Raises:
        MachineError: QEMU refuses; or it has the memory of one and the devices of another that was made meanwhile.
    """
    machine.load(loadable(checkpoint, spec, start, provide))
    if checkpoint.stamp not in (stamp, 0):  # one that is gone was there when it was opened
        raise MachineError("the checkpoint was made anew while a guest was restored from it")
