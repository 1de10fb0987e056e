"""The guest's agent, the real one, as a process of this machine at the other end of a socket pair."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import running, until
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.guest import GuestFailure, GuestLost, Job, shipped
from vfio_user.harness.hotplug import wait_for_device
from vfio_user.harness.image.recipe import ROOM
from vfio_user.harness.timeouts import SCALE_VARIABLE

PROGRAMS = ROOM / "programs"
SERVE = "import sys; sys.path.insert(0, sys.argv[1]); import agent; agent.Agent(int(sys.argv[2])).serve()"


class Port:
    """A virtio-serial port between the agent and one host after another."""

    def __init__(self, programs: Path = PROGRAMS) -> None:
        self._outer, self._inner = socket.socketpair()
        self._inner.setblocking(False)
        number = self._inner.fileno()
        self.agent = subprocess.Popen(
            [sys.executable, "-B", "-c", SERVE, str(programs), str(number)],
            pass_fds=[number],
            stdin=subprocess.PIPE,  # its programs have another, which is at its end
        )
        self._hosts: list[socket.socket] = []
        self.deaf = threading.Event()  # what the agent says is lost, as in a machine that is gone
        threading.Thread(target=self._to_host, daemon=True).start()

    def connect(self) -> socket.socket:
        """The end of a new host; from now on the agent's answers go there."""
        host, port = socket.socketpair()
        self._hosts.append(port)
        self.deaf.clear()
        threading.Thread(target=self._to_agent, args=(port,), daemon=True).start()
        return host

    def type(self, data: bytes) -> None:
        """Send to the agent, before whatever comes next."""
        self._outer.sendall(data)

    def say(self, data: bytes) -> None:
        """Send to the host, as from the agent."""
        self._hosts[-1].sendall(data)

    def close(self) -> None:
        self.agent.kill()
        self.agent.wait()
        assert self.agent.stdin is not None
        self.agent.stdin.close()
        for end in (self._inner, self._outer, *self._hosts):
            end.close()

    def _to_agent(self, port: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := port.recv(1 << 16):
                self._outer.sendall(data)

    def _to_host(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._outer.recv(1 << 16):
                if self._hosts and not self.deaf.is_set():
                    self._hosts[-1].sendall(data)


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.close()


@pytest.fixture
def guest(port: Port) -> Iterator[AgentGuest]:
    connected = AgentGuest(port.connect())
    connected.hello(30)
    yield connected
    connected.close()


def test_a_command_has_an_exit_code_and_two_outputs(guest: AgentGuest) -> None:
    result = guest.run("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr, result.ok) == (3, "out\n", "err\n", False)


def test_a_list_is_a_program_and_its_arguments_without_a_shell(guest: AgentGuest) -> None:
    assert guest.succeed(["printf", "%s", "$HOME; *"]) == "$HOME; *"


def test_succeed_and_fail_judge_and_show_what_happened(guest: AgentGuest) -> None:
    assert guest.succeed("echo one", "echo two") == "one\ntwo\n"
    guest.fail("exit 1")
    with pytest.raises(GuestFailure) as caught:
        guest.succeed("echo before the end; exit 4")
    assert "before the end" in caught.value.evidence
    assert caught.value.result is not None
    assert caught.value.result.exit_code == 4
    with pytest.raises(GuestFailure):
        guest.fail("true")


def test_a_program_that_is_not_there_is_an_error_not_a_hang(guest: AgentGuest) -> None:
    with pytest.raises(GuestFailure, match="FileNotFoundError"):
        guest.run(["/no/such/program"])


def test_commands_run_side_by_side(guest: AgentGuest) -> None:
    waiting = guest.start("exec sleep 300", 600)
    assert guest.succeed("echo meanwhile") == "meanwhile\n"
    waiting.kill(signal.SIGKILL)
    assert waiting.wait(30).exit_code == -signal.SIGKILL


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(guest: AgentGuest, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    for seconds in (0.3, 3.0, 30.0):  # to begin with on a busy machine
        with pytest.raises(GuestFailure) as caught:
            guest.run(f"sleep 300 & echo $! > {pid}; echo started; wait", timeout=seconds)
        result = caught.value.result
        assert result is not None
        assert result.timed_out
        assert f"did not end in {seconds:g} s\n" in f"{caught.value}\n"
        if result.stdout:
            break
    assert result is not None
    assert result.stdout == "started\n"
    assert not running(int(pid.read_text()))


def test_a_deadline_that_was_made_longer_is_told_with_its_factor(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SCALE_VARIABLE, raising=False)
    with contextlib.closing(AgentGuest(port.connect(), patience=2)) as guest:
        guest.hello(30)
        with pytest.raises(GuestFailure, match=r"in 0\.2 s \(0\.1 s, times 2 as there is no KVM\)"):
            guest.run("sleep 300", timeout=0.1)
    ours, theirs = socket.socketpair()
    silent = AgentGuest(ours, patience=0.02)
    with theirs, contextlib.closing(silent), pytest.raises(GuestLost, match=r"in 0\.04 s \(2 s, times 0\.02 "):
        silent.hello(2)


def test_a_command_ends_although_what_it_left_running_holds_its_output(guest: AgentGuest) -> None:
    began = time.monotonic()
    assert guest.succeed("sleep 30 & echo $!").strip().isdigit()
    assert time.monotonic() - began < 20


def test_much_output_comes_whole(guest: AgentGuest) -> None:
    assert guest.succeed("head -c 3000000 /dev/zero | tr '\\0' x") == "x" * 3000000


def test_wait_until_succeeds_repeats(guest: AgentGuest, tmp_path: Path) -> None:
    count = tmp_path / "count"
    guest.wait_until_succeeds(f"echo x >> {count}; test $(wc -l < {count}) -ge 3", interval=0.01)
    assert count.read_text() == "x\n" * 3
    with pytest.raises(GuestFailure, match="never"):
        guest.wait_until_succeeds("false", timeout=0.1, interval=0.02)


def test_files_go_both_ways(guest: AgentGuest, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    target = tmp_path / "target"
    guest.put(data, str(target), 0o750)
    assert target.read_bytes() == data
    assert target.stat().st_mode & 0o777 == 0o750
    assert guest.get(str(target)) == data
    guest.put(b"", str(target))
    assert guest.get(str(target)) == b""
    with pytest.raises(GuestFailure, match="FileNotFoundError"):
        guest.get(str(tmp_path / "nothing"))


def arithmetic(a: int, b: int = 2, *, data: bytes = b"") -> dict[str, object]:
    import os

    print("printed")
    return {"sum": a + b, "pid": os.getpid(), "data": data[::-1]}


def failing(text: str) -> None:
    raise ValueError(text)


def ending() -> None:
    import os

    os._exit(7)


def unsendable() -> object:
    return object()


def test_a_function_is_called_in_the_guest(guest: AgentGuest, port: Port) -> None:
    answer = guest.call(arithmetic, 3, data=b"ab\0")
    assert (answer["sum"], answer["data"]) == (5, b"\0ba")
    assert answer["pid"] not in (os.getpid(), port.agent.pid)


def test_a_functions_exception_comes_back_with_its_lines(guest: AgentGuest) -> None:
    with pytest.raises(GuestFailure, match="ValueError: no luck") as caught:
        guest.call(failing, "no luck")
    assert Path(__file__).name in str(caught.value)
    assert "raise ValueError(text)" in str(caught.value)


def calls_its_neighbour() -> None:
    failing("not there")


def calls_nobody() -> None:
    nobody_at_all()  # type: ignore[name-defined]  # noqa: F821


def test_a_function_of_ours_is_known_by_the_same_name_wherever_it_is_installed() -> None:
    """A guest from a checkpoint that another installation made need not compile it."""
    assert shipped(wait_for_device)["file"] == "vfio_user/harness/hotplug.py"
    assert shipped(running)["file"] == running.__code__.co_filename


def test_what_a_function_left_in_its_module_is_told_so(guest: AgentGuest) -> None:
    with pytest.raises(GuestFailure, match="only the text of calls_its_neighbour"):
        guest.call(calls_its_neighbour)
    with pytest.raises(GuestFailure, match="'nobody_at_all' is not defined\n"):
        guest.call(calls_nobody)


@pytest.mark.parametrize(("function", "message"), [(ending, "without a result"), (unsendable, "TypeError")])
def test_a_function_without_a_good_result_is_a_failure(
    guest: AgentGuest, function: Callable[[], object], message: str
) -> None:
    with pytest.raises(GuestFailure, match=message):
        guest.call(function)
    assert guest.succeed("echo still here") == "still here\n"


def test_what_is_under_way_survives_the_change_of_its_host(guest: AgentGuest, port: Port, tmp_path: Path) -> None:
    go, count = tmp_path / "go", tmp_path / "count"
    job = guest.start(f"echo x >> {count}; until test -e {go}; do sleep 0.01; done; echo done", 60)
    guest.wait_until_succeeds(f"test -e {count}", interval=0.01)
    guest.attach(port.connect())
    go.touch()
    assert job.wait(30).stdout == "done\n"
    assert count.read_text() == "x\n"  # asked twice, done once


def test_an_answer_that_was_lost_with_its_host_is_given_again(guest: AgentGuest, port: Port, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    port.deaf.set()
    job = guest.start(f"echo answer; touch {ended}")
    until(ended.exists)
    with pytest.raises(GuestLost):
        job.wait(0.2)
    guest.attach(port.connect())
    assert job.wait(30).stdout == "answer\n"


def test_a_new_host_ends_what_another_left(guest: AgentGuest, port: Port, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    guest.start(f"echo $$ > {pid}; exec sleep 300", 600)
    until(lambda: pid.exists() and bool(pid.read_text()))
    other = AgentGuest(port.connect())
    other.hello(30)
    until(lambda: not running(int(pid.read_text())))
    other.close()


def test_half_a_line_of_another_host_does_no_harm(port: Port) -> None:
    port.type(b'{"session": "old", "id": 1, "do": "ru')
    guest = AgentGuest(port.connect())
    guest.hello(30)
    guest.close()


def test_half_an_answer_that_a_reboot_has_cut_off_does_no_harm(guest: AgentGuest, port: Port) -> None:
    """The connection stays, and what the agent before said last had no end."""
    port.say(b'{"session": "of before", "id": 1, "ok": {"data": "' + b"x" * 1000)
    guest.renew()
    assert guest.hello(10)["pid"] == port.agent.pid


@contextlib.contextmanager
def lasting(guest: AgentGuest, folder: Path) -> Iterator[Job]:
    """A command that lasts for as long as this block: an agent that is killed leaves it behind."""
    pid = folder / "pid"
    job = guest.start(f"echo $$ > {pid}; exec sleep 300", 600)
    until(lambda: pid.exists() and bool(pid.read_text()))
    try:
        yield job
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_those_who_wait_are_told_when_the_connection_breaks(guest: AgentGuest, port: Port, tmp_path: Path) -> None:
    with lasting(guest, tmp_path) as job:
        port._hosts[-1].shutdown(socket.SHUT_RDWR)
        with pytest.raises(GuestLost):
            job.wait(30)
        with pytest.raises(GuestLost):
            guest.run("true")


def test_only_what_was_asked_before_is_given_up(guest: AgentGuest, tmp_path: Path) -> None:
    """Whoever tells of what befell a guest may be late: what was asked since is answered."""
    with lasting(guest, tmp_path) as early:
        moment = time.monotonic()
        late = guest.start("echo answered")
        guest.give_up("the guest oopsed", moment)
        with pytest.raises(GuestLost, match="oopsed"):
            early.wait(30)
        assert late.wait(30).stdout == "answered\n"
        assert guest.succeed("echo again") == "again\n"


def test_a_guest_that_never_answers_has_a_deadline() -> None:
    ours, theirs = socket.socketpair()
    guest = AgentGuest(ours, console=lambda: "Kernel panic")
    with theirs, pytest.raises(GuestLost) as caught:
        guest.hello(0.05)
    assert "Kernel panic" in caught.value.evidence
    assert "timeout=" in caught.value.hint
    guest.close()


OWN = """#!/usr/bin/env python3
import argparse, atexit, functools, json, os, subprocess, sys, threading, time

loaded = os.getpid()
DRIVERS = ("a_driver",)
USUAL = ("usual",)

@functools.cache
def parser():
    parser.built_by = os.getpid()
    made = argparse.ArgumentParser()
    made.add_argument("what")
    return made

class Kept:
    def __del__(self, write=os.write, file=os.open(__file__ + ".end", os.O_WRONLY | os.O_CREAT)):
        write(file, b"taken down")

kept = Kept()

def main():
    what = sys.argv[1] if sys.argv[1:] else ""
    if what == "says":
        print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "group": os.getpgid(0), "loaded": loaded}))
        print("to standard error", file=sys.stderr)
        return 3
    if what == "reads":
        return len(sys.stdin.read())
    if what == "raises":
        raise ValueError("it is the program's")
    if what == "waits":
        time.sleep(60)
    if what == "parses":
        parser().parse_args()
        print(parser.built_by)
    if what in ("a text", "nothing", "a number"):
        sys.exit({"a text": "it is over", "nothing": None, "a number": 4}[what])
    if what == "leaves":
        atexit.register(print, "at the end")
    if what == "threads":
        threading.Thread(target=lambda: (time.sleep(0.05), print("the thread ended first"))).start()
    if what == "children":
        subprocess.run(["sh", "-c", "echo of a child"], check=True)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AgentGuest, str]]:
    """A guest whose agent stands beside a program, and the program's path."""
    folder = tmp_path_factory.mktemp("programs")
    for path in PROGRAMS.glob("agent*.py"):
        (folder / path.name).write_bytes(path.read_bytes())
    program = folder / "own.py"
    program.write_text(OWN)
    program.chmod(0o755)
    port = Port(folder)
    guest = AgentGuest(port.connect())
    guest.hello(30)
    yield guest, str(program)
    guest.close()
    port.close()


def test_a_program_beside_the_agent_is_a_fork_of_it_with_arguments_streams_and_status(
    own: tuple[AgentGuest, str],
) -> None:
    guest, program = own
    assert guest.prepare() == ["a_driver"], "the drivers of its programs are for the host to load"
    result = guest.run([program, "says", "$HOME; *"])
    said = json.loads(result.stdout)
    assert (result.exit_code, result.stderr) == (3, "to standard error\n")
    assert said["argv"] == ["says", "$HOME; *"]
    assert said["loaded"] == guest.hello(30)["pid"], "it was not loaded by the agent"
    assert said["pid"] == said["group"] != said["loaded"]


def test_such_a_program_that_raises_ends_alone_and_shows_where(own: tuple[AgentGuest, str]) -> None:
    guest, program = own
    result = guest.run([program, "raises"])
    assert result.exit_code == 1
    assert "own.py" in result.stderr
    assert result.stderr.endswith("ValueError: it is the program's\n")
    assert guest.run([program]).exit_code == 0


@pytest.mark.parametrize(
    ("what", "said"),
    [("threads", "the thread ended first\n"), ("children", "of a child\n"), ("leaves", "at the end\n")],
)
def test_such_a_program_ends_as_any_does(own: tuple[AgentGuest, str], what: str, said: str) -> None:
    guest, program = own
    assert guest.succeed([program, what]) == said


@pytest.mark.parametrize(
    ("what", "status", "said"), [("a text", 1, "it is over\n"), ("nothing", 0, ""), ("a number", 4, "")]
)
def test_such_a_program_exits_as_any_does(own: tuple[AgentGuest, str], what: str, status: int, said: str) -> None:
    guest, program = own
    result = guest.run([program, what])
    assert (result.exit_code, result.stderr) == (status, said)


def test_what_such_a_program_shares_with_the_agent_is_not_taken_down_at_its_end(own: tuple[AgentGuest, str]) -> None:
    """Looking at all of it would copy it: 0.1 s under TCG."""
    guest, program = own
    guest.succeed([program])
    assert Path(f"{program}.end").read_bytes() == b""


def test_the_agent_builds_the_parsers_of_its_programs(own: tuple[AgentGuest, str]) -> None:
    guest, program = own
    guest.prepare()
    assert int(guest.succeed([program, "parses"])) == guest.hello(30)["pid"]


def test_such_a_program_reads_nothing_and_is_ended_when_it_takes_too_long(own: tuple[AgentGuest, str]) -> None:
    guest, program = own
    assert guest.run([program, "reads"]).exit_code == 0
    result = guest.start([program, "waits"], timeout=0.2).wait()
    assert result.timed_out
    assert result.exit_code == -signal.SIGTERM


def uses_fractions() -> None:
    import fractions  # noqa: F401

    import unheard_of  # type: ignore[import-not-found]  # noqa: F401


def loaded() -> list[str]:
    import sys

    return sorted({"ctypes", "subprocess", "fractions"} & {*sys.modules})


def test_the_agent_loads_only_what_is_wanted_of_it_and_that_once(guest: AgentGuest) -> None:
    """Each reboot of a guest waits for it; what a function imports is there for the next one."""
    assert guest.call(loaded) == []
    with pytest.raises(GuestFailure, match="unheard_of"):
        guest.call(uses_fractions)
    assert guest.call(loaded) == ["fractions"]


def test_what_the_guests_own_programs_name_as_drivers_are_kernel_modules(guest: AgentGuest) -> None:
    assert sorted(guest.prepare()) == ["uio_pci_generic", "vfio-pci", "vfio_iommu_type1"]
