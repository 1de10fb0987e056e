"""What a test author uses: guests with devices, made in a moment, and evidence of all that happened.

    with Lab() as lab:
        guest = lab.boot(device="edu")
        guest.succeed("lspci -nn")

A guest comes from a checkpoint where it can (see checkpoint.py), and its devices are plugged in afterwards. When the
block ends everything that the lab started is ended, and a lab that left something behind says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

import psutil

from userdev.errors import UserError, VerdictError
from userdev.process import Child
from vfio_user.harness import evidence, restoring
from vfio_user.harness.accelerator import probe_accelerator
from vfio_user.harness.artifacts import Timeline, drop_results, made_folder, results_folder
from vfio_user.harness.booted_guest import BootedGuest, attachment_of
from vfio_user.harness.breakpoint import Breakpoint
from vfio_user.harness.cell import Cell
from vfio_user.harness.checkpoint import Checkpoint, checkpoint_name
from vfio_user.harness.command_line import HardwareOptions, MachineConfig, machine_type, root_address
from vfio_user.harness.debian import quiet
from vfio_user.harness.device import Device
from vfio_user.harness.first_look import FirstLook
from vfio_user.harness.guest_spec import GuestSpec, name_for
from vfio_user.harness.hosts import Pair, two_hosts
from vfio_user.harness.hosts.host import LOCAL, Host
from vfio_user.harness.hosts.provided import Provided
from vfio_user.harness.image import ensure_image
from vfio_user.harness.interposition import Interpose, Interposition
from vfio_user.harness.last_words import tells
from vfio_user.harness.machine import Machine
from vfio_user.harness.memory_file import MemoryFile
from vfio_user.harness.migration import Conductor, Mode, Plan, Report
from vfio_user.harness.mishaps import GuestCrash
from vfio_user.harness.qemu import Qemu, ensure_qemu, find_qemu
from vfio_user.harness.records import Records
from vfio_user.harness.rules_used import acted_faults
from vfio_user.harness.scratch import Scratch, processes_of
from vfio_user.harness.server import DeviceServer
from vfio_user.harness.server_exceptions import LoggedException, logged_exceptions, still_at_work
from vfio_user.harness.site import Site
from vfio_user.harness.timeouts import Accelerator

if TYPE_CHECKING:
    from vfio_user.harness.image import GuestImage
    from vfio_user.harness.migration.destination import Destination

# A restored guest answers in a quarter of a second; one whose checkpoint is bad never does.
_RESTORE_SECONDS = 8.0
_AS_USUAL = Plan()


class Lab:
    """Guests, machines and servers of one run. A context manager.

    `name` says what is run, and heads the evidence. `folder` is where that goes, made if need be (a new one in
    `results` when not given), `qemu` the program to use instead of the one that would be found or installed;
    `interpose` puts an interposer before every server for which nothing else is said, `cell` has what is meant where
    nothing else is said; `progress` is told what the long preparations of a first run do.
    """

    def __init__(
        self,
        name: str = "lab",
        *,
        folder: Path | None = None,
        qemu: str | None = None,
        interpose: Interpose = False,
        cell: Cell = Cell(),  # noqa: B008  # nothing of it changes
        progress: Callable[[str], None] = quiet,
    ) -> None:
        self.name = name
        self.folder = made_folder(folder) if folder else results_folder(name)
        self._is_own_folder = folder is None
        self.timeline = Timeline()
        self.guests: list[BootedGuest] = []
        self.servers: list[DeviceServer] = []
        self.machines: list[Machine] = []
        self.tried: set[str] = set()
        """Servers that the cell names and that were started, or could not be (`Cell.tried_by`)."""
        self.ours: set[str] = set()
        """The names of devices of ours, or made for a test, whose servers were started, or could not be."""
        self.awaiting: Destination | None = None
        """Where a guest goes next, of whose devices and machine all was started ahead; they end with all others."""
        self._scratch = Scratch()
        self._cell = cell
        self._explicit_qemu = qemu or cell.qemu or None
        self._interpose = interpose or cell.interpose or cell.trace
        self._progress = progress
        self._images: dict[str, GuestImage] = {}
        self.failure: VerdictError | UserError | None = None
        """What went wrong, where no exception leaves the block for it: evidence is kept all the same."""
        self.records = Records(self.folder)
        self._moves = itertools.count(1)
        self._hosts = ExitStack()
        self._provide = Provided()
        self._first_look = FirstLook(lambda: self.qemu.version, self.timeline)
        self._break = Breakpoint.of_environment()

    # -- what guests are made of ----------------------------------------------------------------------------------

    @cached_property
    def qemu(self) -> Qemu:
        """The QEMU; installed on first use where there is none."""
        with self.timeline.step("find QEMU"):
            return ensure_qemu(self._explicit_qemu, progress=self._progress)

    @cached_property
    def accelerator(self) -> Accelerator:
        """KVM where a guest really runs under it."""
        with self.timeline.step("choose the accelerator"):
            return probe_accelerator(self.qemu)

    def image(self, name: str) -> GuestImage:
        """A guest image; built on first use."""
        if name not in self._images:
            with self.timeline.step(f"find the image {name}"):
                self._images[name] = ensure_image(name, progress=self._progress)
        return self._images[name]

    def hardware(self, **options: Unpack[HardwareOptions]) -> MachineConfig:
        """A machine with the newest versioned machine type of this QEMU; `options` are fields of `MachineConfig`."""
        chosen: HardwareOptions = {**self._cell.hardware, **options}
        return MachineConfig(machine_type(self.qemu.version), self.accelerator, **chosen)

    # -- the verbs ------------------------------------------------------------------------------------------------

    def boot(
        self,
        device: str | Device | None = None,
        *,
        devices: Sequence[str | Device] = (),
        image: str = "minimal",
        name: str = "",
        fresh: bool = False,
        trace: bool = False,
        monitor: bool = False,
        interpose: Interpose = False,
        migratable: bool = False,
        root_bus: bool = False,
        firmware: bool = False,
        host: Host = LOCAL,
        **hardware: Unpack[HardwareOptions],
    ) -> BootedGuest:
        """A running guest with its devices, in an instant when there is a checkpoint of it.

        `fresh` boots it from the beginning. `trace` logs every vfio-user message of QEMU, `monitor` lets a second QMP
        client connect (`monitor_path`). `interpose` puts an interposer before every server: True, a
        scenario of faults, or an `Interposition`; `migratable` does so where `migrate` needs it. `host` is where it
        all runs. With `root_bus` the devices are on the root bus itself, where nothing can be plugged in: the guest
        boots with them, from the beginning; with `firmware` it boots from them, as the firmware finds the first disk
        (`write_boot_disk` makes one of an image). `hardware` are fields of `MachineConfig`: memory, cpus, iommu, slots,
        modules.
        """
        name = name_for(name, {guest.name: guest.machine.child.running for guest in self.guests})
        given = (*([device] if device else []), *devices)
        wanted = tuple(item if isinstance(item, Device) else Device.parse(item) for item in given)
        interposition = Interposition.of(interpose or self._interpose)
        for item in wanted:
            if interposition is not None and not item.driver:
                interposition.check(item.family)  # before anything starts
            if host.shares_memory:  # it is on this machine
                item.require_program()  # and before an image is built for it
        return self.start(
            GuestSpec(
                name,
                self.image(image),
                self.hardware(**hardware),
                wanted,
                host=host,
                fresh=fresh,
                trace=trace,
                monitor=self._scratch.socket_path(f"{name}.qmp") if monitor else None,
                interpose=interpose,
                migratable=migratable,
                root_bus=root_bus or firmware,
                firmware=firmware,
            )
        )

    def start(self, spec: GuestSpec) -> BootedGuest:
        """The guest that is specified, running, with its devices; `boot` is the way to ask for it in words."""
        servers = [
            self._server_of(spec, index) for index in range(len(spec.devices))
        ]  # they start while the guest does
        if spec.root_bus:
            pairs = enumerate(zip(spec.devices, servers, strict=True))
            spec = spec.with_attached(
                *(attachment_of(device, spec.device_id(n), one, root_address(n)) for n, (device, one) in pairs)
            )
        guest = self._running(spec)
        for index, (device, server) in enumerate(zip(spec.devices, servers, strict=True)):
            with self.timeline.step(f"plug {device.name} into {spec.name}"):
                if spec.root_bus:
                    guest.adopt(spec.attached[index], device, root_address(index), server)
                else:
                    guest.plug(device, server=server)
        return guest

    def _server_of(self, spec: GuestSpec, index: int) -> DeviceServer | None:
        """Start the server of one of a guest's devices, where it has one."""
        device = spec.devices[index]
        if device.driver:
            return None
        name = f"{spec.device_id(index)}-{device.name}"
        interposed = spec.interpose or (spec.migratable and not device.family.moved_by_qemu)
        return self.serve(device, name, interposed=interposed, host=spec.host, trace=spec.trace)

    def hosts(self, kind: str = "auto") -> Pair:
        """Two hosts to migrate between (see `harness.hosts`), there until the lab ends."""
        pair = self._hosts.enter_context(two_hosts(kind))
        if pair.ways:
            self._progress(f"hosts: {pair.ways}")
        return pair

    def migrate(
        self,
        guest: BootedGuest,
        *,
        to: Host,
        mode: Mode | str = Mode.AUTO,
        plan: Plan = _AS_USUAL,
        conductor: Conductor | None = None,
        qemu: str | None = None,
        then: Host | None = None,
    ) -> Report:
        """Move a running guest with its devices to another host; afterwards `guest` is the one there.

        `conductor` looks on and may cancel it. The report has the verdict; a guest that stayed is a good guest still.
        `qemu` is another QEMU (`find_qemu`). `then` is where it goes next, as it arrives: that side starts meanwhile.
        """
        from vfio_user.harness.migration.guest_migration import move  # most guests stay where they are

        other = find_qemu(qemu) if qemu else None
        with self.timeline.step(f"migrate {guest.name} from {guest.host.name} to {to.name}"):
            return move(self, guest, to, Mode(mode), plan, conductor or Conductor(), other, then)

    def serve(
        self,
        device: str | Device,
        name: str = "",
        *,
        interposed: Interpose = False,
        host: Host = LOCAL,
        trace: bool = False,
    ) -> DeviceServer:
        """Start the server of a device, with an interposer before it if wanted; a guest's `plug` takes it as `server`.

        `interposed` is what `boot` takes as `interpose`; `trace` has the interposer record every message.
        """
        trace = trace or self._cell.trace
        wanted = self._cell.server_of(device if isinstance(device, Device) else Device.parse(device))
        interposition = self._cell.interposed(Interposition.of(interposed or self._interpose), wanted.family)
        if interposition is not None:
            interposition.check(wanted.family)
        name = name or f"server{len(self.servers)}-{wanted.name}"
        breaks = self._break if self._break is not None and self._break.is_at(name) else None
        if breaks is not None:
            interposition, trace = breaks.within(interposition), True
        self.tried |= self._cell.tried_by(wanted)
        self.ours |= {wanted.served} if wanted.served else set()
        self._provide(host, *wanted.files)
        site = Site(self._scratch, self.folder, host)
        self._first_look.take(wanted, name, site)
        with self.timeline.step(f"start the server {name}"):
            server = DeviceServer(wanted, site, name, interposition=interposition, trace=trace, started=self._started)
        self.servers.append(server)
        if breaks is not None:
            breaks.tell(server=name, control=server.interposer.control_path, trace=server.trace)
        return server

    def monitor_path(self, guest: BootedGuest) -> Path:
        """The socket that QMP tools of a person connect to, of a guest that was booted with `monitor`."""
        return self._scratch.socket_path(f"{guest.name}.qmp")

    @property
    def lost_connection(self) -> str:
        """Why a program on another host is heard of no more, where its connection has ended; else nothing."""
        return self.records.lost_connection

    def next_name(self, name: str) -> str:
        """guest, guest.1, guest.2: every machine that a guest has been in, or was to be, has its own logs."""
        return f"{name.partition('.')[0]}.{next(self._moves)}"

    def end(self, machine: Machine | None, servers: Sequence[DeviceServer]) -> None:
        """End one side of a migration: the machine first, at once, for it must never run again."""
        if machine is not None:
            machine.abandon()
            machine.stop()
            if not machine.left_behind():
                self.machines.remove(machine)
        for server in servers:
            server.stop()
            if not server.child.group_is_alive():
                self.servers.remove(server)

    # -- boot and restore -----------------------------------------------------------------------------------------

    def _running(self, spec: GuestSpec) -> BootedGuest:
        if spec.from_the_beginning:
            with self.timeline.step(f"boot {spec.name}"):
                return self._booted(spec)
        guest_identity = f"{spec.image.digest} {spec.image.host_key}"  # the digest leaves out the keys
        checkpoint = Checkpoint(checkpoint_name(guest_identity, self.qemu.digest, spec.hardware))
        for last in (False, True):
            made = checkpoint.ensure(lambda memory, state: self._make_checkpoint(memory, state, spec))
            stamp = checkpoint.stamp
            with self.timeline.step(f"restore {spec.name}"):
                machine = restoring.waiting_for(checkpoint, spec, self.machine)
                try:
                    restoring.load(machine, checkpoint, stamp, spec, self.machine, self._provide)
                    machine.go_on()
                    guest = self._answering(machine, spec, _RESTORE_SECONDS)
                    guest.agent.tell_restored()
                except restoring.BAD:
                    if made or last:
                        raise
                else:
                    return guest
            machine.stop()
            self.guests = [guest for guest in self.guests if guest.machine is not machine]
            checkpoint.discard(stamp)
        raise AssertionError("unreachable")

    def _make_checkpoint(self, memory: Path, state: Path, wanted: GuestSpec) -> None:
        """Boot a guest of this image and hardware on this machine, and save it."""
        self._progress("booting the guest once; later runs start from its checkpoint")
        spec = GuestSpec("checkpoint", wanted.image, wanted.hardware)
        with self.timeline.step("boot once, for the checkpoint"):
            guest = self._booted(spec, MemoryFile(spec.hardware.memory))
            restoring.warm_up(guest)
        with self.timeline.step("save the checkpoint"):
            guest.machine.save(state, memory)
        self.guests.remove(guest)
        guest.close()

    def _booted(self, spec: GuestSpec, memory: MemoryFile | None = None) -> BootedGuest:
        """A guest that was booted from the beginning, and has the kernel modules that it was to load.

        Raises:
            UserError: its image lacks one of them.
        """
        machine = self.machine(spec, memory=memory)
        machine.wait_ready()
        guest = self._answering(machine, spec)
        for module in spec.hardware.modules:
            if not guest.run(["modprobe", module]).ok:
                name = spec.image.name
                hint = f"add it to `modules` of a recipe that has `extends: {name}`, and name that file as the image"
                raise UserError(f"the image {name} has no kernel module {module!r}", hint=hint)
        return guest

    def machine(
        self, spec: GuestSpec, *, restore: bool = False, qemu: Qemu | None = None, memory: MemoryFile | None = None
    ) -> Machine:
        """Start a QEMU; with `restore` it waits for a guest from elsewhere. `memory` is the guest's, where apart."""
        qemu = qemu or self.qemu
        spec.image.keep()  # a soak's guest moves on for hours, while somebody edits what its image is made of
        self._provide(spec.host, *qemu.folders, spec.image.kernel, spec.image.initramfs)
        machine = Machine(
            replace(qemu, argv=tuple(spec.host.command(qemu.argv))),
            spec.launch(self.folder, self._scratch.environment, restore=restore, memory=memory),
            beside=lambda: self.records.children,
        )
        self.machines.append(machine)
        self._started(machine.child)
        return machine

    def _started(self, child: Child) -> None:
        self.records.note(child)
        if self._break is not None:
            self._break.tell(name=child.name, pid=child.pid)

    def _answering(self, machine: Machine, spec: GuestSpec, limit: float = 30.0) -> BootedGuest:
        guest = BootedGuest(machine, spec, serve=self.serve)
        self.guests.append(guest)
        guest.hello(limit)
        return guest

    # -- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything, each of it also where another cannot be ended.

        Raises:
            VerdictError: something is left all the same.
            OSError: not all that was said could be written.
        """
        left: list[str] = []
        with ExitStack() as ends:  # the last of these is done first
            ends.callback(self._write_records)
            ends.callback(self._scratch.close)
            ends.callback(self._hosts.close)
            ends.callback(lambda: left.extend(self._left_behind()))
            for end in reversed(
                [
                    *(guest.close for guest in self.guests),
                    *(machine.stop for machine in self.machines),
                    *(server.stop for server in self.servers),
                ]
            ):
                ends.callback(end)
        for unwritten in filter(None, (machine.unwritten() for machine in self.machines)):
            raise unwritten
        if left:
            raise VerdictError("the lab left something behind", evidence="\n".join(left))

    def _write_records(self) -> None:
        self.timeline.write(self.folder / "timeline.json")
        qemu = self.qemu if "qemu" in self.__dict__ else None
        self.records.write(self._images, self.machines, self.servers, qemu)

    def _left_behind(self) -> list[str]:
        left = [thing for machine in self.machines for thing in machine.left_behind()]
        left += [f"processes of {server.name}" for server in self.servers if server.child.group_is_alive()]
        for process in processes_of(self._scratch.path):
            with suppress(psutil.Error):  # it has ended meanwhile
                left.append(f"process {process.pid}: {' '.join(process.cmdline())}")
                process.kill()
        return left

    def cause_so_far(self, error: BaseException) -> str:
        """What programs have told of until now that came before an error; "" where nothing but the error is known."""
        try:
            ended = evidence.ends(self.folder, self.records.children)
        except OSError:  # a full disk, whose evidence `__exit__` tells of
            return ""
        cause = evidence.first_cause(ended, error) if ended.are_causes else ""
        return "" if cause in str(error) else cause

    def exceptions(self) -> list[LoggedException]:
        """The first that each program has logged so far, whatever came of it; the earliest first."""
        return logged_exceptions(self.records.children)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError) and self._is_own_folder and not self.records.children:
            with suppress(UserError, VerdictError, OSError):
                self.close()
            drop_results(self.folder)  # it was refused before anything began: there is nothing to look at
            return
        unseen = self._unseen_crash() if error is None else None
        wrong = error or self.failure or unseen
        good = wrong is None or isinstance(wrong, KeyboardInterrupt)
        unwritten, ended = list[OSError](), evidence.Ends()
        try:
            if not good or evidence.crashed(self.records.children):
                ended = evidence.ends(self.folder, self.records.children)
            if not good:
                ended = replace(ended, faults=acted_faults(self.servers))
            for guest in self.guests if not good else ():
                guest.collect(self.folder)
        except OSError as full:
            unwritten.append(full)
        try:
            self.close()
        except OSError as full:
            unwritten.append(full)
        except (UserError, VerdictError):
            if error is None:  # else that is the one to show
                raise
        if not good or ended.deaths:
            try:
                cause = evidence.write(self.folder, self.records.children, wrong, ended, name=self.name)
                is_known = ended.are_causes or still_at_work(self.records.children)
                if wrong is not None and is_known and not tells(str(wrong), cause):
                    wrong.add_note(f"first cause: {cause}")
            except OSError as full:
                unwritten.append(full)
        raised = error or (unseen if wrong is unseen else None)
        if unwritten and wrong is None:
            raise unwritten[0]
        if unwritten and wrong is not None:
            wrong.add_note(f"not all evidence could be written: {unwritten[0]}")
        if raised is not None:
            evidence.say_where(raised, self.folder)
        if error is None and raised is not None:
            raise raised

    def _unseen_crash(self) -> GuestCrash | None:
        """What befell a guest after the last that anybody wanted of it."""
        return next((crash for guest in self.guests if (crash := guest.machine.mishaps.untold())), None)
