"""Whatever either side says, right messages in any order or none at all: all of it passes, or the session ends."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.descriptors import fd_count
from tests.test_vhost_garbage import Said, right, wrong
from tests.vhost.between import Between, Peer, R
from userdev.trace import as_json, text
from userdev.transport import close_all
from vfio_user.traces import open_trace
from vhost_user.interposer.faults.scenario import parse_scenario
from vhost_user.interposer.faults.stage import SessionFaults
from vhost_user.wire import NEED_REPLY, REPLY, VERSION, Message

SCENARIO = parse_scenario(
    """rules:
- {match: {nth: {every: 3}}, act: {corrupt: {at: 3, random: true}}}
- {match: {nth: {every: 4}}, act: drop}
- {match: {nth: {every: 5}}, act: {truncate: 13}}
- {match: {nth: {every: 7}}, act: [{extra-fd: 2}, {reorder: {after: 1, within: 0.001}}]}
""",
    "garbage",
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.booleans(), st.one_of(right, right, wrong)), max_size=20), st.booleans())
def test_any_messages_of_either_side_pass_and_leave_no_descriptor(said: list[tuple[bool, Said]], broken: bool) -> None:
    before = fd_count()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        with Between(trace) as between:
            if broken:
                SessionFaults(between.session, SCENARIO, lambda number: number)
            for is_asking, (request, payload, count) in said:
                peer, flags = (between.front_end, NEED_REPLY) if is_asking else (between.back_end, REPLY)
                say(peer, Message(request, VERSION | flags, payload), count)
                between.settle()
                for each in (between.front_end, between.back_end):
                    each.take_all()
        view = open_trace(trace)
        for line in view.lines():
            assert text(line, view.header.time)
            json.dumps(as_json(line, view.header.time))
    assert fd_count() == before


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_pass(data: bytes) -> None:
    with Between() as between:
        between.front_end.socket.sendall(data)
        between.front_end.socket.shutdown(socket.SHUT_WR)
        assert between.back_end.receive_bytes(len(data)) == data


def say(peer: Peer, message: Message, count: int) -> None:
    """Send it with so many descriptors; a channel's is a socket."""
    pairs = [socket.socketpair() for _ in range(count)] if message.request == R.SET_BACKEND_REQ_FD else []
    fds = [ours.fileno() for ours, _ in pairs] or [os.memfd_create("guest") for _ in range(count)]
    with suppress(OSError):
        peer.stream.send(message.encode(), fds)
    for ends in pairs:
        for end in ends:
            end.close()
    if not pairs:
        close_all(fds)
