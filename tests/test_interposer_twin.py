"""Captured DMA of a server that does it inside a register handler: nothing changes for it, and the trace has it all."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.conftest import PATIENCE
from tests.interposer_bench import Bench, dma_map, request
from tests.scripted_server import ScriptedServer
from tests.test_harness_interposed import interposed
from userdev.relay.direction import Direction
from userdev.trace import Note, View
from userdev.transport import close_all
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.harness.device import Device
from vfio_user.harness.interposition import Interposition
from vfio_user.interposer.capture import CaptureDma
from vfio_user.interposer.replay import load_script, replay
from vfio_user.interposer.replay.outcome import What
from vfio_user.interposer.replay.player import Player
from vfio_user.interposer.replay.script import Script
from vfio_user.interposer.trace import MessageRecord, read_trace
from vfio_user.wire import CURRENT, Capabilities, Command, Message, encode_version
from vfio_user.wire import layouts as at

REACHING = Device(served=f"{Path(__file__).with_name('reaching.py')}:Reaching")
CAPTURED = Interposition(capture_dma=True)
WHERE, THERE, BACK = 0, 4, 8


def dma(path: Path) -> list[tuple[Direction, bool, bytes]]:
    """DMA messages of a trace: direction, whether it is a reply, the data at its end."""
    numbers = {CURRENT.number(Command.DMA_READ), CURRENT.number(Command.DMA_WRITE)}
    return [
        (entry.direction, entry.message.is_reply, entry.message.payload[16:])
        for entry in read_trace(path).entries
        if isinstance(entry, MessageRecord) and entry.message.command in numbers
    ]


@for_each([False, True], ids=["on one socket", "on two of the client's"])
def test_dma_inside_a_register_handler_is_done_and_recorded(twin_socket: bool, tmp_path: Path) -> None:
    with (
        interposed(tmp_path, REACHING, trace=True, interposition=CAPTURED) as server,
        Client.connect(str(server.path), twin_socket=twin_socket) as client,
        GuestMemory(1 << 16) as ram,
    ):
        client.dma_map(0x10000, ram)
        client.config_write(4, b"\6\0")
        ram.view[0x100:0x104] = b"abcd"
        client.store(0, WHERE, 4, 0x10100)
        assert client.load(0, THERE, 4).to_bytes(4, "little") == b"abcd"
        client.store(0, BACK, 4, 0x64636261 + 1)
        assert bytes(ram.view[0x100:0x104]) == b"bbcd"
        assert client.channel.has_twin == twin_socket
    to_client, to_server = Direction.TO_CLIENT, Direction.TO_SERVER
    assert dma(tmp_path / "device.trace") == [
        (to_client, False, b""),
        (to_server, True, b"abcd"),
        (to_client, False, b"bbcd"),
        (to_server, True, b""),
    ]


def test_what_was_captured_is_replayed_without_a_difference(tmp_path: Path) -> None:
    """The server asks within its handlers again, and is answered as it was."""
    with (
        interposed(tmp_path, REACHING, trace=True, interposition=CAPTURED) as server,
        Client.connect(str(server.path)) as client,
        GuestMemory(1 << 16) as ram,
    ):
        client.dma_map(0x10000, ram)
        client.config_write(4, b"\6\0")
        for number in range(20):
            ram.view[0:4] = number.to_bytes(4, "little")
            client.store(0, WHERE, 4, 0x10000)
            assert client.load(0, THERE, 4) == number
            client.store(0, BACK, 4, number + 1)
    command = f"{sys.executable} -m vfio_user serve {REACHING.served} --fd {{fd}}"
    outcome = replay(tmp_path / "device.trace", command)
    assert not outcome.differences
    assert len(outcome.dma_writes) == 20
    recorded = channels(load_script(tmp_path / "device.trace"))
    assert recorded["twin"] == 80
    for script in (load_script(tmp_path / "device.trace"), outcome.played):
        script.write(tmp_path / "written.trace")
        assert channels(load_script(tmp_path / "written.trace")) == recorded, "each is on the socket that it was on"


def channels(script: Script) -> Counter[str]:
    return Counter(step.channel for step in script.steps)


def test_what_is_no_message_is_told_in_a_replay_on_whichever_socket_it_comes() -> None:
    def garbage(server: ScriptedServer, _: Message) -> None:
        (server.twin or server.stream).send(bytes(16))

    promised = Capabilities(max_msg_fds=8, twin_socket=True, twin_socket_fd_index=0)
    sockets = {"one": (False, None), "two": (True, None), "one, and another that does not come": (False, promised)}
    for name, (has_twin, says) in sockets.items():
        offered = encode_version(CURRENT, 0, Capabilities(max_msg_fds=8, twin_socket=has_twin or bool(says) or None))
        asked = [Message(1, CURRENT.number(Command.VERSION), payload=offered)]
        asked.append(Message(2, CURRENT.number(Command.DEVICE_RESET)))
        with ScriptedServer(garbage, twin=has_twin, capabilities=says) as server:
            with Player(Script.of(asked), server.client_stream, patience=PATIENCE) as player:
                outcome = player.play()
            assert [(each.what, each.expected) for each in outcome.differences] == [(What.UNEXPECTED, "")], name


def test_memory_without_a_descriptor_is_asked_of_the_client(tmp_path: Path) -> None:
    """Inside a handler that needs a client which serves DMA while it waits, as ours does, captured or not."""
    with (
        interposed(tmp_path, REACHING, trace=True, interposition=CAPTURED) as server,
        Client.connect(str(server.path)) as client,
        GuestMemory(1 << 16, shared=False) as ram,
    ):
        client.dma_map(0x10000, ram)
        client.config_write(4, b"\6\0")
        ram.view[0x100:0x104] = b"abcd"
        client.store(0, WHERE, 4, 0x10100)
        assert client.load(0, THERE, 4).to_bytes(4, "little") == b"abcd"


def test_memory_that_is_not_there_is_refused_as_without_capture(tmp_path: Path) -> None:
    for interposition in (Interposition(), CAPTURED):
        (folder := tmp_path / str(interposition.capture_dma)).mkdir()
        with (
            interposed(folder, REACHING, trace=True, interposition=interposition) as server,
            Client.connect(str(server.path)) as client,
        ):
            client.config_write(4, b"\6\0")
            client.store(0, WHERE, 4, 0x50000)
            with pytest.raises(RemoteError) as refused:
                client.load(0, THERE, 4)
            assert refused.value.errno
            assert client.load(7, 0, 2) == 0x1AF4


def test_the_client_is_not_told_of_a_socket_that_it_did_not_ask_for(tmp_path: Path) -> None:
    with (
        interposed(tmp_path, REACHING, trace=True, interposition=CAPTURED) as server,
        Client.connect(str(server.path)) as client,
    ):
        assert not client.channel.has_twin
    version = CURRENT.number(Command.VERSION)
    told = {
        (entry.direction, entry.view): b"twin_socket" in entry.message.payload
        for entry in read_trace(tmp_path / "device.trace").entries
        if isinstance(entry, MessageRecord) and entry.message.command == version
    }
    assert told == {
        (Direction.TO_SERVER, View.RECEIVED): False,
        (Direction.TO_SERVER, View.SENT): True,
        (Direction.TO_CLIENT, View.RECEIVED): True,
        (Direction.TO_CLIENT, View.SENT): False,
    }


def test_a_server_that_takes_another_place_is_captured_as_the_first_was(tmp_path: Path) -> None:
    kept = Interposition(capture_dma=True, keep_alive=True, msg_timeout=60)
    with (
        interposed(tmp_path, REACHING, trace=True, interposition=kept) as server,
        Client.connect(str(server.path)) as client,
        GuestMemory(1 << 16) as ram,
    ):
        client.dma_map(0x10000, ram)
        client.config_write(4, b"\6\0")
        ram.view[0:4] = b"abcd"
        server.kill()
        client.store(0, WHERE, 4, 0x10000)
        assert client.load(0, THERE, 4).to_bytes(4, "little") == b"abcd"


@for_each([b"{}", b'{"capabilities":{"twin_socket":{"supported":false}}}', b"no JSON", b"[]"])
def test_a_server_without_a_second_socket_asks_on_its_connection_and_that_is_said(reply: bytes, tmp_path: Path) -> None:
    """What it does inside a handler is then up to it."""
    told: list[str] = []
    with Bench(trace=tmp_path / "t") as bench:
        CaptureDma(bench.session, told.append)
        bench.client.send(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0"), id=1))
        asked = bench.server.receive()
        bench.server.send(asked.reply(at.VERSION.pack(0, 0, tail=reply + b"\0")))
        assert bench.client.receive().payload == at.VERSION.pack(0, 0, tail=reply + b"\0")
        assert len(told) == 1
    assert "no-twin-socket" in {entry.event for entry in read_trace(tmp_path / "t").entries if isinstance(entry, Note)}


@for_each([{"fd_index": index} for index in (0, 1, -1, True, "0", 1 << 40)] + [{}])
def test_a_second_socket_that_is_none_costs_no_session(place: dict[str, object], tmp_path: Path) -> None:
    text = json.dumps({"capabilities": {"twin_socket": {"supported": True, **place}}}).encode()
    event = os.eventfd(0)
    with Bench(trace=tmp_path / "t") as bench:
        CaptureDma(bench.session)
        bench.client.send(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0"), id=1))
        asked = bench.server.receive()
        bench.server.send(replace(asked.reply(at.VERSION.pack(0, 0, tail=text + b"\0")), fds=[event]))
        close_all(bench.client.receive().fds)
        bench.exchange(request(Command.DEVICE_RESET))
    os.close(event)


@for_each([b"\xff" * 40, bytes(16), b"\1" * 15], ids=["no message", "a header", "half of one"])
def test_garbage_on_the_second_socket_costs_no_session(said: bytes, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    text = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'
    with Bench(trace=tmp_path / "t") as bench, ours:
        CaptureDma(bench.session)
        bench.client.send(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0"), id=1))
        asked = bench.server.receive()
        bench.server.send(replace(asked.reply(at.VERSION.pack(0, 0, tail=text)), fds=[theirs.fileno()]))
        theirs.close()
        assert not bench.client.receive().fds
        ours.sendall(said)
        ours.shutdown(socket.SHUT_WR)
        bench.settle()
        bench.exchange(request(Command.DEVICE_RESET))


def test_only_what_asks_for_an_answer_has_one_on_the_second_socket(tmp_path: Path) -> None:
    """Whether it is answered out of memory or the client is asked."""
    text = b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":0}}}\0'
    size = 4096
    with Bench(trace=tmp_path / "t") as bench, GuestMemory(size) as memory:
        twin, theirs = bench.pair()
        CaptureDma(bench.session)
        bench.client.send(request(Command.VERSION, at.VERSION.pack(0, 0, tail=b"{}\0"), id=1))
        asked = bench.server.receive()
        bench.server.send(replace(asked.reply(at.VERSION.pack(0, 0, tail=text)), fds=[theirs.fileno()]))
        theirs.close()
        assert not bench.client.receive().fds
        bench.exchange(dma_map(0, size, memory.fd))
        for address, by_client in ((0, False), (size, True)):
            for posted in (True, False):
                said = at.DMA_ACCESS.pack(address, 4, tail=b"data")
                twin.send(request(Command.DMA_WRITE, said, id=posted, posted=posted))
                if by_client:
                    bench.client.send(bench.client.receive().reply(at.DMA_ACCESS.pack(address, 4)))
                if posted:
                    assert twin.is_silent(), by_client
                else:
                    assert twin.receive().id == posted
        twin.close()
