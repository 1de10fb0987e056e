"""The guest's agent, turn by turn: what it keeps, sends, writes and ends, whatever the host and the kernel do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
from base64 import b64decode
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.descriptors import fd_count
from vfio_user.harness.image.recipe import ROOM

SMALL = 4096
LONG = 0.5
"""Seconds of a turn in which nothing comes."""


class Host:
    """A host, and the agent in the same thread: one turn of it after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import agent

        self.program = agent
        self.end, self._port = socket.socketpair()
        for end in (self.end, self._port):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
            end.setblocking(False)
        self.agent = agent.Agent(self._port.fileno())
        self.agent.watch_port()
        usual = self.agent.until_next_deadline
        monkeypatch.setattr(
            self.agent, "until_next_deadline", lambda: LONG if (due := usual()) is None else min(LONG, due)
        )
        self._came = b""
        self._asked = 0

    def send(self, do: str, *, id: int = 0, session: str = "one", **arguments: object) -> int:
        """Ask for something; its number."""
        self._asked = id or self._asked + 1
        request = {"session": session, "id": self._asked, "do": do, **arguments}
        self.end.sendall(json.dumps(request).encode() + b"\n")
        return self._asked

    def answer(self, *, turns: int = 200) -> Any:
        """The next answer, which has come within so many turns of the agent."""
        for _ in range(turns):
            while b"\n" in self._came:
                line, _, self._came = self._came.partition(b"\n")
                if line:
                    return json.loads(line)
            try:
                self._came += self.end.recv(1 << 16)
            except BlockingIOError:
                self.agent.turn()
        raise AssertionError("the agent has said nothing")

    def ask(self, do: str, **arguments: Any) -> Any:
        number = self.send(do, **arguments)
        answer = self.answer()
        assert answer["id"] == number
        return answer.get("ok") or answer

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(200):
            if condition():
                return
            self.agent.turn()
        raise AssertionError("it does not come to that")

    def close(self) -> None:
        self.agent.begin("the end")
        self.agent.selector.close()
        self.end.close()
        self._port.close()


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.syspath_prepend(str(ROOM / "programs"))
    made = Host(monkeypatch)
    yield made
    made.close()
    for name in ("agent", "agent_forks", "agent_json"):
        sys.modules.pop(name, None)


def test_an_answer_is_kept_until_the_host_says_that_it_has_it(host: Host) -> None:
    for done in ([], [], [1, 2], [3]):
        host.ask("hello", done=done)
    assert host.agent.answers.keys() == {4}
    host.send("signal", id=4, job=7, signal=1)
    assert host.answer()["ok"]["pid"] == os.getpid(), "it is not done again, but answered again"
    host.ask("hello", id=1, session="two")
    assert host.agent.answers.keys() == {1}


def test_what_the_port_does_not_take_at_once_is_sent_when_it_does(host: Host, tmp_path: Path) -> None:
    """However much that is, and without a word from the host meanwhile."""
    (tmp_path / "file").write_bytes(content := os.urandom(20 * SMALL))
    numbers = [host.send("get", path=str(tmp_path / "file"), offset=0, size=1 << 20) for _ in range(3)]
    host.until(lambda: len(host.agent.answers) == 3)
    assert host.agent.outgoing
    for number in numbers:
        answer = host.answer()
        assert answer["id"] == number
        assert b64decode(answer["ok"]["data"]["bytes"]) == content
    host.until(lambda: not host.agent.outgoing)


def test_a_piece_of_a_file_is_whole_however_little_the_disk_takes(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    for offset, data in ((0, "MDEyMzQ1Njc4OQ=="), (10, "YWJj")):
        host.ask("put", path=str(tmp_path / "file"), offset=offset, data={"bytes": data}, mode=0o640)
    assert (tmp_path / "file").read_bytes() == b"0123456789abc"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_the_kernel_tells_of_a_host_that_connects_only_while_there_is_none(host: Host) -> None:
    """A signal for each piece of a request costs a guest without KVM more than the request."""
    port, looked_at = host.agent.port, host.agent.selector.get_map()

    def is_told() -> bool:
        return bool(fcntl.fcntl(port, fcntl.F_GETFL) & os.O_ASYNC)

    usual, wakeup = signal.getsignal(signal.SIGIO), signal.set_wakeup_fd(-1)
    host.agent.listen_for_host()
    pipe = [*(int(fd) for fd in looked_at if fd != port), signal.set_wakeup_fd(-1)]  # type: ignore[arg-type]
    signal.set_wakeup_fd(pipe[-1], warn_on_full_buffer=False)
    try:
        host.ask("hello")
        assert not is_told()
        host.end.shutdown(socket.SHUT_WR)
        host.agent.turn()
        assert is_told()
        assert port in looked_at, "one may have connected before that"
        host.until(lambda: port not in looked_at)
        os.kill(os.getpid(), signal.SIGIO)
        host.until(lambda: port in looked_at)
        assert not is_told()
    finally:
        signal.signal(signal.SIGIO, usual)
        signal.set_wakeup_fd(wakeup)
        for fd in pipe:
            os.close(fd)


def test_a_job_that_does_not_end_when_it_is_asked_to_is_ended(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for command, number, grace in (
        ("trap '' TERM; echo begun; sleep 100", signal.SIGKILL, 0.05),
        ("exec sleep 100", signal.SIGTERM, 100),
    ):
        monkeypatch.setattr(host.program, "GRACE", grace)
        host.send("run", command=command, timeout=100)
        host.until(lambda: bool(host.agent.jobs))
        [job] = host.agent.jobs.values()
        if number == signal.SIGKILL:
            host.until(lambda job=job: bool(job.output["stdout"]))  # type: ignore[misc]
        job.deadline = 0.0
        ended = host.answer()["ok"]
        assert (ended["exit_code"], ended["timed_out"]) == (-number, True), command


def test_as_much_of_a_jobs_output_is_kept_as_may_be_and_all_of_it_read(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.program, "OUTPUT_LIMIT", 10)
    os.mkfifo(tmp_path / "said")
    host.send("run", command=["cat", str(tmp_path / "said")], timeout=100)
    host.until(lambda: bool(host.agent.jobs))
    [job] = host.agent.jobs.values()
    with (tmp_path / "said").open("wb", buffering=0) as said:
        for data, kept in ((b"0123456", b"0123456"), (b"789", b"0123456789"), (b"abc", b"0123456789")):
            said.write(data)
            host.until(lambda kept=kept: bytes(job.output["stdout"]) == kept)  # type: ignore[misc]
        said.write(b"x" * (1 << 15))
    assert b64decode(host.answer()["ok"]["stdout"]["bytes"]) == b"0123456789"


def test_what_cannot_be_started_leaves_nothing_open_and_nothing_running(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    call = {"source": "def f(): pass", "function": "f", "file": "f", "line": 1, "args": [], "kwargs": {}}
    host.ask("call", timeout=100, **call)
    before, children = fd_count(), psutil.Process().children()
    cases: dict[str, tuple[str, dict[str, Any], str]] = {
        "a program that is not there": ("", {"command": ["/none"]}, "FileNotFoundError"),
        "arguments that are none": ("", {"command": ["true", "a\0b"]}, "ValueError"),
        "no descriptor for a program": ("pidfd_open", {"command": ["sleep", "100"]}, "Too many open files"),
        "no descriptor for a function": ("pidfd_open", call, "Too many open files"),
        "no process for a function": ("fork", call, "Too many open files"),
        "no second pipe": ("pipe2", {"command": ["sleep", "100"]}, "Too many open files"),
    }
    for case, (missing, arguments, told) in cases.items():
        with monkeypatch.context() as without:
            pipes = iter([os.pipe2(os.O_CLOEXEC)]) if missing == "pipe2" else iter(())
            if missing:
                without.setattr(os, missing, lambda *_, pipes=pipes: next(pipes, None) or none_left())
            do = "run" if "command" in arguments else "call"
            assert told in host.ask(do, timeout=100, **arguments)["error"], case
        assert (fd_count(), host.agent.jobs) == (before, {}), case
        assert psutil.Process().children() == children, case


def test_a_job_ends_however_much_what_it_left_running_writes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.send("run", command="sleep 100 & echo $!", timeout=100)
    host.until(lambda: bool(host.agent.jobs))
    [job] = host.agent.jobs.values()
    os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
    read, looks = os.read, iter(range(100))

    def refilled(fd: int, most: int) -> bytes:
        """As if that wrote a page between two looks."""
        data = read(fd, most)
        if fd in job.streams.values():
            next(looks)
            Path(f"/proc/self/fd/{fd}").write_bytes(bytes(4096))
        return data

    with monkeypatch.context() as busy:
        busy.setattr(os, "read", refilled)
        job.ended(0)
    ended = host.answer()["ok"]
    number, _, rest = b64decode(ended["stdout"]["bytes"]).partition(b"\n")
    os.kill(int(number), signal.SIGKILL)
    assert (ended["exit_code"], rest.strip(b"\0")) == (0, b"")


def test_what_is_no_request_is_passed_over(host: Host) -> None:
    """As the end of a line is that was meant for another agent, whatever that happens to be."""
    fragments = (b'{"session": "one"}', b"\xff\xfe", b'"id": 3}', b"[" * 1500)
    for line in (b"", b"7", b"[]", b'"x"', b"null", b"{}", *fragments):
        host.end.sendall(line + b"\n")
        assert host.ask("hello")["pid"] == os.getpid(), line


WRONG: dict[str, dict[str, object]] = {
    "an id that is a list": {"id": [1]},
    "an id that is an object": {"id": {}},
    "an id that is a text": {"id": "1"},
    "a session that is a list": {"session": [1]},
    "done that is a number": {"done": 7},
    "done that has lists": {"done": [[1]]},
    "an operation that is a list": {"do": [1]},
    "no operation": {"do": "none"},
    "a time that is a text": {"do": "run", "command": ["/bin/true"], "timeout": "soon"},
}


def test_a_request_that_is_wrong_is_answered_and_the_next_one_done(host: Host) -> None:
    host.ask("hello")
    before = fd_count()
    for case, wrong in WRONG.items():
        request = {"session": "one", "id": 1000, "do": "hello", **wrong}
        host.end.sendall(json.dumps(request).encode() + b"\n")
        answer = host.answer()
        assert (answer["session"], answer["id"]) == (request["session"], request["id"]), case
        assert "error" in answer, case
        assert host.ask("hello", done=[1000])["pid"] == os.getpid(), case
    assert (fd_count(), host.agent.jobs) == (before, {})


def test_a_job_may_have_any_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    as_in_a_guest = partial(host.program.Agent.until_next_deadline, host.agent)
    monkeypatch.setattr(host.agent, "until_next_deadline", as_in_a_guest)
    for timeout in (1e30, float("inf"), float("nan")):
        assert host.ask("run", command=["/bin/true"], timeout=timeout)["exit_code"] == 0, timeout


def test_the_agent_finds_its_port_among_those_of_other_devices(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A console has a port without a name."""
    agent = host.program
    monkeypatch.setattr(agent, "PORTS", str(tmp_path))
    for number in range(4):
        (tmp_path / f"vport{number}p0").mkdir()
    (tmp_path / "vport0p0/name").write_text("somebody.else\n")
    with pytest.raises(SystemExit, match="no virtio-serial port"):
        agent.find_port()
    (tmp_path / "vport2p0/name").write_text(f"{agent.PORT_NAME}\n")
    assert agent.find_port() == "/dev/vport2p0"
