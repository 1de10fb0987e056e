"""What breaks a ring at its start or at a request, and what goes on beside it."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from tests.descriptors import fd_count
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import MEMORY, FrontEnd, Queue, R, no_fd, split
from vfio_user.harness.troubles import BROKE, WORKS
from vhost_user.backend import Server, Session
from vhost_user.wire.payloads import VringState


def loop(ring: Queue) -> None:
    split(ring).describe(0, 0x8000, 4, 1, 1)
    split(ring).describe(1, 0x8000, 4, 1, 0)


def outside_memory(ring: Queue) -> None:
    split(ring).describe(0, MEMORY, 4, 0, 0)


def writable_before_readable(ring: Queue) -> None:
    split(ring).describe(0, 0x8000, 4, 3, 1)
    split(ring).describe(1, 0x8000, 4, 0, 0)


def beyond_the_table(ring: Queue) -> None:
    split(ring).describe(0, 0x8000, 4, 1, 99)


def indirect_without_agreement(ring: Queue) -> None:
    split(ring).describe(0, 0x8000, 16, 4, 0)


@pytest.mark.parametrize(
    "wrong", [loop, outside_memory, writable_before_readable, beyond_the_table, indirect_without_agreement]
)
def test_a_wrong_chain_breaks_its_ring_and_nothing_else(front_end: FrontEnd, ring: Queue, wrong: object) -> None:
    other = front_end.queue(1)
    other.start()
    assert callable(wrong)
    wrong(ring)
    split(ring).offer(0)
    ring.kick()
    assert ring.wait_err()
    assert other.exchange(b"ab", 2).data == b"ba"
    ring.stop()
    front_end.memory[0x10000:0x13000] = bytes(0x3000)
    again = front_end.queue()
    again.start()
    assert again.exchange(b"cd", 2).data == b"dc"


def test_a_device_that_fails_breaks_the_ring_and_what_was_done_before_is_told(
    ring: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    ring.put(b"ab", 2)
    ring.put(b"fail", 4)
    ring.kick()
    assert ring.wait_err()
    assert len(ring.wait_used()) == 1
    assert "on purpose" in caplog.text
    assert "queue 0 of Reverse" in caplog.text


def test_what_was_taken_before_a_wrong_chain_comes_back(front_end: FrontEnd, ring: Queue, device: Reverse) -> None:
    """Taken together with it, done at once or on another thread: a driver that starts again would wait for them."""
    device.go_on.set()
    wrong, *_ = split(ring)._free
    del split(ring)._free[0]
    split(ring).describe(wrong, MEMORY, 4, 0, 0)
    ring.put(b"ab", 2)
    ring.put(b"wait", 4)
    split(ring).offer(wrong)
    ring.kick()
    assert ring.wait_err()
    front_end.settle()
    assert sorted(each.data for each in ring.take_used()) == [b"ba", b"tiaw"]
    assert ring.wait_call(0)
    assert ring.stop(drain=False) == 2, "the wrong one is next"


def test_that_a_ring_is_broken_and_that_it_runs_again_is_told_as_the_harness_reads_it(
    front_end: FrontEnd, ring: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def told() -> list[str]:
        return broken_and_not(caplog)

    ring.put(b"fail", 4)
    ring.kick()
    assert ring.wait_err()
    assert told() == ["queue 0 of Reverse broke"]
    for _ in range(2):  # told once
        ring.stop()
        front_end.memory[0x10000:0x13000] = bytes(0x3000)
        again = front_end.queue()
        again.start()
        assert again.exchange(b"cd", 2).data == b"dc"
        assert told() == ["queue 0 of Reverse broke", "queue 0 of Reverse works"]


def test_a_ring_that_is_started_without_addresses_breaks(front_end: FrontEnd) -> None:
    ring = front_end.queue()
    front_end.do(R.SET_VRING_ERR, 0, [ring.err_fd])
    front_end.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    assert ring.wait_err()
    front_end.settle()


@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR])
def test_a_kick_that_is_no_eventfd_is_refused(front_end: FrontEnd, request_: R) -> None:
    """A front-end's own end of the connection among them: who keeps that never sees its end."""
    with Path("/dev/null").open() as nothing:
        for fd in (nothing.fileno(), front_end.memory.fd, front_end.stream.fileno()):
            assert front_end.tell(request_, 0, [fd]) == errno.EINVAL


def test_a_ring_without_a_kick_is_looked_at_by_itself(front_end: FrontEnd) -> None:
    ring = front_end.queue()
    ring.start(enable=False)
    front_end.do(R.SET_VRING_KICK, no_fd(0))
    ring.enable()
    ring.put(b"ab", 2)
    assert len(ring.wait_used()) == 1
    ring.stop()


def test_a_ring_that_gets_another_kick_looks_whether_it_was_told_by_the_one_before(
    server: Server, front_end: FrontEnd, ring: Queue
) -> None:
    ring.enable(False)
    ring.enable()
    while not ring.driver.wants_kick():
        front_end.settle()
    ring.put(b"ab", 2)
    other = os.eventfd(0)
    front_end.do(R.SET_VRING_KICK, 0, [other])
    os.close(other)
    assert [each.data for each in ring.wait_used()] == [b"ba"]
    session = server._session
    assert isinstance(session, Session)
    assert len(session._back_end.vrings.started) == 1, "it is looked at once in a turn"


def test_a_ring_that_is_broken_tells_who_asks_for_that_later(front_end: FrontEnd, ring: Queue) -> None:
    outside_memory(ring)
    split(ring).offer(0)
    ring.kick()
    assert ring.wait_err()
    assert ring.wait_err(0), "it is broken still, though that was told once"
    for enabled in (True, False):
        ring.enable(enabled, kick=False)
        err = os.eventfd(0, os.EFD_NONBLOCK)
        front_end.do(R.SET_VRING_ERR, 0, [err])
        assert os.eventfd_read(err), enabled
        os.close(err)


def test_a_kick_that_cannot_be_waited_for_leaves_the_one_before(
    front_end: FrontEnd, ring: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stopped = front_end.queue(1)
    before, other = fd_count(), os.eventfd(0)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "watch", refuse)
        assert front_end.tell(R.SET_VRING_KICK, ring.index, [other])
        assert front_end.tell(R.SET_VRING_KICK, stopped.index, [other])
    os.close(other)
    front_end.do(R.SET_VRING_NUM, VringState(stopped.index, stopped.size))  # it is stopped still
    assert ring.exchange(b"ab", 2).data == b"ba"
    assert fd_count() == before


def test_a_ring_at_whose_start_its_device_fails_is_broken_until_it_is_started_again(
    front_end: FrontEnd, device: Reverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that another has still, say: it is told once, and neither served nor stopped for what never ran."""
    start, failures = device.on_start, [OSError("another has it")]

    def failing(queue: int) -> None:
        if failures:
            raise failures.pop()
        start(queue)

    monkeypatch.setattr(device, "on_start", failing)
    ring = front_end.queue()
    ring.start()
    assert ring.wait_err()
    ring.put(b"ab", 2)
    ring.kick()
    front_end.settle()
    assert split(ring).used_index == 0
    ring.stop(drain=False)
    assert [event for event in device.events if event in ("start 0", "stop 0")] == []
    ring.start()
    assert len(ring.wait_used()) == 1


def test_that_nobody_has_a_broken_ring_any_more_is_told_once_its_front_end_has_left(
    server: Server, front_end: FrontEnd, ring: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong with the next front-end is not its fault."""
    caplog.set_level(logging.INFO)
    ring.put(b"fail", 4)
    ring.kick()
    assert ring.wait_err()
    front_end.close()
    server.close()
    assert broken_and_not(caplog) == ["queue 0 of Reverse broke", "queue 0 of Reverse works"]


def broken_and_not(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    names = (BROKE, "broke"), (WORKS, "works")
    return [f"{found['who']} {what}" for line in lines for known, what in names if (found := known.match(line))]
