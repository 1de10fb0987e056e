"""One cell of the matrix of disconnections: bring a guest to a moment, let somebody go, and see what became of all.

The moment is exact because the server is stopped first: what the guest or QEMU began stays begun until somebody's fate
has come. (A server's or QEMU's own pause is the freeze itself.)
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from avocado_tests.disconnections import CELLS, Expected, Moment, Row, posts_writes
from avocado_tests.guest_programs import command_of, put_program
from avocado_tests.leftovers import client_things
from userdev.control import ControlError
from userdev.errors import UserError
from vfio_user.client import Client
from vfio_user.harness import (
    BootedGuest,
    Child,
    Deadline,
    DeviceServer,
    Exercise,
    GuestFailure,
    Job,
    Lab,
    MachineError,
    Plugged,
    QmpLost,
    QmpTimeout,
    ServerFailure,
    report_of,
)
from vfio_user.wire.constants import MigrationState

DEVICE = "avocado_tests.busy_edu:BusyEdu --msix 0 --plain yes"
PAUSE = 0.3
"""Seconds that the server stands still before the fate, and that a SIGSTOP lasts."""
MESSAGE_TIMEOUT = 2.0  # seconds, QEMU's x-msg-timeout: longer than every pause here
HALF_CLOSED = 5.0  # seconds that a half-closed connection stays so
LIVENESS = 0x5A5A5A5A ^ 0xFFFFFFFF
ONES = 0xFFFFFFFF
PATIENCE = 60.0

# What the interposer is told: to hold the reply to a map back, to keep that to VERSION from QEMU, or to close at the
# next message.
HELD = "rules: [{match: {command: DMA_MAP, direction: to-client}, act: {delay: 0.8}}]"
UNANSWERED = "rules: [{match: {command: VERSION, direction: to-client}, act: drop}]"
NEXT_READ = "command: REGION_READ, region: BAR0"
CLOSINGS = {"close": "close: {side: client}", "half-close": "close: {side: client, how: write}"}


@dataclass(frozen=True)
class Outcome:
    """What was seen: `guest`, `qemu` and `server` in the words of the table, the longest silence of QMP in seconds."""

    guest: str
    qemu: str
    server: str
    frozen: float

    def differs(self, expected: Expected) -> list[str]:
        """What is not as it should be. Who shares a core with others is silent for so many times as long."""
        wrong = [
            f"{name} {seen!r}, not {wanted!r}"
            for name, seen, wanted in (
                ("guest", self.guest, expected.guest),
                ("QEMU", self.qemu, expected.qemu),
                ("server", self.server, expected.server),
            )
            if seen != wanted
        ]
        allowed = expected.frozen * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        return wrong + ([f"frozen for {self.frozen:.2f} s, not {allowed:.2f} s"] if self.frozen > allowed else [])


class Disconnection:
    """Cells of one row, in one guest as long as it lives, with one server as long as that lives."""

    def __init__(self, lab: Lab, row: Row) -> None:
        self.lab = lab
        self.row = row
        self.guest: BootedGuest | None = None
        self.server: DeviceServer | None = None
        self._made = 0
        self._ending: threading.Timer | None = None

    def cells(self) -> Iterator[tuple[Moment, Outcome]]:
        for moment in CELLS[self.row]:
            yield moment, self.cell(moment)

    def cell(self, moment: Moment) -> Outcome:
        guest, server = self.ready()
        with Silence(guest) as silence, ThreadPoolExecutor(1) as pool:
            try:
                if moment is Moment.VERSION:
                    seen = self._while_plugging(guest, server, pool)
                else:
                    seen = self._while_in_use(guest, server, moment)
            finally:
                if self._ending is not None:
                    self._ending.cancel()
                    self._ending.join()
                faults_off(server)
        qemu = self._qemu_after(guest)
        return Outcome(seen, qemu, self._server_after(server), silence.longest)

    # -- the two kinds of moment --------------------------------------------------------------------------------------

    def _while_plugging(self, guest: BootedGuest, server: DeviceServer, pool: ThreadPoolExecutor) -> str:
        if self._closing:
            self._close_at(server, "command: VERSION")
        else:
            if self._ends_a_peer:  # which may be awake for a moment before it ends, and QEMU gets no further than this
                server.control.call("faults", scenario=UNANSWERED)
            server.child.pause()
        plugged: Future[Plugged] = pool.submit(self.plug, guest, server)
        if not self._closing:
            self.freeze(server)
            self._meet_its_fate(guest, server)
        try:
            device = plugged.result(60)
        except (UserError, ServerFailure, GuestFailure):
            return "no device" if guest.machine.child.wait(0.5) is None else "gone with QEMU"
        return self._look_and_unplug(guest, server, device, self.watch(guest, device, "idle"))

    def _while_in_use(self, guest: BootedGuest, server: DeviceServer, moment: Moment) -> str:
        device = self.plug(guest, server, posted=posts_writes(moment))
        if moment is Moment.MIGRATING:
            server.control.call("migration_state", set="PRE_COPY")
        if moment is Moment.MAP and self._closing:
            self._close_at(server, "command: DMA_MAP")
        elif moment is Moment.MAP:
            server.control.call("faults", scenario=HELD)
        job = self.watch(guest, device, moment.activity, wait=moment is not Moment.MAP)
        if moment is Moment.MAP and not self._closing:
            _until(lambda: has_maps(server), "the map")
        if self._closing:
            if moment is not Moment.MAP:
                self._close_at(server, NEXT_READ)
        elif self.row.who != "QEMU" or self.row.how != "close":
            self.freeze(server)
            self._meet_its_fate(guest, server)
            if guest.machine.child.wait(0.0) is not None:
                return "gone with QEMU"
        return self._look_and_unplug(guest, server, device, job)

    def _look_and_unplug(self, guest: BootedGuest, server: DeviceServer, device: Plugged, job: Job) -> str:
        try:
            seen = self._what_was_seen(guest, job)
            guest.unplug(device, keep_server=True)
        except (MachineError, ServerFailure, QmpLost):  # QEMU died of it
            return "gone with QEMU"
        return seen

    # -- the fate -------------------------------------------------------------------------------------------------

    @property
    def _ends_a_peer(self) -> bool:
        return self.row.who != "QEMU" and self.row.how in ("SIGKILL", "SIGTERM")

    @property
    def _closing(self) -> str:
        return CLOSINGS.get(self.row.how, "") if self.row.who == "server" else ""

    def freeze(self, server: DeviceServer) -> None:
        """Stop the server, and give what piles up then the time to do so: nobody tells when QEMU has sent it."""
        server.child.pause()
        time.sleep(PAUSE)

    def _meet_its_fate(self, guest: BootedGuest, server: DeviceServer) -> None:
        victim = self._victim(guest, server)
        match self.row.how:
            case "SIGKILL" | "SIGTERM":
                victim.signal(signal.Signals[self.row.how])
                server.child.signal(signal.SIGCONT)
                if victim.wait(PATIENCE) is None:
                    raise GuestFailure(f"{victim.name} outlived {self.row.how} by {PATIENCE:g} s")
                if self.row.who == "server":  # what the guest does next comes behind the end, not before it
                    _until(lambda: not has_client(server), "the interposer to pass the end on")
            case "SIGSTOP":
                victim.signal(signal.SIGSTOP)
                time.sleep(PAUSE)
                victim.signal(signal.SIGCONT)
                server.child.signal(signal.SIGCONT)

    def _victim(self, guest: BootedGuest, server: DeviceServer) -> Child:
        return {"server": server.child, "interposer": server.interposer.child, "QEMU": guest.machine.child}[
            self.row.who
        ]

    def _close_at(self, server: DeviceServer, message: str) -> None:
        rule = f"{{match: {{direction: to-server, {message}}}, act: {{{self._closing}}}}}"
        server.control.call("faults", scenario=f"rules: [{rule}]")
        if self.row.how == "half-close":  # every access would wait as long as the first: end it for good
            self._ending = threading.Timer(HALF_CLOSED, end, [server.interposer.child])
            self._ending.start()

    # -- what became of each ----------------------------------------------------------------------------------------

    def watch(self, guest: BootedGuest, device: Plugged, activity: str, *, wait: bool = True) -> Job:
        """The guest's program, at work."""
        guest.succeed("rm -f /tmp/busy /tmp/go-on")
        job = guest.start([command_of("busy"), "--slot", device.address, "watch", activity])
        if wait:
            guest.wait_until_succeeds("test -e /tmp/busy", timeout=30, interval=0.02)
        return job

    def _what_was_seen(self, guest: BootedGuest, job: Job) -> str:
        guest.succeed("touch /tmp/go-on")
        report = report_of(guest, ["busy", "watch"], job.wait())
        return in_words(report) if report.ok else report.verdict

    def _qemu_after(self, guest: BootedGuest) -> str:
        if guest.machine.child.wait(0.0) is None:
            return "runs"
        self.guest = None
        guest.devices.clear()
        fate = guest.machine.child.fate()
        self.lab.guests.remove(guest)
        guest.close()
        return fate

    def _server_after(self, server: DeviceServer) -> str:
        """ "serves" is alive, with everything of its old client let go, and takes a new one."""
        if server.child.wait(0.0) is not None:
            self.server = None
            fate = server.child.fate()
            self.lab.end(None, [server])
            return fate
        _until(lambda: not client_things(server.child.pid), "the server to let go what its client had")
        with Client.connect(f"unix:{server.server_path}") as client:
            if client.load(0, 0, 4) != 0x010000ED or client.migration_state() is not MigrationState.RUNNING:
                return "serves wrongly"
        _until(lambda: not client_things(server.child.pid), "the server to let go what a client in Python had")
        if server.interposer.child.wait(0.0) is not None:
            self.server = None
            self.lab.end(None, [server])
        return "serves"

    # -- what the next cell begins with -----------------------------------------------------------------------------

    def ready(self) -> tuple[BootedGuest, DeviceServer]:
        """The guest and the server for the next cell: new ones where the last has ended them."""
        if self.server is None:
            self._made += 1
            served = self.lab.serve(DEVICE, f"busy{self._made}", interposed=True)
            Client.connect(f"unix:{served.path}", timeout=60).close()  # it is up: VERSION has to be answered in time
            self.server = served
        if self.guest is None:
            self.guest = self.lab.boot(iommu=True, name=f"guest{self._made}")
            self._made += 1
            put_program(self.guest, "busy")
        return self.guest, self.server

    def plug(self, guest: BootedGuest, server: DeviceServer, *, posted: bool = True) -> Plugged:
        """The device, plugged in; `posted` is whether QEMU may send writes that want no reply."""
        timeout = int(MESSAGE_TIMEOUT * 1000)
        return guest.plug(DEVICE, server=server, x_msg_timeout=timeout, x_no_posted_writes=not posted)


def end(child: Child) -> None:
    child.signal(signal.SIGKILL)
    child.wait(PATIENCE)


def has_client(server: DeviceServer) -> bool:
    return server.control.call("status")["session"] is not None


def has_maps(server: DeviceServer) -> bool:
    try:
        return bool(server.control.call("session")["maps"])
    except ControlError:  # there is no client yet
        return False


def faults_off(server: DeviceServer) -> None:
    if server.interposer.child.wait(0.0) is None:
        server.control.call("faults")


def in_words(report: Exercise) -> str:
    """ "right" when every answer was, "ones" when it ended with all ones; and what the device went on to do."""
    answers = set(report.seen["answers"])
    if not answers <= {LIVENESS, ONES}:
        return f"answers {', '.join(map(hex, sorted(answers)))}"
    own = [name for name in ("dma", "interrupts") if report.seen[name]]
    return " and ".join(["ones" if ONES in answers else "right", *own])


class Silence:
    """Asks QEMU for its status all the time; `longest` is the longest that it took to answer."""

    def __init__(self, guest: BootedGuest) -> None:
        self.longest = 0.0
        self._qmp = guest.qmp
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="silence")

    def _ask(self) -> None:
        while not self._enough.wait(0.02):
            began = time.monotonic()
            with suppress(QmpTimeout):
                try:
                    self._qmp.command("query-status", 20.0)
                except QmpLost:
                    return  # its end is no silence
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Silence:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()


def _until(happened: Callable[[], bool], what: str) -> None:
    """Wait for what another process does, which gives no event."""
    deadline = Deadline(PATIENCE)
    while not happened():
        if deadline.passed:
            raise GuestFailure(f"waited {PATIENCE:g} s for {what}")
        time.sleep(0.005)
