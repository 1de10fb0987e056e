"""Messages come out of the stream whole, however the bytes came in, with the descriptors that were sent with them."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import for_each
from tests.descriptors import fd_count
from userdev.transport import BadFrame, Framer, Stream, close_all
from userdev.transport.framing import RECEIVE
from vfio_user.wire import HEADER, MAX_MESSAGE, Message

MESSAGES = st.lists(
    st.builds(
        Message,
        id=st.integers(0, 0xFFFF),
        command=st.integers(0, 0xFFFF),
        flags=st.integers(0, 0xFFFFFFFF),
        errno=st.integers(0, 0xFFFFFFFF),
        payload=st.binary(max_size=300),
    ),
    max_size=8,
)


def new_fd() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


@given(messages=MESSAGES, cuts=st.lists(st.integers(1, 200), min_size=1))
def test_messages_survive_any_cutting_of_the_stream(messages: list[Message], cuts: list[int]) -> None:
    data = b"".join(message.encode() for message in messages)
    framer, at, turn = Framer(Message), 0, 0
    out: list[Message] = []
    while at < len(data):
        step = cuts[turn % len(cuts)]
        framer.feed(data[at : at + step])
        out += framer.messages()
        at, turn = at + step, turn + 1
    assert out == messages
    assert framer.pending == 0


def test_a_message_that_comes_byte_by_byte_is_one_message() -> None:
    framer = Framer(Message)
    data = Message(1, 9, payload=bytes(range(256))).encode()
    for at in range(len(data) - 1):
        framer.feed(data[at : at + 1])
        assert framer.next() is None
    framer.feed(data[-1:])
    assert framer.next() == Message(1, 9, payload=bytes(range(256)))


def test_one_receive_may_bring_many_messages_and_the_beginning_of_another() -> None:
    framer = Framer(Message)
    framer.feed(b"".join(Message(id, 9).encode() for id in range(10)) + Message(10, 9, payload=b"xy").encode()[:-1])
    assert [message.id for message in framer.messages()] == list(range(10))
    framer.feed(b"y")
    assert framer.next() == Message(10, 9, payload=b"xy")


def test_the_longest_message_fits_and_gives_its_memory_back() -> None:
    framer = Framer(Message)
    payload = os.urandom(MAX_MESSAGE - 16)
    framer.feed(Message(1, 2, payload=payload).encode())
    assert framer.next() == Message(1, 2, payload=payload)
    framer.feed(Message(2, 2).encode())
    assert framer.next() == Message(2, 2)
    assert len(framer.buffer) == RECEIVE


@for_each([MAX_MESSAGE + 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_size_that_no_message_has_ends_the_stream_and_costs_no_memory(size: int) -> None:
    framer = Framer(Message)
    framer.feed(HEADER.pack(7, 8, size, 0, 0))
    with pytest.raises(BadFrame) as caught:
        framer.next()
    assert caught.value.fatal
    assert caught.value.message == Message(7, 8)
    assert len(framer.buffer) == RECEIVE


@for_each(range(16))
def test_a_size_below_the_header_is_answered_and_the_stream_goes_on_behind_it(size: int) -> None:
    framer = Framer(Message)
    framer.feed(HEADER.pack(7, 8, size, 0x10, 0) + Message(1, 2).encode())
    with pytest.raises(BadFrame) as caught:
        framer.next()
    assert not caught.value.fatal
    assert caught.value.message == Message(7, 8, 0x10)
    assert framer.next() == Message(1, 2)


@given(st.binary(max_size=2000))
@settings(max_examples=300)
def test_noise_is_messages_or_the_one_error(data: bytes) -> None:
    framer = Framer(Message, max_message=1000)
    framer.feed(data)
    try:
        while framer.pending >= 16:
            try:
                message = framer.next()
            except BadFrame as error:
                if error.fatal:
                    return
                continue
            if message is None:
                return
            assert 16 <= message.size <= 1000
    finally:
        framer.close()


# descriptors, over a real socket


class Pipe:
    """A pair of sockets with a framer at the receiving end."""

    def __init__(self, *, max_fds: int = 256) -> None:
        here, there = socket.socketpair()
        self.out, self.into = Stream(here), Stream(there)
        self.framer = Framer(Message, max_fds=max_fds)

    def pump(self, room: int | None = None) -> None:
        """One receive, of at most `room` bytes."""
        view = self.framer.room()
        count, fds = self.into.receive(view if room is None else view[:room])
        self.framer.received(count, fds)

    def close(self) -> None:
        self.framer.close()
        self.out.close()
        self.into.close()


@pytest.fixture
def pipe():  # type: ignore[no-untyped-def]
    before = fd_count()
    pipe = Pipe()
    yield pipe
    pipe.close()
    assert fd_count() == before


def send(pipe: Pipe, message: Message) -> None:
    fds = list(message.fds)
    pipe.out.send(message.encode(), fds)
    close_all(fds)


def test_descriptors_belong_to_the_message_they_came_with(pipe: Pipe) -> None:
    send(pipe, Message(1, 2))
    send(pipe, Message(2, 2, fds=[new_fd(), new_fd()]))
    send(pipe, Message(3, 2))
    send(pipe, Message(4, 2, fds=[new_fd()]))
    found: list[Message] = []
    while len(found) < 4:
        pipe.pump()
        found += pipe.framer.messages()
    assert [(message.id, len(message.fds)) for message in found] == [(1, 0), (2, 2), (3, 0), (4, 1)]
    for message in found:
        close_all(message.fds)


def test_descriptors_stay_with_a_message_that_comes_in_pieces(pipe: Pipe) -> None:
    send(pipe, Message(1, 2, payload=bytes(100), fds=[new_fd()]))
    send(pipe, Message(2, 2))
    found: list[Message] = []
    while len(found) < 2:
        pipe.pump(room=7)
        found += pipe.framer.messages()
    assert [len(message.fds) for message in found] == [1, 0]
    close_all(found[0].fds)


def test_descriptors_on_every_byte_all_belong_to_the_message(pipe: Pipe) -> None:
    data = Message(1, 2, payload=b"ab").encode()
    fd = new_fd()
    for at in range(len(data)):
        pipe.out.send(data[at : at + 1], [fd])
    os.close(fd)
    found: list[Message] = []
    while not found:
        pipe.pump()
        found += pipe.framer.messages()
    assert len(found[0].fds) == len(data)
    close_all(found[0].fds)


def test_descriptors_of_a_message_that_never_ends_are_closed(pipe: Pipe) -> None:
    fd = new_fd()
    pipe.out.send(Message(1, 2, payload=bytes(9)).encode()[:-1], [fd])
    os.close(fd)
    pipe.pump()
    assert pipe.framer.next() is None
    assert pipe.framer.has_fds  # the fixture sees that closing the framer closes them


def test_descriptors_of_a_header_that_is_too_short_are_closed(pipe: Pipe) -> None:
    before = fd_count()
    fd = new_fd()
    pipe.out.send(HEADER.pack(1, 2, 3, 0, 0), [fd])
    os.close(fd)
    pipe.pump()
    with pytest.raises(BadFrame):
        pipe.framer.next()
    assert fd_count() == before


@pytest.mark.parametrize("whole", [True, False], ids=["whole message", "unfinished message"])
def test_more_descriptors_than_allowed_end_the_stream_and_are_closed(pipe: Pipe, whole: bool) -> None:
    pipe.framer.max_fds = 3
    before = fd_count()
    fd = new_fd()
    data = Message(1, 2, payload=bytes(4)).encode()
    for at in range(4):
        pipe.out.send(data[at * 5 : at * 5 + 5 - (at == 3 and not whole)], [fd])
    os.close(fd)
    for _ in range(3):
        pipe.pump()
        assert pipe.framer.next() is None
    pipe.pump()
    with pytest.raises(BadFrame) as caught:
        pipe.framer.next()
    assert caught.value.fatal
    assert fd_count() == before


def test_a_message_that_has_lost_its_descriptors_is_an_error_and_the_next_is_not() -> None:
    framer = Framer(Message)
    messages = [Message(id, 2, payload=bytes(8)) for id in range(3)]
    data = b"".join(message.encode() for message in messages)
    size = len(data) // 3
    framer.room()[:size] = data[:size]
    framer.received(size)
    framer.room()[:size] = data[size : 2 * size]
    framer.lost(size)
    framer.feed(data[2 * size :])
    assert framer.next() == messages[0]
    with pytest.raises(BadFrame) as lost:
        framer.next()
    assert (lost.value.errno, lost.value.fatal) == (errno.EMFILE, False)
    assert lost.value.message == Message(1, 2)
    assert framer.next() == messages[2]
