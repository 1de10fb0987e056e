"""A client waits as long as it was told to, also for a server that never stops talking."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from contextlib import closing

import pytest

from userdev.transport import Framer, Stream
from vfio_user.client import Client, GuestMemory, Mapping, NoAnswer
from vfio_user.wire import CURRENT, NO_REPLY, Command, Message
from vfio_user.wire.layouts import DMA_ACCESS

SAID = Message(7, CURRENT.number(Command.DMA_WRITE), NO_REPLY, 0, DMA_ACCESS.pack(0, 4, tail=b"more")).encode()
MUCH = 20_000
"""Messages that take far longer than a wait is."""


class Talkative(Stream):
    """A server's connection on which there is always one more message, and that takes nothing where it `is_deaf`."""

    def __init__(self, connection: socket.socket, is_deaf: bool = False) -> None:
        super().__init__(connection)
        self.is_deaf = is_deaf
        self.said = itertools.count(1)

    def receive(self, room: memoryview, flags: int = 0) -> tuple[int, list[int]]:
        assert next(self.said) < MUCH, "it is listened to for ever"
        room[: len(SAID)] = SAID
        return len(SAID), []

    def try_send(self, data: bytes | bytearray | memoryview, fds: object = ()) -> int:
        if self.is_deaf:
            raise BlockingIOError
        return len(data)


def waits_for_nothing(client: Client) -> None:
    assert not client.serve_until(lambda: False, timeout=0.02)


def waits_for_a_reply(client: Client) -> None:
    with pytest.raises(NoAnswer):
        client.load(0, 0, 4)


@pytest.mark.parametrize(
    ("wait", "is_deaf"),
    [
        pytest.param(waits_for_nothing, False, id="for nothing"),
        pytest.param(waits_for_a_reply, False, id="for a reply"),
        pytest.param(waits_for_a_reply, True, id="until it reads"),
    ],
)
def test_a_server_that_never_stops_talking_is_waited_for_no_longer(
    wait: Callable[[Client], None], is_deaf: bool
) -> None:
    ours, theirs = socket.socketpair()
    ours.send(b"more")  # which nobody takes: there is always something to be read
    with ours, Client(Talkative(theirs, is_deaf), timeout=0.02) as client, GuestMemory(4096) as ram:
        client.memory.add(Mapping(0, 4096, ram))
        wait(client)


def test_what_came_with_the_last_word_counts() -> None:
    """The time is over when it has been dealt with, and it was there in time."""
    ours, theirs = socket.socketpair()
    ours.send(b"more")
    with ours, Client(Talkative(theirs), timeout=0.02) as client, GuestMemory(4096) as ram:
        client.memory.add(Mapping(0, 4096, ram))
        assert client.serve_until(lambda: bytes(ram.view[:4]) == b"more", timeout=0)


def test_a_server_that_reads_late_sees_whole_messages() -> None:
    """What was begun is sent to its end, and what was not is not sent at all."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs, closing(Framer(Message)) as framer, Client(Stream(ours), timeout=0.02) as client:
        for data in (bytes(1 << 20), b"never begun"):
            with pytest.raises(NoAnswer):
                client.region_write(0, 0, data)
        came: list[int] = []
        while len(came) < 2:
            framer.received(theirs.recv_into(framer.room()))
            came += [message.command for message in framer.messages()]
            if not came:
                client.serve_until(lambda: False, timeout=0)
            elif len(came) == 1:
                client.post(Command.DEVICE_RESET)
        assert came == [CURRENT.number(Command.REGION_WRITE), CURRENT.number(Command.DEVICE_RESET)]
