"""What is left of a ring after a reset, and for a second owner: nothing of what was said before."""

from __future__ import annotations

import errno
import os

from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, Queue, R, V, split
from userdev.eventfd import drain
from vhost_user.wire.payloads import VringState


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
    for ends in (R.SET_OWNER, R.RESET_DEVICE, R.RESET_OWNER):
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
