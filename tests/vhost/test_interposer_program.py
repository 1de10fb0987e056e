"""`vhost-user interpose` between a front-end of ours and back-ends: used, cut, killed, stopped, asked."""

from __future__ import annotations

import json
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interposed import Running
from tests.vhost.reverse import Reverse
from userdev.control import ControlClient, ControlError
from userdev.trace import Note, read_trace
from vhost_user.backend import Server
from vhost_user.frontend import Disconnected, FrontEnd, Queue
from vhost_user.interposer.control.answers import (
    CountersStatus,
    InterposerStatus,
    RegionStatus,
    RingStatus,
    SessionShown,
    SessionStatus,
)
from vhost_user.interposer.control.commands import COMMANDS
from vhost_user.interposer.interposer import Interposer, Setup
from vhost_user.interposer.traces import PROTOCOL, MessageRecord
from vhost_user.wire import BackEndRequest, FrontEndRequest, ProtocolFeature

RNG = f"{shlex.quote(sys.executable)} -P -m vhost_user serve rng --fd {{fd}}"


class Interposed(Running):
    """An interposer before a back-end, with a control socket and a trace."""

    def __init__(self, folder: Path, **setup: Any) -> None:
        self.folder = folder
        self.address = str(folder / "listen")
        trace, control = str(folder / "trace"), str(folder / "control")
        super().__init__(Interposer(Setup(listen=self.address, control=control, trace=trace, **setup)))

    def front_end(self, **options: Any) -> FrontEnd:
        """A front-end that has negotiated and shared its memory."""
        made = self._stack.enter_context(FrontEnd(self.address, **options))
        made.negotiate()
        made.share_memory()
        return made

    def control(self) -> ControlClient:
        return self._stack.enter_context(ControlClient(self.folder / "control"))

    def until(self, told: str, session: bool) -> None:
        """Wait until `status` has a session, or has none."""
        control, end = self.control(), time.monotonic() + 60
        while (control.call(told)["session"] is not None) is not session:
            assert time.monotonic() < end


@pytest.fixture
def device() -> Reverse:
    return Reverse()


@pytest.fixture
def between(device: Reverse, tmp_path: Path) -> Iterator[Interposed]:
    address = f"unix:{tmp_path}/server"
    with Server(device, address), Interposed(tmp_path, connect=address) as made:
        yield made


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Interposed]:
    """Before a back-end that is a process, started by the interposer."""
    with Interposed(tmp_path, server_command=RNG) as made:
        yield made


def queue_of(front_end: FrontEnd) -> Queue:
    made = front_end.queue()
    made.start()
    return made


def reversed_by(queue: Queue, data: bytes) -> bytes:
    return queue.exchange(data, len(data)).data


def until_stopped(pid: int) -> None:
    """A signal is sent before it arrives: on another core a process runs on for a moment."""
    end = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end


# -- used


def test_requests_in_rings_pass_by_it_and_messages_through_it(between: Interposed) -> None:
    queue = queue_of(between.front_end())
    told = between.control().call("status")["session"]["counters"]["messages"]["to-server"]
    assert reversed_by(queue, b"hello") == b"olleh"
    assert reversed_by(queue, b"again") == b"niaga"
    assert told == between.control().call("status")["session"]["counters"]["messages"]["to-server"] > 8


def test_the_back_end_tells_of_a_change_on_its_channel(between: Interposed, device: Reverse) -> None:
    front_end = between.front_end()
    channel = front_end.open_channel()
    queue_of(front_end)
    device.config_changed()
    assert channel.next().request == BackEndRequest.CONFIG_CHANGE_MSG
    status = between.control().call("status")
    assert status["session"]["back_end_channel"]["messages"]["to-client"] == 1
    assert status["session"]["state"] == "running"
    assert status["session"].keys() == SessionStatus.__annotations__.keys()
    assert status["session"]["counters"].keys() == CountersStatus.__annotations__.keys()
    assert status.keys() == InterposerStatus.__annotations__.keys()


def test_the_session_is_shown_by_names(between: Interposed) -> None:
    queue_of(between.front_end())
    shown = between.control().call("session")
    assert shown["state"] == "running"
    assert "VERSION_1" in shown["features"].split("|")
    assert "REPLY_ACK" in shown["protocol_features"].split("|")
    assert shown.keys() == SessionShown.__annotations__.keys()
    assert shown["rings"]["0"].keys() == RingStatus.__annotations__.keys()
    assert shown["rings"]["0"]["started"]
    assert shown["regions"][0].keys() == RegionStatus.__annotations__.keys()
    assert shown["regions"][0]["size"] > 0


def test_the_trace_has_what_was_said(between: Interposed) -> None:
    queue = queue_of(between.front_end())
    queue.stop()
    between.control().call("mark", text="here")
    entries = read_trace(between.folder / "trace", PROTOCOL).entries
    said = [entry for entry in entries if isinstance(entry, MessageRecord)]
    requests = [record for record in said if not record.message.is_reply]
    assert {FrontEndRequest.SET_VRING_KICK, FrontEndRequest.GET_VRING_BASE} <= {
        record.message.request for record in requests
    }
    numbers = {record.number for record in requests}
    assert all(record.pair in numbers for record in said if record.message.is_reply)
    assert [note.event for note in entries if isinstance(note, Note)][-1] == "mark"


def test_what_a_controller_has_noted_is_in_the_file_before_the_loop_turns(tmp_path: Path) -> None:
    setup = Setup(listen=str(tmp_path / "listen"), connect=str(tmp_path / "server"), trace=str(tmp_path / "trace"))
    with Interposer(setup) as interposer:
        interposer.note("mark", text="here")
        entries = read_trace(tmp_path / "trace", PROTOCOL).entries
    assert [note.details for note in entries if isinstance(note, Note)] == [{"text": "here"}]


# -- cut, killed, stopped


def test_each_front_end_has_a_back_end_connection_of_its_own(between: Interposed, device: Reverse) -> None:
    between.front_end().close()
    assert reversed_by(queue_of(between.front_end()), b"hello") == b"olleh"
    assert [event for event in device.events if event.endswith("tach")] == ["attach", "detach", "attach"]


@pytest.mark.parametrize("side", ["client", "server", "both"])
def test_a_front_end_that_was_cut_goes_on_by_another_connection(between: Interposed, side: str) -> None:
    front_end = between.front_end()
    queue = queue_of(front_end)
    assert reversed_by(queue, b"hello") == b"olleh"
    between.control().call("cut", side=side)
    with pytest.raises(Disconnected):
        front_end.settle()
    front_end.reconnect(between.address)
    front_end.negotiate()
    front_end.share_memory()
    queue.start()
    assert reversed_by(queue, b"again") == b"niaga"


def test_when_the_back_end_dies_the_front_end_hears_of_it_and_goes_on_with_the_next(killable: Interposed) -> None:
    front_end = killable.front_end()
    queue = queue_of(front_end)
    first = killable.control().call("status")["server_pid"]
    killable.control().call("signal", signal="SIGKILL")
    with pytest.raises(Disconnected):
        front_end.settle()
    front_end.reconnect(killable.address)
    front_end.negotiate()
    front_end.share_memory()
    queue.start()
    assert len(queue.exchange(16).data) == 16
    assert killable.control().call("status")["server_pid"] not in (first, None)


def test_when_the_front_end_dies_so_does_the_session(between: Interposed, device: Reverse) -> None:
    """As a process that is killed: its connection is closed, whatever it was saying."""
    front_end = between.front_end()
    front_end.stream.send(b"\1\0\0")
    front_end.close()
    between.until("status", session=False)
    assert reversed_by(queue_of(between.front_end()), b"hello") == b"olleh"


def test_a_back_end_that_is_stopped_answers_nothing_until_it_is_continued(killable: Interposed) -> None:
    front_end = killable.front_end()
    queue = queue_of(front_end)
    until_stopped(killable.control().call("signal", signal="SIGSTOP")["pid"])
    queue.put(16)
    queue.kick()
    queue.wait_call(0.1)  # which it has from when the ring was started
    assert queue.take_used() == []
    killable.control().call("signal", signal="SIGCONT")
    [done] = queue.wait_used()
    assert len(done.data) == 16


def test_requests_are_held_and_let_go(between: Interposed) -> None:
    front_end, control = between.front_end(), between.control()
    control.call("hold")
    front_end.send(FrontEndRequest.GET_QUEUE_NUM)
    end = time.monotonic() + 60
    while control.call("status")["session"]["held"] < 1:
        assert time.monotonic() < end
    assert select.select([front_end.stream.socket], [], [], 0)[0] == []
    assert control.call("resume") == {"released": 1}
    assert front_end.receive().request == FrontEndRequest.GET_QUEUE_NUM


def test_without_a_back_end_the_front_end_is_hung_up_on_and_the_next_is_served(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/server"
    with Interposed(tmp_path, connect=address) as between:
        with pytest.raises(Disconnected), FrontEnd(between.address) as early:
            early.negotiate()
        with Server(Reverse(), address):
            assert reversed_by(queue_of(between.front_end()), b"hello") == b"olleh"
    notes = [entry for entry in read_trace(tmp_path / "trace", PROTOCOL).entries if isinstance(entry, Note)]
    assert "no-server" in {note.event for note in notes}


def test_faults_happen_to_the_session_under_way_and_to_the_next(between: Interposed) -> None:
    front_end = between.front_end()
    scenario = "rules:\n- match: {command: GET_QUEUE_NUM}\n  act: {close: client}\n"
    assert between.control().call("faults", scenario=scenario) == {"rules": 1}
    with pytest.raises(Disconnected):
        front_end.ask(FrontEndRequest.GET_QUEUE_NUM)
    with pytest.raises(Disconnected):
        between.front_end().ask(FrontEndRequest.GET_QUEUE_NUM)
    between.control().call("faults")
    assert between.front_end().ask(FrontEndRequest.GET_QUEUE_NUM) == 2


def test_a_scenario_of_the_other_protocol_is_refused(between: Interposed) -> None:
    with pytest.raises(ControlError, match="REGION_READ"):
        between.control().call("faults", scenario="rules:\n- match: {command: REGION_READ}\n  act: drop\n")


def test_features_that_a_scenario_hides_are_not_agreed_on(device: Reverse, tmp_path: Path) -> None:
    """How a front-end or a back-end of less than today's is tried."""
    hide = f"corrupt: {{field: protocol_features, xor: {int(ProtocolFeature.CONFIGURE_MEM_SLOTS)}}}"
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(f"rules:\n- match: {{command: GET_PROTOCOL_FEATURES, kind: reply}}\n  act: {{{hide}}}\n")
    address = f"unix:{tmp_path}/server"
    with Server(device, address), Interposed(tmp_path, connect=address, faults=str(scenario)) as between:
        front_end = between.front_end()
        assert ProtocolFeature.CONFIGURE_MEM_SLOTS not in front_end.negotiated.protocol_features
        assert reversed_by(queue_of(front_end), b"hello") == b"olleh"


# -- the program


def test_every_command_is_documented() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "vhost-user-interposer.md").read_text()
    assert all(f"`{name}`" in manual for name in COMMANDS)
    assert all(command.__doc__ for command in COMMANDS.values())


@pytest.mark.usefixtures("plain_starts")
def test_it_says_where_it_listens_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    listen = tmp_path / "listen"
    argv = [sys.executable, "-P", "-m", "vhost_user", "interpose", "--listen", str(listen)]
    program = subprocess.Popen(
        [*argv, "--server-command", RNG, "--trace", str(trace)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert str(listen) in program.stdout.readline()
    with FrontEnd(str(listen)) as front_end:
        front_end.negotiate()
        front_end.share_memory()
        assert len(queue_of(front_end).exchange(16).data) == 16
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 0
    program.stdout.close()
    shown = subprocess.run(
        [*argv[:4], "trace", "show", str(trace), "--json"], capture_output=True, text=True, check=True
    )
    assert "SET_VRING_KICK" in {json.loads(line).get("command") for line in shown.stdout.splitlines()}
    assert not listen.exists()
