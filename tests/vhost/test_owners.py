"""What is left of a ring after a reset, and for a second owner: nothing of what was said before."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, cast

import pytest

from tests.userfaults import NOT_OFFERED
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, PROTOCOL, USER, FrontEnd, P, Queue, R, V, no_fd, split
from userdev.errors import ProtocolError
from userdev.eventfd import drain
from vhost_user.backend import Server, Session
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.inflight import InflightRegion, make_region
from vhost_user.backend.line import Line
from vhost_user.device import model_of
from vhost_user.memory import DirtyLog
from vhost_user.wire import DeviceStatus
from vhost_user.wire.payloads import Inflight, Log, VringState


def test_of_a_ring_that_was_reset_neither_place_nor_addresses_nor_status_are_left(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.STATUS)
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    for _ in range(3):
        ring.exchange(b"ab", 2)
    stranger.do(R.RESET_DEVICE)
    assert stranger.ask(R.GET_STATUS) == 0
    again = stranger.queue(at=0x40000)  # as a driver begins that has cleared its ring
    stranger.do(R.SET_VRING_ERR, 0, [again.err_fd])
    stranger.do(R.SET_VRING_KICK, 0, [again.kick_fd])
    again.enable()
    assert again.wait_err(), "it runs where it was before the reset"
    stranger.ask(R.GET_VRING_BASE, VringState(0, 0))
    stranger.do(R.SET_VRING_ADDR, again.addresses)
    stranger.do(R.SET_VRING_CALL, 0, [again.call_fd])
    stranger.do(R.SET_VRING_KICK, 0, [again.kick_fd])
    again.put(b"cd", 2)
    again.kick()
    assert [completion.data for completion in again.wait_used()] == [b"dc"]


def test_a_second_owner_has_neither_status_nor_log_nor_in_flight_region_of_the_first(stranger: FrontEnd) -> None:
    log_all = FEATURES | V.LOG_ALL
    stranger.negotiate(log_all, PROTOCOL | P.STATUS | P.LOG_SHMFD | P.INFLIGHT_SHMFD)
    stranger.share_memory()
    log = stranger.share_log()
    region = stranger.ask_inflight()
    stranger.set_inflight(region)
    ring = stranger.queue()
    ring.start()
    ring.exchange(b"ab", 2)
    assert log.pages()
    log.clear()
    before = os.pread(region.fd, region.described.mmap_size, 0)
    stranger.send(R.SET_OWNER)
    assert stranger.ask(R.GET_STATUS) == 0
    stranger.negotiate(log_all, PROTOCOL | P.STATUS | P.LOG_SHMFD | P.INFLIGHT_SHMFD)
    stranger.share_memory()
    again = stranger.queue(at=0x40000)
    again.start()
    for _ in range(3):
        assert again.exchange(b"cd", 2).data == b"dc"
    assert not log.pages()
    assert os.pread(region.fd, region.described.mmap_size, 0) == before


def test_nobody_is_told_how_a_transfer_ended_that_was_another_owners_or_before_a_reset(stranger: FrontEnd) -> None:
    protocol = PROTOCOL | P.DEVICE_STATE
    for ends in (R.SET_OWNER, R.RESET_DEVICE):
        stranger.negotiate(protocol=protocol)
        stranger.save_state()
        assert stranger.ask(R.CHECK_DEVICE_STATE) == 0
        stranger.send(ends)
        assert stranger.ask(R.CHECK_DEVICE_STATE) == errno.EINVAL, ends


def test_a_second_owner_is_told_by_nobody_but_whom_it_names(front_end: FrontEnd, ring: Queue) -> None:
    """Not by the first one's descriptors: of a ring that runs, and of one that breaks."""
    front_end.send(R.SET_OWNER)
    front_end.negotiate()
    front_end.share_memory()
    for fd in (ring.call_fd, ring.err_fd):
        drain(fd)
    again = front_end.queue(at=0x40000)
    front_end.do(R.SET_VRING_NUM, VringState(0, again.size))
    front_end.do(R.SET_VRING_ADDR, again.addresses)
    front_end.do(R.SET_VRING_KICK, 0, [again.kick_fd])
    again.enable()
    for data in (b"ab", b"fail"):
        again.put(data, 2)
        again.kick()
    front_end.settle()
    front_end.settle()
    assert split(again).used_index == 1
    assert not ring.wait_call(0)
    assert not ring.wait_err(0)


PLAIN = (bool, int, str, tuple, list, set, dict, deque, type(None))
"""What is compared as it is; of everything else it counts whether it is there."""


def plain(owner: object) -> dict[str, object]:
    """The attributes of an object that a front-end's messages may have changed."""
    return {
        name: value if isinstance(value, (*PLAIN, Enum)) else type(value).__name__
        for name, value in vars(owner).items()
        if not callable(value)
    }


def known(server: Server) -> dict[str, object]:
    """All that a session knows of its front-end, but for what comes before SET_OWNER: protocol features, channel."""
    session = server._session
    assert isinstance(session, Session)
    back_end = session._back_end
    vrings = back_end.vrings
    found: dict[str, object] = {
        "back-end": {name: value for name, value in plain(back_end).items() if name not in ("negotiated", "_channel")},
        "features": (back_end.negotiated.features, back_end.negotiated.postcopy),
        "postcopy": plain(back_end.postcopy),
        "rings": plain(vrings),
        "memory": (len(vrings.table), len(vrings._iotlb), len(vrings.misses._waits), vrings.table.can_shrink),
    }
    for vring in vrings:
        found[f"ring {vring.index}"] = plain(vring)
        lines = {name: line for name, line in vars(vring).items() if isinstance(line, Line)}
        found |= {f"{name} {vring.index}": (line.is_in_band, line._fd) for name, line in lines.items()}
    return found


PROTOCOL_OF_ALL = PROTOCOL | P.STATUS | P.CONFIG | P.DEVICE_STATE | P.BACKEND_REQ | P.PAGEFAULT


def say_all(front_end: FrontEnd) -> list[Queue]:
    """Everything that a front-end can say, so that nothing of the session is as in the beginning."""
    front_end.negotiate(FEATURES | V.LOG_ALL | V.ACCESS_PLATFORM, PROTOCOL_OF_ALL)
    front_end.share_memory()
    front_end.share_log()
    front_end.set_inflight(front_end.ask_inflight(2))
    front_end.open_channel()
    front_end.translate(0, USER)
    if front_end.has(P.PAGEFAULT):
        front_end.ask(R.POSTCOPY_ADVISE)
        front_end.do(R.POSTCOPY_LISTEN)
        front_end.negotiated = replace(front_end.negotiated, postcopy=True)
    front_end.save_state()
    front_end.set_status(DeviceStatus.ACKNOWLEDGE)
    one, other = front_end.queue(), front_end.queue(1)
    one.logged = True
    one.start(3)  # which misses the translation of where it is
    other.set_up(5)
    front_end.read_config(1)
    front_end.do(R.SET_VRING_KICK, no_fd(1))
    return [one, other]


def test_for_a_second_owner_a_session_is_as_a_new_one(server: Server) -> None:
    with FrontEnd(str(server.listener.address)) as front_end:
        front_end.settle()
        new = known(server)
        for _ in range(2):
            say_all(front_end)
            said = known(server)
            assert {name for name in new if said[name] == new[name]} == ({"postcopy"} if NOT_OFFERED else set())
            front_end.send(R.SET_OWNER)
            front_end.negotiated = replace(front_end.negotiated, features=V(0), postcopy=False)
            front_end.settle()
            again = known(server)
            for name in new:
                assert again[name] == new[name], name


def test_a_log_and_an_in_flight_region_are_unmapped_when_another_comes_or_they_are_for_nobody_any_more() -> None:
    """Also where somebody knows them still, as an error does that came through them."""
    described, fd = make_region(Inflight(0, 0, 2, 8), packed=False, queues=2)
    ends: list[Callable[[BackEnd], None]] = [BackEnd.begin_anew, BackEnd.close]
    for instead in (True, False):
        for end in ends:
            back_end = BackEnd(model_of(Reverse()), cast(Any, None), lambda _: False)
            logs = [DirtyLog(Log(64, 0), fd) for _ in range(1 + instead)]
            regions = [InflightRegion(described, fd, packed=False, queues=2) for _ in range(1 + instead)]
            for log, region in zip(logs, regions, strict=True):
                back_end.vrings.set_log(log)
                back_end.vrings.set_inflight(region)
                log.mark(0, 1)
                assert region.split(0) is not None
                before, last = (logs[0], regions[0]), (log, region)
                if before != last:
                    _is_unmapped(*before)
            end(back_end)
            _is_unmapped(*last)
            back_end.close()
    os.close(fd)


def _is_unmapped(log: DirtyLog, region: InflightRegion) -> None:
    with pytest.raises(ProtocolError):
        log.mark(0, 1)
    with pytest.raises(ProtocolError):
        region.split(0)
