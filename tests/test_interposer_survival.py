"""Servers die and are replaced; the client of these tests never notices, but where it is meant to."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from tests.cases import for_each
from tests.interposed import EDU, EDU_BY_PATH, Interposed, interposed_edu
from tests.interposer_bench import Bench, read
from tests.processes import until
from userdev.control import ControlError
from userdev.errors import UserError
from vfio_user.client import Client, Disconnected, EventFd, GuestMemory, RemoteError
from vfio_user.interposer import own_calls
from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.interposer.migration import migration_of
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.survival import Policy, Survival
from vfio_user.wire.constants import IrqIndex, MigrationState

LIVENESS, COMPUTE, RAISE = 0x04, 0x08, 0x60
PATIENCE = 50.0


def surviving(tmp_path: Path, server: str = EDU, **policy: Any) -> Interposed:
    """Its client waits as long as a busy machine takes to start a server, unless the policy says otherwise."""
    patient = {"msg_timeout": 60.0, "give_up_after": 60.0, **policy}
    return Interposed(tmp_path, server, survive=Policy(**patient), trace=str(tmp_path / "trace"))


def read_until_it_fails(client: Client) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        client.load(0, LIVENESS, 4)


def read_until_it_works(client: Client) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            return client.load(0, LIVENESS, 4)
        except RemoteError:
            continue
    raise AssertionError("every request failed")


def kill(edu: Interposed) -> None:
    edu.control().call("signal", signal="SIGKILL")


@for_each([EDU, EDU_BY_PATH])
def test_a_killed_server_is_replaced_and_the_client_never_knows(server: str, tmp_path: Path) -> None:
    with surviving(tmp_path, server) as edu:
        client = edu.client()
        client.dma_map(0, edu.ram())
        for value in range(3):
            kill(edu)
            client.store(0, LIVENESS, 4, value)
            assert client.load(0, LIVENESS, 4) == ~value & 0xFFFFFFFF
        control = edu.control()
        assert control.survival()["crashes"] == 3
        assert control.call("status")["sessions"] == 1


def test_no_request_is_lost_under_load(tmp_path: Path) -> None:
    """Writes and reads without pause, while the server is killed again and again, whenever it has done something."""
    over = threading.Event()
    count = 0

    def killer() -> None:
        control, before = edu.control(), 0
        while not over.wait(0.05):
            if count > before and not control.survival()["recovering"]:
                before = count
                with suppress(ControlError):  # it is dead already, which the interposer has not noticed yet
                    control.call("signal", signal="SIGKILL")

    with surviving(tmp_path) as edu:
        client = edu.client()
        thread = threading.Thread(target=killer)
        thread.start()
        while edu.interposer.survival is not None and edu.interposer.survival.record.crashes < 5:
            count += 1
            client.region_write(0, LIVENESS, count.to_bytes(4, "little"), posted=True)
            found = client.load(0, LIVENESS, 4)
            assert found in (~count & 0xFFFFFFFF, 0)  # what was acknowledged is edu's to lose when it dies
        over.set()
        thread.join()
        assert count > 5


def test_a_crash_triggers_the_drivers_interrupts_and_not_the_clients_own(tmp_path: Path) -> None:
    """QEMU stops the guest at ERR, and has REQ unplug the device."""
    with surviving(tmp_path) as edu, EventFd() as vector, EventFd() as error, EventFd() as request:
        client = edu.client()
        for index, eventfd in ((IrqIndex.MSIX, vector), (IrqIndex.ERR, error), (IrqIndex.REQ, request)):
            client.enable_irqs(index, [eventfd])
        kill(edu)
        client.load(0, LIVENESS, 4)
        assert client.wait_interrupt(vector) == 1
        assert [error.take(), request.take()] == [0, 0]


def test_a_level_is_not_raised_by_anybody_but_the_device(tmp_path: Path) -> None:
    """A guest whose driver finds no cause for an INTx does not touch the device, and so nobody lowers it again."""
    with surviving(tmp_path) as edu, EventFd() as line:
        client = edu.client()
        client.enable_irqs(IrqIndex.INTX, [line])
        kill(edu)
        client.load(0, LIVENESS, 4)
        assert line.take() == 0


def test_the_new_server_is_told_of_memory_and_interrupts(tmp_path: Path) -> None:
    with surviving(tmp_path, kick=False) as edu, EventFd() as interrupt:
        client, ram = edu.client(), edu.ram()
        client.dma_map(0, ram)
        client.config_write(4, b"\6\0")
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        ram.view[0x1000:0x1004] = b"data"
        kill(edu)
        client.store(0, 0x80, 8, 0x1000)  # from memory to the device's buffer ...
        client.store(0, 0x88, 8, 0x40000)
        client.store(0, 0x90, 8, 4)
        client.store(0, 0x98, 8, 0x1)
        client.store(0, 0x80, 8, 0x40000)  # ... and from there to other memory
        client.store(0, 0x88, 8, 0x2000)
        client.store(0, 0x98, 8, 0x1 | 0x2)
        client.store(0, RAISE, 4, 1)
        assert client.wait_interrupt(interrupt) == 1
        assert bytes(ram.view[0x2000:0x2004]) == b"data"


def test_interrupts_are_triggered_after_a_crash_as_one_may_be_lost(tmp_path: Path) -> None:
    with surviving(tmp_path) as edu, EventFd() as interrupt:
        client = edu.client()
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        kill(edu)
        assert client.wait_interrupt(interrupt) == 1


def test_a_planned_restart_hands_the_state_over(tmp_path: Path) -> None:
    with surviving(tmp_path) as edu:
        client, control = edu.client(), edu.control()
        client.store(0, COMPUTE, 4, 6)
        before = control.server_pid()
        done = control.call("restart")
        assert done["handed_over"]
        assert client.load(0, COMPUTE, 4) == 720
        assert control.server_pid() != before
        survived = control.survival()
        assert (survived["restarts"], survived["crashes"]) == (1, 0)


def test_a_restart_without_handing_over_leaves_a_fresh_device(tmp_path: Path) -> None:
    with surviving(tmp_path) as edu:
        client = edu.client()
        client.store(0, COMPUTE, 4, 6)
        edu.control().call("restart", hand_over=False)
        assert client.load(0, COMPUTE, 4) == 0


def test_a_client_in_the_middle_of_a_restart_only_waits(tmp_path: Path) -> None:
    with surviving(tmp_path) as edu:
        client = edu.client()
        client.store(0, COMPUTE, 4, 5)
        thread = threading.Thread(target=lambda: edu.control().call("restart"))
        thread.start()
        while thread.is_alive():
            assert client.load(0, COMPUTE, 4) == 120
        thread.join()
        assert client.load(0, COMPUTE, 4) == 120


def edu_behind(tmp_path: Path, before: str, options: str = "") -> str:
    """The command of an edu that shell commands come before, at each start."""
    script = tmp_path / "server.sh"
    script.write_text(f"#!/bin/sh\n{before}\nexec {sys.executable} -m vfio_user serve edu {options} --fd $1\n")
    script.chmod(0o755)
    return f"{script} {{fd}}"


def starts_again_when_released(tmp_path: Path) -> str:
    """A server whose second start waits until `released` is there."""
    return edu_behind(
        tmp_path,
        f"while test -e {tmp_path}/started && ! test -e {tmp_path}/released; do sleep 0.02; done\n"
        f"touch {tmp_path}/started",
    )


def test_requests_fail_at_once_where_that_is_wanted(tmp_path: Path) -> None:
    with surviving(tmp_path, starts_again_when_released(tmp_path), pending="fail", errno=errno.EBUSY) as edu:
        client = edu.client()
        kill(edu)
        with pytest.raises(RemoteError) as failed:
            read_until_it_fails(client)
        assert failed.value.errno == errno.EBUSY
        (tmp_path / "released").touch()
        read_until_it_works(client)


def descriptors_of(memory: GuestMemory) -> int:
    """How many this process has of it, client and interposer."""
    assert memory.fd is not None
    file, found = os.fstat(memory.fd), 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # of a thread's that has closed it meanwhile
            found += os.path.samestat(file, descriptor.stat())
    return found


def test_descriptors_of_requests_that_fail_meanwhile_are_closed(tmp_path: Path) -> None:
    server = starts_again_when_released(tmp_path)
    with surviving(tmp_path, server, pending="fail", errno=errno.EBUSY) as edu, GuestMemory(0x1000) as memory:
        client = edu.client()
        kill(edu)
        with pytest.raises(RemoteError):
            read_until_it_fails(client)
        own = descriptors_of(memory)
        for _ in range(8):
            with pytest.raises(RemoteError):
                client.dma_map(0x10000, memory)
        until(lambda: descriptors_of(memory) == own)
        (tmp_path / "released").touch()
        read_until_it_works(client)


def test_no_request_waits_longer_than_the_client_does(tmp_path: Path) -> None:
    """A server that takes its time: what cannot be answered in time fails, and later ones are served."""
    with surviving(tmp_path, starts_again_when_released(tmp_path), msg_timeout=0.5) as edu:
        client = edu.client()
        kill(edu)
        began = time.monotonic()
        with pytest.raises(RemoteError):
            read_until_it_fails(client)
        assert time.monotonic() - began > 0.3
        (tmp_path / "released").touch()
        assert read_until_it_works(client) == 0
        assert edu.control().survival()["failed"] >= 1


def test_a_server_that_takes_longer_to_start_than_any_answer_may_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy host none would ever come up, were each given up for another after the time of an answer."""
    starts = tmp_path / "starts"
    waits = f"while test $(wc -l < {starts}) -gt 1 && ! test -e {tmp_path}/released; do sleep 0.02; done"
    with surviving(tmp_path, edu_behind(tmp_path, f"echo >> {starts}\n{waits}")) as edu:
        client = edu.client()
        with monkeypatch.context() as hasty:
            usual = own_calls.request.__kwdefaults__
            assert usual is not None
            hasty.setitem(usual, "timeout", 0.3)
            kill(edu)
            end = time.monotonic() + 1.0
            while time.monotonic() < end and starts.read_text().count("\n") < 3:
                time.sleep(0.02)
        (tmp_path / "released").touch()
        assert read_until_it_works(client) == 0
        assert starts.read_text().count("\n") == 2


HANGS_UP_FIRST = """
import os, socket, sys
socket.socket(fileno=os.dup(int(sys.argv[1]))).accept()[0].close()
open(sys.argv[2], "w").close()
os.set_inheritable(int(sys.argv[1]), True)
os.execv(sys.executable, [sys.executable, "-m", "vfio_user", "serve", "edu", "--fd", sys.argv[1]])
"""


def test_a_client_that_comes_late_has_a_connection_that_is_still_there(tmp_path: Path) -> None:
    """A server waits 10 s for VERSION: nobody may have come by then, as QEMU does on a busy host."""
    (tmp_path / "server.py").write_text(HANGS_UP_FIRST)
    with surviving(tmp_path, f"{sys.executable} {tmp_path}/server.py {{fd}} {tmp_path}/hung-up") as edu:
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "hung-up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert edu.client().load(0, LIVENESS, 4) == 0


def test_a_server_that_hangs_is_killed_and_replaced(tmp_path: Path) -> None:
    """On a busy machine the new server may seem to hang as well; it is replaced in turn."""
    with surviving(tmp_path, hang_timeout=1.0, msg_timeout=60.0) as edu:
        client = edu.client()
        edu.control().call("signal", signal="SIGSTOP")
        end = time.monotonic() + 60
        while not (survival := edu.control().survival())["hangs"]:
            assert client.load(0, LIVENESS, 4) == 0  # it may answer some more before the signal gets to it
            assert time.monotonic() < end
        assert survival["hangs"] == survival["crashes"]


def test_a_server_that_never_comes_back_is_given_up(tmp_path: Path) -> None:
    """The first start works, later ones do not."""
    once = f"sh -c 'test ! -e {tmp_path}/once && touch {tmp_path}/once && exec {sys.executable} -m vfio_user serve edu"
    with surviving(tmp_path, once + " --socket-path {socket}'", give_up_after=0.5) as edu:
        client = edu.client()
        kill(edu)
        with pytest.raises(Disconnected):
            read_until_it_fails(client)


def test_a_server_that_is_another_device_now_is_refused(tmp_path: Path) -> None:
    """The client has been told of regions that the new server does not have."""
    once = f"if test -e {tmp_path}/once; then msix=0; else msix=4; touch {tmp_path}/once; fi"
    with surviving(tmp_path, edu_behind(tmp_path, once, "--msix $msix")) as edu:
        client = edu.client()
        client.regions()
        kill(edu)
        with pytest.raises(Disconnected):
            read_until_it_fails(client)


@for_each(["memfd", "{folder}/page"])
def test_only_a_server_that_has_the_memory_which_the_client_has_mapped_can_replace_another(
    page: str, tmp_path: Path
) -> None:
    """Else the guest would ring doorbells that nobody looks at any more."""
    options = f"--image {tmp_path}/disk.img:1M --map-doorbells {page.format(folder=tmp_path)}"
    with surviving(tmp_path, f"{sys.executable} -m vfio_user serve nvme --fd {{fd}} {options}") as nvme:
        client = nvme.client()
        memory = client.map_region(client.regions()[0])
        if page == "memfd":
            with pytest.raises(ControlError, match="mapped"):
                nvme.control().call("restart")
            assert client.load(0, 8, 4) == 0x00010400
            kill(nvme)
            with pytest.raises(Disconnected):
                read_until_it_fails(client)
        else:
            assert nvme.control().call("restart")["handed_over"]
            kill(nvme)
            assert client.load(0, 8, 4) == 0x00010400
        memory.close()


def test_a_server_that_somebody_else_starts_again_is_found(tmp_path: Path) -> None:
    import subprocess

    path = tmp_path / "server"
    command = [sys.executable, "-m", "vfio_user", "serve", "edu", "--socket-path", str(path)]

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert process.stderr is not None
        assert process.stderr.readline()
        return process

    first = start()
    with Interposed(tmp_path, None, connect=str(path), survive=Policy()) as edu:
        client = edu.client()
        assert edu.control().server_pid() == first.pid
        with first:
            first.kill()
        second = start()
        assert client.load(0, LIVENESS, 4) == 0
        with second:
            second.kill()
            edu.control()
            client.close()


def test_restart_needs_to_be_allowed(tmp_path: Path) -> None:
    with Interposed(tmp_path) as edu:
        edu.client()
        with pytest.raises(ControlError):
            edu.control().call("restart")


def test_a_server_that_cannot_be_started_is_told_of(tmp_path: Path) -> None:
    for command in ("/no/such/program {fd}", "false {socket}", "true", "'unbalanced {fd}"):
        with pytest.raises(UserError):
            Interposer(Setup(listen=str(tmp_path / "a"), server_command=command))
        assert not (tmp_path / "a").exists()


def test_a_server_dies_with_the_interposer(tmp_path: Path) -> None:
    with Interposed(tmp_path) as edu:
        edu.client()
        pid = edu.control().server_pid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_device_that_is_only_posted_to_is_asked_now_and_then(tmp_path: Path) -> None:
    """Otherwise the journal of what it may have lost would grow for ever."""
    with surviving(tmp_path) as edu:
        client = edu.client()
        control = edu.control()
        for count in range(2000):
            client.region_write(0, LIVENESS, count.to_bytes(4, "little"), posted=True)
        deadline = time.monotonic() + 30
        while control.survival()["unanswered"] > 600:
            assert time.monotonic() < deadline
        assert control.session_status()["counters"]["own_requests"] >= 1


def test_a_device_runs_on_where_its_state_cannot_be_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(session: ForwardedSession) -> int:
        await (await migration_of(session)).set_state(MigrationState.STOP_COPY)
        raise TimeoutError("it says no more")

    monkeypatch.setattr("vfio_user.interposer.survival.save_state", fails)
    with interposed_edu(tmp_path, survive=Policy(msg_timeout=60.0)) as edu:
        client = edu.client()
        with pytest.raises(ControlError, match="it says no more"):
            edu.control().call("restart")
        assert client.migration_state() is MigrationState.RUNNING
        assert client.load(0, LIVENESS, 4) == 0


class Signalled:
    """A server's side that knows its process, or does not."""

    def __init__(self, *, known: bool) -> None:
        self.known, self.signals = known, list[int]()

    def signal(self, number: int) -> int:
        if not self.known:
            raise UserError("the server's process is not known")
        self.signals.append(number)
        return 1


def test_a_server_that_answers_nothing_is_killed_or_it_is_said_why_not() -> None:
    for known in (True, False):
        said, upstream = list[str](), Signalled(known=known)
        with Bench() as bench:
            survival = Survival(bench.session, cast(Any, upstream), Policy(hang_timeout=0.02), said.append)
            bench.settle()
            bench.negotiate()
            assert survival.record.hangs == 0
            bench.client.send(read(0, 0))
            while not (upstream.signals or said):
                bench.loop.turn(1)
            assert survival.record.hangs == 1
            assert upstream.signals == [signal.SIGKILL] * known
            assert said == ["the server's process is not known"] * (not known)
            while survival.record.hangs == 1:
                bench.loop.turn(1)


def test_nobody_looks_for_a_hang_behind_the_end_of_a_session() -> None:
    for ended in (False, True):
        with Bench() as bench:
            survival: Any = Survival(bench.session, cast(Any, None), Policy(hang_timeout=0.0), lambda _: None)
            looked: list[float] = []
            survival._watch_for_hangs = looked.append
            if ended:
                bench.session.close()
            bench.settle()
            assert looked == [0.0] * (not ended)
