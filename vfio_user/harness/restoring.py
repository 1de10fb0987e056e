"""A machine for a guest that comes from a checkpoint: on this machine with its memory, elsewhere from one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vfio_user.harness.checkpoint import Checkpoint
from vfio_user.harness.guest_spec import GuestSpec
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.machine import Machine
from vfio_user.harness.memory_file import MemoryFile


class StartMachine(Protocol):
    """Starts a QEMU: `Lab.machine`."""

    def __call__(self, spec: GuestSpec, /, *, restore: bool, memory: MemoryFile | None) -> Machine:
        """Start it; with `restore` it waits for a guest. `memory` is the guest's, where that is apart."""


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
