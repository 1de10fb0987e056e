"""Moves a guest with its devices, doing what a client leaves out that does not migrate them.

The recipe: the servers' states are copied while the guest runs; at QEMU's pause before the switchover the devices stop,
the rest of their state follows, and the pages that they wrote behind QEMU's back are written once more through QEMU, so
that it sends them; on the destination what QEMU keeps of the devices is written over QTest, then the servers take the
state, and the guest goes on. Until that last `cont` the source has everything, and any failure goes back to it: the
destination is ended first, so that never both run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import NamedTuple

from userdev.control import ControlError
from userdev.errors import UserdevError, UserError
from userdev.process import Deadline
from vfio_user.harness.command_line import slot_address
from vfio_user.harness.hosts.relayed import lost_connection
from vfio_user.harness.machine import Machine
from vfio_user.harness.migration import pci_state, qemu_side
from vfio_user.harness.migration.link import PAGE_SIZE, PRE_COPY_TURN, DeviceLink, SavedAgain
from vfio_user.harness.migration.plan import Cancelled, Conductor, Plan
from vfio_user.harness.migration.qemu_side import MigrationFailed
from vfio_user.harness.migration.report import Mode, Phase, PhaseRecord, Report, Verdict
from vfio_user.harness.mishaps import Kind
from vfio_user.harness.qmp import ARRIVED, QmpLost, QmpTimeout
from vfio_user.harness.qtest import PciAddress
from vfio_user.harness.server import DeviceServer

FAILURES = (UserdevError, OSError)
"""What a migration can fail with; all of it leads back to the source."""


class MovedByQemu(NamedTuple):
    """The servers of a device that QEMU moves by itself: all that is asked of them here is that they are there.

    QEMU does not: it says `completed` where there is none any more, and to what was under way in the one that has gone
    nobody goes back on the other host.
    """

    name: str
    source: DeviceServer
    destination: DeviceServer

    def check(self, *, source_too: bool) -> None:
        """Raise `ServerFailure` for the one that has ended; that of the source may be replaced while QEMU copies."""
        for server in (self.destination, *([self.source] if source_too else [])):
            server.check()


class Coordinator:
    """One migration between two machines that exist. `destination` was started with the same devices and waits.

    `links` are of the devices that are moved from here, `by_qemu` of the others.
    """

    def __init__(
        self,
        source: Machine,
        destination: Machine,
        links: Sequence[DeviceLink],
        report: Report,
        *,
        by_qemu: Sequence[MovedByQemu] = (),
        address: str,
        plan: Plan,
        conductor: Conductor,
    ) -> None:
        self._source = source
        self._destination = destination
        self._links = list(links)
        self._by_qemu = by_qemu
        for link in self._links:
            link.patience = plan.limits.answer
        self._report = report
        self._address = address
        self._plan = plan
        self._conductor = conductor
        self._limit = Deadline(self._plan.limits.total)
        self._was_running = False
        """The guest ran when it began. Until that is known nothing was done to it that would have to be undone."""
        self._functions: dict[str, PciAddress] = {}
        """Where the devices are on the source's buses, by their names."""
        self._left: dict[str, SavedAgain] = {}
        """The states that left, saved again to be compared with those that arrived."""
        self._held: list[DeviceLink] = []
        self._changed: list[DeviceLink] = []
        """Those whose command register is not the guest's for the moment."""
        self._switching = False
        """Whether the source's QEMU was told to send the last of it."""
        self._paused_at = 0.0

    def run(self) -> None:
        """Migrate. The report has the outcome, also of a failure; it raises nothing that a migration can fail with."""
        try:
            self._migrate()
        except FAILURES as error:
            self._go_back(error)
        except BaseException:
            self._go_back(Cancelled("interrupted"))
            raise
        else:
            self._tell_of_memory()
        finally:
            for left in self._left.values():
                left.close()

    # -- the phases ---------------------------------------------------------------------------------------------------

    def _migrate(self) -> None:
        steps: list[tuple[Phase, Callable[[PhaseRecord], None]]] = [
            (Phase.PREPARE, self._prepare),
            (Phase.PRE_COPY, self._pre_copy),
            (Phase.PAUSE, self._pause),
            (Phase.DEVICE_STATE, self._device_state),
            (Phase.DIRTY_PAGES, self._dirty_pages),
            (Phase.SWITCHOVER, self._switch_over),
            (Phase.RESTORE, self._restore),
            (Phase.RESUME, self._resume),
        ]
        coordinated = self._report.mode is Mode.COORDINATED
        for phase, step in steps:
            if coordinated or phase in _WITHOUT_US:
                self._may_go_on(phase)
                with self._report.phase(phase) as record:
                    self._conductor.watch(phase)
                    step(record)

    def _prepare(self, record: PhaseRecord) -> None:
        self._was_running = bool(self._source.qmp.command("query-status")["running"])
        for machine in (self._source, self._destination):
            qemu_side.set_up(machine, self._plan.tuning, pause=self._report.mode is Mode.COORDINATED)
        if self._report.mode is Mode.COORDINATED:
            for link in self._links:
                link.await_state()
                link.prepare()
        file = self._plan.file
        self._uri = f"file:{file}" if file else qemu_side.listen(self._destination, self._address)

    def _pre_copy(self, record: PhaseRecord) -> None:
        """First the devices, until nothing new comes, or all has come and the guest changes it again and again; then
        QEMU's memory, with what the devices change meanwhile.
        """
        links = self._links if self._report.mode is Mode.COORDINATED else []
        deadline = Deadline(min(self._plan.limits.pre_copy, self._deadline.remaining))
        rounds = 0
        while rounds < _CATCHING_UP and (moved := sum(link.pre_copy() for link in links)):
            rounds += moved < PRE_COPY_TURN
            record.bytes += moved
            self._check(deadline)
        self._source.qmp.events.forget("STOP")
        self._source.qmp.execute("migrate", {"uri": self._uri})
        goal = "pre-switchover" if self._report.mode is Mode.COORDINATED else "completed"
        while qemu_side.status_event(self._source, _TURN_SECONDS) != goal:
            record.bytes += sum(link.pre_copy() for link in links)
            self._check(deadline)

    def _pause(self, record: PhaseRecord) -> None:
        """The guest stands still; what QEMU keeps of the devices can be read."""
        if self._was_running:
            self._paused_at = self._source.qmp.wait_event("STOP", self._deadline)[ARRIVED]
        for link in self._links:
            link.confirm_source()  # QTest would wait for a server that is silent
            function = self._functions[link.name] = function_of(self._source, link)
            link.pci = pci_state.capture(self._source.qtest, function, link.known)
            record.bytes += len(link.pci.config) + len(link.pci.msix_table)

    def _device_state(self, record: PhaseRecord) -> None:
        for stopped in [link.stop() for link in self._links]:
            stopped.result()
        for link in self._links:
            record.bytes += link.copy_rest()
            record.details[link.name] = link.spool.size

    def _dirty_pages(self, record: PhaseRecord) -> None:
        for link in self._links:
            self._prepare_for_resending(link)
        resent = [answer.result() for answer in [link.resend_dirty() for link in self._links]]
        unmapped = {offset for told in resent for offset in told["unmapped"]}
        qemu_side.write_again(self._source, sorted(unmapped))
        record.details |= {"pages": sum(told["pages"] for told in resent), "unmapped": len(unmapped)}
        record.bytes = sum(record.details.values()) * PAGE_SIZE

    def _prepare_for_resending(self, link: DeviceLink) -> None:
        """Change the command register for the source's QEMU alone: its server stands still, its state is on the way."""
        assert link.pci is not None
        command = link.pci.word(pci_state.COMMAND, 2)
        wanted = command | pci_state.BUS_MASTER  # without it QEMU refuses DMA
        if link.pci.interrupts == "intx":
            # QEMU would migrate the bus's count of active lines, but not whose they are: it would never fall again.
            wanted |= pci_state.INTX_DISABLE
        if wanted != command:
            self._changed.append(link)
            self._write_command(link, wanted)

    def _write_command(self, link: DeviceLink, value: int) -> None:
        with pci_state.undisturbed(self._source.qtest):
            self._source.qtest.config_write(self._functions[link.name], pci_state.COMMAND, value, 2)

    def _switch_over(self, record: PhaseRecord) -> None:
        for link in self._links:
            # Should this fail, QEMU lets the guest run before we can: its accesses wait until the server runs too.
            self._held.append(link)  # also where the answer does not come: to resume what is not held does nothing
            link.source.control.call("hold")
        self._switching = True
        qemu_side.go_on(self._source)
        self._save_source_again()
        self._await_completed(self._source)
        if self._plan.file:
            qemu_side.read(self._destination, self._uri)
        self._await_completed(self._destination)

    def _restore(self, record: PhaseRecord) -> None:
        """Before the server takes its state: then the interrupts it has to deliver have somewhere to go."""
        for link in self._links:
            assert link.pci is not None
            link.confirm(link.destination, "RESUMING")
            with self._destination.qtest.within(_PCI_STATE_SECONDS):
                pci_state.restore(self._destination.qtest, function_of(self._destination, link), link.pci)
        for loaded in [link.load() for link in self._links]:
            loaded.result()
        for link in self._links:
            self._compare_state(link)
            link.run()

    def _resume(self, record: PhaseRecord) -> None:
        if self._report.mode is not Mode.COORDINATED:
            if self._plan.file:
                qemu_side.read(self._destination, self._uri)
            self._await_completed(self._destination)
            if self._was_running:
                self._paused_at = self._source.qmp.wait_event("STOP", self._deadline)[ARRIVED]
        self._may_go_on(Phase.RESUME)
        if self._report.mode is Mode.COORDINATED:
            for link in self._links:
                link.confirm(link.destination, "RUNNING")
        if self._was_running:
            self._destination.qmp.command("cont")
            resumed = self._destination.qmp.wait_event("RESUME", self._deadline)
            self._report.downtime = resumed[ARRIVED] - self._paused_at
        self._report.verdict = Verdict.MIGRATED

    def _tell_of_memory(self) -> None:
        """How much QEMU sent; asked when nobody waits any more."""
        with suppress(*FAILURES):
            ram = self._source.qmp.command("query-migrate", _TELL_SECONDS).get("ram", {})
            self._report.ram_bytes = int(ram.get("transferred", 0))
            for record in self._report.phases:
                if record.phase is Phase.SWITCHOVER:
                    record.bytes = self._report.ram_bytes

    def _save_source_again(self) -> None:
        """While QEMU copies; it is compared with what arrives. Nobody needs the source for more than that any more."""
        for link in self._links:
            if link.source.saves_alike and link.spool.size <= self._plan.limits.compared_state:
                try:
                    self._left[link.name] = SavedAgain(link.source, link.patience)
                except OSError as error:
                    self._not_compared(link, error)

    def _compare_state(self, link: DeviceLink) -> None:
        """Never believe: the state that arrived must be the state that left."""
        if (left := self._left.get(link.name)) is None:
            return
        with closing(SavedAgain(link.destination, link.patience)) as arrived:
            try:
                here = left.digest()
            except (ControlError, OSError) as error:
                self._not_compared(link, error)
                return
            there = arrived.digest()
            names = ", ".join(left.differences(arrived)) if here != there else ""
        told = f"{here[:16]} left, {there[:16]} arrived" + (f"; what differs: {names}" if names else "")
        self._report.check(f"state of {link.name}", here == there, told)
        if here != there:
            which = f" in {names}" if names else ""
            raise UserError(
                f"the state of {link.name} is not what it was{which}",
                hint="what goes on while a device is stopped changes it: a thread that on_quiesce has not stopped, or"
                " that on_load lets go before on_resume; the traces of both servers have what was asked of them",
            )

    def _not_compared(self, link: DeviceLink, why: Exception) -> None:
        self._report.notes.append(f"the state of {link.name} could not be compared: {why}")

    # -- in between ---------------------------------------------------------------------------------------------------

    @property
    def _deadline(self) -> Deadline:
        """The deadline of all of it; whoever looks on may have brought it forward."""
        return self._conductor.sooner(self._limit)

    def _await_completed(self, machine: Machine) -> None:
        """Wait until QEMU has moved all that it moves, unless somebody calls it off or the time is over before."""
        while (status := qemu_side.status_event(machine, min(_LOOK_SECONDS, self._deadline.remaining))) != "completed":
            self._conductor.check(f"before the migration of {machine.name} was completed")
            if status is None and self._deadline.passed:
                raise QmpTimeout(f"{machine.name}: the migration was not completed in {self._deadline.seconds:g} s")

    def _may_go_on(self, phase: Phase) -> None:
        self._conductor.check(f"before {phase}")
        self._check_guest()
        for moved in self._by_qemu:
            moved.check(source_too=True)
        if self._deadline.passed:
            raise UserError(f"the time of {self._deadline.seconds:g} s was over before {phase}")

    def _check(self, deadline: Deadline) -> None:
        self._conductor.check("in pre-copy")
        for each in (deadline, self._deadline):  # that may have been brought forward since
            if each.passed:
                raise qemu_side.not_copied(self._source, each)
        self._destination.check()
        self._check_guest()
        for moved in self._by_qemu:
            moved.check(source_too=False)

    def _check_guest(self) -> None:
        """A guest that is no more need not be moved. One that reboots is, and comes up on the destination."""
        if Kind.PANIC in self._source.mishaps:
            self._source.mishaps.check()

    # -- back to the source -------------------------------------------------------------------------------------------

    def _go_back(self, error: BaseException) -> None:
        """The guest goes on where it was. First of all the destination ends."""
        report = self._report
        reason = str(error)
        if isinstance(error, MigrationFailed) and error.machine is self._destination:
            reason = error.explain()
        dead = self._casualties(wait=_DEATH_SECONDS if isinstance(error, QmpLost) else 0.0)
        self._destination.abandon()
        if self._switching:
            qemu_side.hang_up(self._source)
        # Not a word to the source's main loop before this: a processor may wait for the device, and hold the big lock.
        problems = self._revive_devices()
        if isinstance(error, MigrationFailed) and error.machine is self._source:
            reason = error.explain()
        report.reason = "; ".join(
            (f"in phase {report.last_phase}: {reason}", *(end for end in dead if end not in reason))
        )
        try:
            qemu_side.let_run(self._source, self._was_running)
            panicked = Kind.PANIC in self._source.mishaps
            report.verdict = Verdict.DEAD if panicked else Verdict.LOST if problems else Verdict.STAYED
        except FAILURES as lost:
            problems.append(f"the source: {lost}")
            report.verdict = Verdict.DEAD
        report.notes += problems

    def _casualties(self, wait: float) -> list[str]:
        """Who has ended that should not have; of all those on a host whose connection has ended that, once."""
        sides = {"source": self._source, "destination": self._destination}
        children = [(f"the {side}'s QEMU", machine.child) for side, machine in sides.items()]
        for link in self._links:
            for side, server in (("source", link.source), ("destination", link.destination)):
                children.append((f"the {side}'s server of {link.name}", server.child))
                children.append((f"the {side}'s interposer of {link.name}", server.interposer.child))
        for moved in self._by_qemu:
            sides_of = (("source", moved.source), ("destination", moved.destination))
            children += [(f"the {side}'s server of {moved.name}", server.child) for side, server in sides_of]
        self._destination.child.wait(wait)
        ended = ((who, child) for who, child in children if not child.running)
        return [*dict.fromkeys(lost_connection(child) or f"{who} {child.fate()}" for who, child in ended)]

    def _revive_devices(self) -> list[str]:
        problems = []
        coordinated = self._report.mode is Mode.COORDINATED
        for link in self._links if coordinated else []:
            try:
                with ExitStack() as at_last:  # what it says of its state or not: the guest runs, and waits for it
                    if link in self._held:
                        at_last.callback(link.source.control.call, "resume")
                    link.return_to_source()
            except FAILURES as error:
                problems.append(f"{link.name} does not run any more: {error}")
        for link in self._changed:
            assert link.pci is not None
            with suppress(*FAILURES):
                self._write_command(link, link.pci.word(pci_state.COMMAND, 2))
        return problems


def function_of(machine: Machine, link: DeviceLink) -> PciAddress:
    """The PCI address of a device on the buses of a machine."""
    if isinstance(link.place, str):
        return PciAddress.parse(link.place)
    port = PciAddress.parse(slot_address(link.place))
    with pci_state.undisturbed(machine.qtest):
        return PciAddress(machine.qtest.secondary_bus(port), 0)


_LOOK_SECONDS = 0.1  # between looks at whoever may have called it off; QEMU's events interrupt the wait
_TURN_SECONDS = 0.05  # seconds between looks at devices while QEMU copies; its events interrupt the wait
_CATCHING_UP = 8  # rounds of what the guest changed meanwhile, before what is left is left to the downtime
_TELL_SECONDS = 5.0
_PCI_STATE_SECONDS = 10.0  # for QEMU to give a device its PCI state; it waits 5 s for a server, and again and again
_DEATH_SECONDS = 0.5  # seconds between the end of QEMU's connections and its own
_WITHOUT_US = (Phase.PREPARE, Phase.PRE_COPY, Phase.RESUME)
"""The phases of a migration that QEMU does alone."""
