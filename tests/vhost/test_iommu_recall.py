"""Translations are taken back while requests of several rings are under way, or were left."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.vhost.channel import PATIENCE, Channel
from tests.vhost.test_iommu import PAGE, answer_miss, know, know_rings, update
from tests.vhost.test_left_requests import Leaving
from tests.vhost.test_supply import Teller
from tests.vhost_frontend import FEATURES, MEMORY, PROTOCOL, USER, FrontEnd, P, V
from vhost_user.backend import Server
from vhost_user.device import Chain, Taken, queue
from vhost_user.wire.payloads import IotlbMessage, IotlbType


class SlowTeller(Teller):
    """Hears a word when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_hear = threading.Event()

    @queue(1)
    def hear(self, chain: Chain) -> Taken:
        return lambda: self._heard(chain)

    def _heard(self, chain: Chain) -> int:
        assert self.may_hear.wait(PATIENCE)
        return chain.write(b"heard")


def test_an_invalidation_waits_for_them_also_where_another_ring_was_stopped_before(tmp_path: Path) -> None:
    """Only when all have stopped does a front-end take nothing back any more."""
    device = SlowTeller()
    with Server(device, f"unix:{tmp_path}/t") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(FEATURES | V.ACCESS_PLATFORM, PROTOCOL | P.BACKEND_REQ)
        front_end.share_memory()
        with Channel(front_end):
            know_rings(front_end)
            assert know(front_end, update(0, USER, MEMORY)) == 0
            told, heard = front_end.queue(0), front_end.queue(1)
            told.start()
            heard.start()
            heard.put(b"", 5)
            heard.kick()
            front_end.settle()
            told.stop()
            threading.Timer(0.05, device.may_hear.set).start()
            assert know(front_end, IotlbMessage(0, MEMORY, 0, 0, IotlbType.INVALIDATE)) == 0
            assert [completion.data for completion in heard.take_used()] == [b"heard"]


def test_a_request_that_was_left_is_given_again_after_an_invalidation_too(tmp_path: Path) -> None:
    """It is in the ring, and no translation of it is used: what is taken back changes nothing about it."""
    device = Leaving()
    with Server(device, f"unix:{tmp_path}/l") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(FEATURES | V.ACCESS_PLATFORM, PROTOCOL | P.BACKEND_REQ)
        front_end.share_memory()
        with Channel(front_end):
            know_rings(front_end)
            assert know(front_end, update(0, USER, MEMORY)) == 0
            ring, other = front_end.queue(0), front_end.queue(1)
            ring.start()
            ring.put(b"l1", 16)
            ring.kick()
            front_end.settle()
            assert know(front_end, IotlbMessage(0, PAGE, 0, 0, IotlbType.INVALIDATE)) == 0
            assert know(front_end, update(0, USER, MEMORY)) == 0
            front_end.settle()
            device.leaves = False
            other.start(kick=False)
            assert [done.data for done in ring.wait_used()] == [b"l1"]


def test_buffers_of_a_device_that_waits_for_a_word_are_asked_for_and_recalled(tmp_path: Path) -> None:
    """A translation that is taken back takes the buffers from the device, and they are taken again."""
    device = Teller()
    with Server(device, f"unix:{tmp_path}/t") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(FEATURES | V.ACCESS_PLATFORM, PROTOCOL | P.BACKEND_REQ)
        front_end.share_memory()
        with Channel(front_end) as channel:
            know_rings(front_end)
            ring = front_end.queue()
            device.words, device.keeps = [b"ab"], True
            place = ring.put(1).places[0]
            ring.put(1)
            ring.start()
            assert answer_miss(front_end, channel) == place & -PAGE
            front_end.settle()
            assert len(device.kept) == 2
            assert know(front_end, IotlbMessage(0, PAGE << 20, 0, 0, IotlbType.INVALIDATE)) == 0
            device.keeps = False
            ring.kick()
            assert answer_miss(front_end, channel) == place & -PAGE
            assert [completion.data for completion in ring.wait_used(2)] == [b"a", b"b"]
