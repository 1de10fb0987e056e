"""What a peer has not taken yet: who waits for that is told, and descriptors are closed, whatever becomes of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from tests.cases import for_each
from tests.descriptors import fd_count
from userdev.relay.outlet import Outlet
from userdev.transport import Stream

SIZE = 1 << 20


def _read_all(peer: socket.socket, outlet: Outlet) -> None:
    peer.setblocking(False)
    while outlet.waiting:
        _, fds, _, _ = socket.recv_fds(peer, SIZE, 4)
        for fd in fds:
            os.close(fd)
        outlet.flush()


def _leave(peer: socket.socket, outlet: Outlet) -> None:
    peer.close()
    outlet.flush()
    assert outlet.broken


WAYS: dict[str, Callable[[socket.socket, Outlet], None]] = {
    "the peer reads all": _read_all,
    "the peer leaves": _leave,
    "it is dropped": lambda peer, outlet: outlet.clear(),
}


@for_each(WAYS)
def test_who_waits_until_it_is_taken_is_told_once_and_its_descriptors_are_closed(way: str) -> None:
    """An answer that nobody counts as gone is counted against its client for ever, which is read no more then."""
    told: list[int] = []
    before = fd_count()
    ours, peer = socket.socketpair()
    with ours, peer, open(os.devnull) as file:
        ours.setblocking(False)
        outlet = Outlet(Stream(ours))
        outlet.send(bytes(SIZE))
        outlet.when_taken(lambda: told.append(0))
        for number in (1, 2):
            outlet.send(bytes(10), [file.fileno()])
            outlet.when_taken(lambda number=number: told.append(number))  # type: ignore[misc]
        assert (outlet.waiting, told) == (True, [])
        WAYS[way](peer, outlet)
        assert (outlet.waiting, told) == (False, [0, 1, 2])
        outlet.flush()
        outlet.clear()
        assert told == [0, 1, 2]
    assert fd_count() == before
