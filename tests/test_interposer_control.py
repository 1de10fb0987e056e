"""Requests of the interposer's own, on the control socket, while a client uses the device."""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

import pytest

from tests.interposed import Interposed, interposed_edu
from userdev.control import ControlError
from userdev.errors import ProtocolError
from userdev.trace import Note
from vfio_user.client import Client, Disconnected
from vfio_user.interposer.control import answers
from vfio_user.interposer.control.client import InterposerControl
from vfio_user.interposer.control.commands import COMMANDS
from vfio_user.interposer.survival import Policy
from vfio_user.interposer.trace import read_trace
from vfio_user.wire import Command
from vfio_user.wire import layouts as at

LIVENESS, COMPUTE = 0x04, 0x08
TOLD = {answers.InterposerStatus: "status", answers.SessionShown: "session"}


@pytest.fixture
def edu(tmp_path: Path) -> Iterator[Interposed]:
    with interposed_edu(tmp_path) as interposed:
        yield interposed


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def number(data: str) -> int:
    return int.from_bytes(decoded(data), "little")


def test_status_tells_of_the_session_and_of_the_servers_process(tmp_path: Path) -> None:
    with Interposed(tmp_path) as edu:
        control = edu.control()
        assert control.call("status")["session"] is None
        edu.client().regions()
        status = control.session_status()
        assert status["state"] == "set-up"
        assert status["counters"]["messages"]["to-server"] > 1
        os.kill(control.server_pid(), 0)


@contextmanager
def inherited_server(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that has inherited the socket it serves, as those of the harness do: its listener is this process."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "server"))
        listener.listen()
        command = [sys.executable, "-m", "vfio_user", "serve", "edu", "--fd", str(listener.fileno())]
        with subprocess.Popen(command, pass_fds=[listener.fileno()]) as server:
            yield server
            server.kill()


def test_whoever_listened_for_a_server_is_not_signalled_in_its_place(tmp_path: Path) -> None:
    with inherited_server(tmp_path), Interposed(tmp_path, None, connect=str(tmp_path / "server")) as interposed:
        interposed.client().regions()
        with pytest.raises(ControlError, match="not known"):
            interposed.control().call("signal", signal="SIGKILL")


def test_a_server_whose_process_is_told_is_signalled(tmp_path: Path) -> None:
    with inherited_server(tmp_path) as server:
        setup = {"connect": str(tmp_path / "server"), "server_pid": server.pid}
        with Interposed(tmp_path, None, **setup) as interposed:
            interposed.client().regions()
            assert interposed.control().call("signal", signal="SIGKILL") == {"pid": server.pid}
            assert server.wait(10) == -signal.SIGKILL


def test_a_process_that_was_told_and_has_ended_is_nobodys(tmp_path: Path) -> None:
    """Its number may be another program's by now."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait(10)
    with interposed_edu(tmp_path, server_pid=ended.pid) as edu:
        edu.client()
        assert edu.control().call("status")["server_pid"] is None


def test_regions_are_read_and_written_beside_the_client(edu: Interposed) -> None:
    client, control = edu.client(), edu.control()
    client.store(0, LIVENESS, 4, 0x12345678)
    assert number(control.call("region_read", region="BAR0", offset=LIVENESS, size=4)["data"]) == 0xEDCBA987
    control.call("region_write", region=0, offset="0x08", data=encoded((5).to_bytes(4, "little")))
    assert client.load(0, COMPUTE, 4) == 120


def test_what_the_server_refuses_is_an_error_with_its_errno(edu: Interposed) -> None:
    edu.client()
    with pytest.raises(ControlError) as refused:
        edu.control().call("region_read", region="BAR0", offset=1 << 40, size=4)
    assert refused.value.errno == 22


def test_a_device_is_moved_through_files(edu: Interposed, tmp_path: Path) -> None:
    """Save, change, load: the device is as it was when it was saved."""
    client, control = edu.client(), edu.control()
    client.store(0, COMPUTE, 4, 6)
    assert "STOP_COPY" in control.call("migration_support")["supports"]
    control.call("migration_state", set="STOP_COPY")
    saved = control.call("mig_data_read", file=str(tmp_path / "state"))
    assert saved["complete"]
    assert saved["bytes"] == (tmp_path / "state").stat().st_size > 0
    control.call("migration_state", set="RUNNING")
    client.store(0, COMPUTE, 4, 3)
    control.call("migration_state", set="RESUMING")
    with open(tmp_path / "state", "rb") as file:
        loaded = control.call("mig_data_write", fd=True, fds=[file.fileno()])
    assert loaded["bytes"] == saved["bytes"]
    control.call("migration_state", set="RUNNING")
    assert client.load(0, COMPUTE, 4) == 720
    assert control.call("migration_state")["state"] == "RUNNING"


def test_state_travels_in_the_answer_too(edu: Interposed, tmp_path: Path) -> None:
    """Whole, and in the one way that was asked for."""
    edu.client()
    control = edu.control()
    wholes = []
    with (tmp_path / "sent").open("w+b") as sent:
        ways: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], bytes]]] = {
            "data": ({}, lambda answer: decoded(answer.pop("data"))),
            "raw": ({"raw": True}, lambda answer: answer.pop("raw")),
            "file": ({"file": str(tmp_path / "named")}, lambda _: (tmp_path / "named").read_bytes()),
            "fd": ({"fd": True, "fds": [sent.fileno()]}, lambda _: (tmp_path / "sent").read_bytes()),
        }
        for way, (arguments, state) in ways.items():
            for each in ("RUNNING", "STOP_COPY"):
                control.call("migration_state", set=each)
            answer = control.call("mig_data_read", **arguments)
            wholes.append(state(answer))
            assert answer.keys() == {"bytes", "messages", "complete"}, way
            assert (answer["bytes"], answer["complete"]) == (len(wholes[-1]), True), way
    assert len(set(wholes)) == 1, "they are of the same state"
    control.call("migration_state", set="RESUMING")
    assert control.call("mig_data_write", data=encoded(wholes[0]))["bytes"] == len(wholes[0])


def test_state_travels_behind_the_lines(edu: Interposed) -> None:
    """As it is, and in turn with lines."""
    edu.client()
    control = edu.control()
    control.call("migration_state", set="STOP_COPY")
    first = control.post("mig_data_read", raw=True, size=100)
    between = control.post("migration_state")
    rest = control.post("mig_data_read", raw=True)
    whole = first.result()["raw"] + rest.result()["raw"]
    assert between.result() == {"state": "STOP_COPY"}
    assert len(first.result()["raw"]) == 100
    assert len(whole) == 100 + rest.result()["bytes"]
    control.call("migration_state", set="RESUMING")
    pieces = [control.post("mig_data_write", behind=whole[at : at + 150]) for at in range(0, len(whole), 150)]
    assert sum(piece.result()["bytes"] for piece in pieces) == len(whole)
    assert control.call("migration_state", set="RUNNING") == {"state": "RUNNING"}


def test_bytes_that_come_in_pieces_are_no_lines(edu: Interposed, tmp_path: Path) -> None:
    edu.client()
    edu.control().call("migration_state", set="STOP_COPY")
    whole = edu.control().call("mig_data_read", raw=True)["raw"]
    edu.control().call("migration_state", set="RESUMING")
    line = json.dumps({"command": "mig_data_write", "raw": len(whole)}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(30)
        peer.connect(str(tmp_path / "control"))
        for byte in line + whole + b'{"command": "migration_state", "id": 7}\n':
            peer.sendall(bytes([byte]))
        with peer.makefile("rb") as lines:
            answers = [json.loads(lines.readline()) for _ in range(2)]
    assert [answer["ok"] for answer in answers] == [True, True]
    assert (answers[0]["result"]["bytes"], answers[1]["id"]) == (len(whole), 7)


def test_bytes_behind_a_command_that_takes_none_are_refused_and_skipped(edu: Interposed) -> None:
    control = edu.control()
    with pytest.raises(ControlError):
        control.call("status", behind=b'{"command": "stop"}\n')
    assert control.call("status")["session"] is None


def test_dirty_pages_are_reported_as_runs(edu: Interposed) -> None:
    client, control = edu.client(), edu.control()
    client.dma_map(0, edu.ram())
    client.config_write(4, b"\6\0")
    control.call("dma_logging_start", page_size=4096)
    client.store(0, 0x80, 8, 0x40000)  # from the device's buffer ...
    client.store(0, 0x88, 8, 0x3000)  # ... to memory
    client.store(0, 0x90, 8, 8)
    client.store(0, 0x98, 8, 0x1 | 0x2)
    assert control.call("dma_logging_report")["runs"] == [{"iova": 0x3000, "size": 4096}]
    assert control.call("dma_logging_report")["runs"] == []
    control.call("dma_logging_stop")


def test_memory_is_written_back_to_the_client_as_it_is(edu: Interposed) -> None:
    client, control = edu.client(), edu.control()
    ram = edu.ram()
    client.dma_map(0x100000, ram, offset=0x2000, size=0x8000)
    ram.view[0x2000:0x2004] = b"here"
    client.region_info(0)
    client.service.max_data = 1 << 20
    with serving(client):
        done = control.call("dma_write", runs=[{"iova": 0x100000, "size": 0x2800}, {"iova": "0x106000", "size": 1}])
        assert done == {"messages": 2, "bytes": 0x2801}
        control.call("dma_write", runs=[{"iova": 0x104000, "size": 4}], data=encoded(b"text"))
    assert client.memory.dirty == {0x100000, 0x101000, 0x102000, 0x104000, 0x106000}
    assert bytes(ram.view[0x2000:0x2004]) == b"here"
    assert bytes(ram.view[0x6000:0x6004]) == b"text"
    assert decoded(control.call("memory_read", iova=0x104000, size=4)["data"]) == b"text"


def copied_by_the_device(client: Client, pages: Iterable[int]) -> None:
    """Have edu write to each page."""
    client.config_write(4, b"\6\0")
    for page in pages:
        client.store(0, 0x80, 8, 0x40000)
        client.store(0, 0x88, 8, page)
        client.store(0, 0x90, 8, 8)
        client.store(0, 0x98, 8, 0x1 | 0x2)
        while client.load(0, 0x98, 8) & 0x1:
            pass


def test_dirty_pages_are_written_once_more(edu: Interposed) -> None:
    """Each page that the server wrote, and no other; more of them than go out at once."""
    client, control, ram = edu.client(), edu.control(), edu.ram(8 << 20)
    client.dma_map(0x100000, ram)
    control.call("dma_logging_start", page_size=4096)
    pages = [0x100000 + 4096 * page for page in (*range(0, 1200, 2), 2047)]
    ram.view[:] = b"\x55" * len(ram.view)
    copied_by_the_device(client, pages)
    before = bytes(ram.view)
    asked = [control.session_status()["counters"]["own_requests"]]
    with serving(client):
        for count in (len(pages), 0):
            assert control.call("dma_logging_resend") == {"pages": count, "unmapped": []}
            asked.append(control.session_status()["counters"]["own_requests"])
    assert client.memory.dirty == set(pages)
    same = bytes(ram.view) == before
    assert same, "what is written again is what was there"
    first, second = asked[1] - asked[0], asked[2] - asked[1]
    assert first == second + len(pages), "each is counted, beside those for what was written"


def test_of_pages_larger_than_the_clients_each_of_its_own_is_written_once_more(edu: Interposed) -> None:
    """QEMU takes no more of a write for dirty than the page of its own that it goes to."""
    client, control, ram = edu.client(), edu.control(), edu.ram(1 << 20)
    client.dma_map(0x100000, ram)
    control.call("dma_logging_start", page_size=0x4000)
    copied_by_the_device(client, [0x109000])
    with serving(client):
        assert control.call("dma_logging_resend", page_size=0x4000)["pages"] == 4
    assert client.memory.dirty == {0x108000, 0x109000, 0x10A000, 0x10B000}


def test_what_was_unmapped_meanwhile_counts_as_written(edu: Interposed) -> None:
    """Under the address that its memory has now, or by its offset where it has none."""
    client, control, ram = edu.client(), edu.control(), edu.ram()
    for iova, offset in ((0x100000, 0), (0x200000, 0x8000), (0x300000, 0x10000)):
        client.dma_map(iova, ram, offset=offset, size=0x2000)
    client.dma_unmap(0x100000, 0x2000)
    control.call("dma_logging_start", page_size=4096)
    copied_by_the_device(client, [0x300000])
    client.dma_unmap(0x200000, 0x2000)
    client.dma_unmap(0x300000, 0x2000)
    client.dma_map(0x500000, ram, offset=0xF000, size=0x3000)
    with serving(client):
        assert control.call("dma_logging_resend") == {"pages": 2, "unmapped": [0x8000, 0x9000]}
    assert client.memory.dirty == {0x501000, 0x502000}
    control.call("dma_logging_stop")
    control.call("dma_logging_start", page_size=4096)
    with serving(client):
        assert control.call("dma_logging_resend") == {"pages": 0, "unmapped": []}


def test_a_page_that_the_client_refuses_is_not_passed_over(edu: Interposed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose writing needs no answer."""
    client, control, ram = edu.client(), edu.control(), edu.ram()
    client.dma_map(0x100000, ram)
    control.call("dma_logging_start", page_size=4096)
    copied_by_the_device(client, (0x100000, 0x103000, 0x105000))
    taken = client.memory.write

    def write(iova: int, data: bytes) -> None:
        if iova == 0x103000:
            raise ProtocolError("not this one", errno.EFAULT)
        taken(iova, data)

    monkeypatch.setattr(client.memory, "write", write)
    with serving(client), pytest.raises(ControlError) as error:
        control.call("dma_logging_resend")
    assert error.value.errno == errno.EFAULT
    assert client.load(0, 0x00, 4) == 0x010000ED, "the session goes on"


def test_commands_that_do_not_wait_for_each_other_are_answered_in_their_order(edu: Interposed) -> None:
    edu.client()
    control = edu.control()
    state = control.post("migration_state", set="STOP")
    wrong = control.post("region_read", region="BAR7", offset=0, size=4)
    after = control.post("migration_state")
    assert after.result() == {"state": "STOP"}
    with pytest.raises(ControlError):
        wrong.result()
    assert state.result() == {"state": "STOP"}


def test_a_descriptor_belongs_to_the_last_command_that_came_with_it(edu: Interposed, tmp_path: Path) -> None:
    edu.client()
    lines = b"".join(
        json.dumps(command).encode() + b"\n"
        for command in (
            {"command": "migration_state", "set": "STOP_COPY"},
            {"command": "mig_data_read", "fd": True},
        )
    )
    with (tmp_path / "state").open("w+b") as file, socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(tmp_path / "control"))
        socket.send_fds(raw, [lines], [file.fileno()])
        with raw.makefile() as answers:
            assert json.loads(answers.readline())["ok"]
            assert json.loads(answers.readline())["result"]["bytes"] == os.fstat(file.fileno()).st_size > 0


@contextmanager
def serving(client: Client) -> Iterator[None]:
    """Serve the server's requests of a client in a thread meanwhile."""
    over = os.eventfd(0)
    serve = partial(
        client.channel.serve_until, lambda: bool(select.select([over], [], [], 0)[0]), timeout=30, also=[over]
    )
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        thread.join()
        os.close(over)


def test_held_requests_wait_until_they_are_let_go(edu: Interposed) -> None:
    client, control = edu.client(), edu.control()
    control.call("hold")
    waiting = client.submit(Command.REGION_READ, at.REGION_ACCESS.pack(0, 0, 4))
    while not control.session_status()["held"]:
        pass
    assert number(control.call("region_read", region=0, offset=0, size=4)["data"]) == 0x010000ED
    assert waiting.reply is None
    assert control.call("resume")["released"] == 1
    assert client.wait(waiting).payload[16:] == b"\xed\0\0\1"


def test_held_requests_go_on_in_their_order(edu: Interposed) -> None:
    client, control = edu.client(), edu.control()
    control.call("hold")
    writing = at.REGION_ACCESS.pack(COMPUTE, 0, 4, tail=(4).to_bytes(4, "little"))
    written = client.submit(Command.REGION_WRITE, writing)
    read = client.submit(Command.REGION_READ, at.REGION_ACCESS.pack(COMPUTE, 0, 4))
    while control.session_status()["held"] != 2:
        pass
    control.call("resume")
    client.wait(written)
    assert client.wait(read).payload[16:] == (24).to_bytes(4, "little")


@pytest.mark.parametrize("side", ["client", "server", "both"])
def test_a_connection_that_is_cut_ends_the_session_and_the_next_client_is_served(edu: Interposed, side: str) -> None:
    client = edu.client()
    edu.control().call("cut", side=side)
    with pytest.raises(Disconnected):
        client.load(0, COMPUTE, 4)
    next_client = edu.client()
    next_client.store(0, COMPUTE, 4, 5)
    assert next_client.load(0, COMPUTE, 4) == 120


def shape(kind: Any, value: Any) -> Any:
    """The keys of an answer, and of those in it, where they are to be those of a TypedDict: else only its type."""
    kinds = [each for each in (kind, *get_args(kind)) if is_typeddict(each)]
    if isinstance(value, list):
        return [shape(kind, each) for each in value]
    if not isinstance(value, dict) or not kinds:
        return type(value)
    hints = get_type_hints(kinds[0])
    assert value.keys() == hints.keys(), kinds[0]
    return {name: shape(hints[name], each) for name, each in value.items()}


def test_what_is_told_of_a_session_has_the_names_that_are_documented(tmp_path: Path) -> None:
    """While there is all that can be told of: survival, a trace, a mapping, an interrupt, a write of config space."""
    with interposed_edu(tmp_path, trace=str(tmp_path / "trace"), survive=Policy()) as edu:
        client, control = edu.client(), edu.control()
        client.dma_map(0x1000, edu.ram(4096))
        client.region_info(0)
        client.config_write(4, b"\6\0")
        status, session = (shape(kind, control.call(command)) for kind, command in TOLD.items())
    assert all(isinstance(status[part], dict) for part in ("trace", "survival", "session")), status
    assert all(session[part] for part in ("maps", "regions", "config_writes")), session


def test_a_session_is_noted_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    with interposed_edu(tmp_path, trace=str(tmp_path / "trace")) as edu:
        edu.client().close()
        edu.client()  # which is served once the first is gone
    entries = read_trace(tmp_path / "trace").entries
    notes = [(note.event, note.details.get("side")) for note in entries if isinstance(note, Note)]
    assert notes[:4] == [
        ("connected", None),
        ("end-of-stream", "client"),
        ("disconnected", None),
        ("connected", None),
    ]


def test_a_mark_is_in_the_trace(tmp_path: Path) -> None:
    with interposed_edu(tmp_path, trace=str(tmp_path / "trace")) as edu:
        edu.client()
        edu.control().call("mark", text="here")
    marks = [entry for entry in read_trace(tmp_path / "trace").entries if isinstance(entry, Note)]
    assert [note.details for note in marks if note.event == "mark"] == [{"text": "here"}]


def test_the_session_has_maps_and_interrupts(edu: Interposed) -> None:
    client, control = edu.client(), edu.control()
    client.dma_map(0x1000, edu.ram(4096))
    session = control.call("session")
    assert [(mapping["iova"], mapping["size"]) for mapping in session["maps"]] == [(0x1000, 4096)]
    assert not session["client_migrates"]


def test_a_client_that_migrates_by_itself_is_noticed(edu: Interposed) -> None:
    client = edu.client()
    client.migration_support()
    assert edu.control().call("session")["client_migrates"]


def test_any_request_can_be_sent(edu: Interposed) -> None:
    edu.client()
    reply = edu.control().call("request", name="DEVICE_RESET")
    assert reply == {"flags": 1, "errno": 0, "payload": ""}


def test_without_a_client_requests_are_refused(edu: Interposed) -> None:
    with pytest.raises(ControlError):
        edu.control().call("region_read", region=0, offset=0, size=4)


def test_every_command_is_documented() -> None:
    manual = (Path(__file__).parent.parent / "docs" / "interposer.md").read_text()
    for name, command in COMMANDS.items():
        assert command.__doc__
        assert f"`{name}`" in manual


def test_stop_ends_the_interposer(tmp_path: Path) -> None:
    with interposed_edu(tmp_path) as edu:
        with InterposerControl(tmp_path / "control") as control:
            control.call("stop")
        edu._thread.join(60)
        assert not edu._thread.is_alive()
        assert not (tmp_path / "listen").exists()


# ids: neither side ever sees the other's
