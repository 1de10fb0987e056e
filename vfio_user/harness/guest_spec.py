"""A guest as it is wanted: what is decided before anything of it is started."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from userdev.errors import UserError
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.command_line import HardwareOptions, MachineConfig, Start
from vfio_user.harness.device import Device
from vfio_user.harness.family import FAMILIES
from vfio_user.harness.hosts.host import LOCAL, Host
from vfio_user.harness.interposition import Interpose
from vfio_user.harness.machine import Launch
from vfio_user.harness.memory_file import MemoryFile

if TYPE_CHECKING:
    from vfio_user.harness.image import GuestImage


def name_for(wanted: str, guests: Mapping[str, bool]) -> str:
    """The name of a guest: the one that is wanted, or guest, guest1, guest2, whichever none of `guests` has had.

    Of these it is said whether they run. Logs and sockets are called by it, and a machine to which a guest has migrated
    is called NAME.1.

    Raises:
        UserError: one that runs has the name, or it is none for a file.
    """
    if not wanted:
        taken = {name.partition(".")[0] for name in guests}
        every = itertools.chain(["guest"], (f"guest{number}" for number in itertools.count(1)))
        return next(name for name in every if name not in taken)
    running = {each for name, runs in guests.items() if runs for each in (name, name.partition(".")[0])}
    if "/" in wanted or wanted in running:
        why = "its logs are files of that name" if "/" in wanted else "another guest of this lab has that name"
        raise UserError(f"no guest can be called {wanted!r}: {why}", hint="give it another name, or none")
    return wanted


class BootOptions(HardwareOptions, total=False):
    """How `Lab.boot` boots a guest, whichever it is, for whoever hands that on; `Lab.boot` says what each means."""

    fresh: bool
    trace: bool
    monitor: bool
    interpose: Interpose
    migratable: bool
    root_bus: bool
    firmware: bool
    host: Host


@dataclass(frozen=True)
class GuestSpec:
    """What `Lab.boot` was asked for. Nothing of it changes; another host's guest has another one (`moved`)."""

    name: str
    image: GuestImage
    hardware: MachineConfig
    devices: tuple[Device, ...] = ()
    host: Host = LOCAL
    fresh: bool = False
    """Boot it from the beginning, not from a checkpoint."""
    trace: bool = False
    """Log what QEMU traces of the families' messages, and what interposers forward."""
    monitor: Path | None = None
    """Where QEMU listens for a second QMP client."""
    interpose: Interpose = False
    migratable: bool = False
    """Whether there is an interposer before each device that is not moved by QEMU itself."""
    root_bus: bool = False
    """Whether the devices are on the root bus, where nothing can be plugged in."""
    firmware: bool = False
    """Whether the firmware boots what is on its first disk, and QEMU is given no kernel."""
    attached: tuple[Attachment, ...] = ()
    """Devices that the machine has from the start, beside those of `hardware`."""

    @property
    def from_the_beginning(self) -> bool:
        """Whether no checkpoint fits: none has devices of servers."""
        return self.fresh or bool(self.attached)

    def device_id(self, index: int) -> str:
        """QEMU's id of a device that the guest boots with."""
        return f"{self.name}-dev{index}"

    def with_attached(self, *attached: Attachment) -> GuestSpec:
        """The same with these devices from the start."""
        return replace(self, attached=attached)

    def moved(self, name: str, host: Host, *attached: Attachment) -> GuestSpec:
        """The same guest in another machine, on a host, to which it comes from where it is."""
        return replace(self, name=name, host=host, attached=attached, trace=False, monitor=None)

    def launch(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        restore: bool = False,
        memory: MemoryFile | None = None,
    ) -> Launch:
        """How its machine is started; with `restore` it waits for a guest that comes from a file or another machine.

        `memory` is the guest's, where it is saved or was saved apart from its devices.
        """
        return Launch(
            self.hardware,
            Start(
                self.image.kernel,
                self.image.initramfs,
                firmware=self.firmware,
                restore=restore,
                attached=self.attached,
            ),
            folder,
            self.name,
            monitor=self.monitor,
            traced=tuple(family.trace_pattern for family in FAMILIES) if self.trace and self.host.shares_memory else (),
            environment=environment,
            kill_signal=self.host.kill_signal,
            memory=memory,
        )
