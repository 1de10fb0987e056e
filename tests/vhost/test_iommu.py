"""A back-end behind an IOMMU: what it does not know it asks for, and goes on meanwhile."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.cases import for_each
from tests.vhost.both import BOTH
from tests.vhost.channel import PATIENCE, Channel
from tests.vhost.reverse import Reverse
from tests.vhost_frontend import FEATURES, MEMORY, PROTOCOL, USER, FrontEnd, P, Queue, R, V
from tests.vhost_kit import WRITE, AnyDriver, Guest
from vhost_user.backend import Server, misses
from vhost_user.frontend.memory import GuestMemory
from vhost_user.rings import RingAddresses
from vhost_user.wire import BackEndRequest
from vhost_user.wire.payloads import VRING_F_LOG, IotlbMessage, IotlbType, Region, VringAddress, VringState

SHIFT = 1 << 40
"""Between the guest's addresses and those of its devices."""
PAGE = 0x1000


def update(iova: int, user: int, size: int = PAGE, permissions: int = 3) -> IotlbMessage:
    return IotlbMessage(iova, size, user, permissions, IotlbType.UPDATE)


@pytest.fixture
def behind(stranger: FrontEnd) -> FrontEnd:
    """One whose devices are behind an IOMMU."""
    stranger.negotiate(FEATURES | V.ACCESS_PLATFORM, PROTOCOL | P.BACKEND_REQ)
    assert V.ACCESS_PLATFORM in stranger.negotiated.features
    stranger.share_memory()
    return stranger


@pytest.fixture
def channel(behind: FrontEnd) -> Iterator[Channel]:
    with Channel(behind) as channel:
        yield channel


def know(front_end: FrontEnd, message: IotlbMessage) -> int:
    """Tell the back-end; the errno of its answer."""
    error: int = front_end.ask(R.IOTLB_MSG, message)
    return error


def know_rings(front_end: FrontEnd) -> None:
    """Of rings the I/O addresses are this front-end's own ones, of buffers they are the guest's."""
    assert know(front_end, update(USER, USER, MEMORY)) == 0


def miss(channel: Channel) -> IotlbMessage:
    """The next translation that is missing."""
    request, wanted, message = channel.receive()
    assert request is BackEndRequest.IOTLB_MSG
    assert message.needs_reply
    assert isinstance(wanted, IotlbMessage)
    assert (wanted.type, wanted.size, wanted.user_address) == (IotlbType.MISS, 0, 0)
    return wanted


def answer_miss(front_end: FrontEnd, channel: Channel) -> int:
    """As QEMU does: the update on the connection, then the acknowledgement; the page that it was."""
    page = miss(channel).iova & -PAGE
    assert know(front_end, update(page, page if page >= USER else USER + page)) == 0
    channel.answer(BackEndRequest.IOTLB_MSG)
    return page


def answer_until_done(front_end: FrontEnd, channel: Channel, ring: Queue) -> set[int]:
    """Answer all that is asked for until a request comes back; the pages that it were."""
    asked: set[int] = set()
    while not ring.take_used():
        told = channel.stream.fileno()
        ready, _, _ = select.select([told, ring.call_fd], [], [], PATIENCE)
        assert ready
        if told in ready:
            asked.add(answer_miss(front_end, channel))
        if ring.call_fd in ready:
            os.eventfd_read(ring.call_fd)
    return asked


def pages(ring: Queue) -> set[int]:
    """Where devices have a ring."""
    return {address & -PAGE for address in ring.addresses[2:5]}


@pytest.fixture
def ring(behind: FrontEnd, channel: Channel) -> Queue:
    """A queue that runs, of whose buffers nothing is known."""
    know_rings(behind)
    ring = behind.queue()
    ring.start()
    return ring


# -- what is missing is asked for


@BOTH
def test_ring_and_buffers_are_asked_for_page_by_page(
    stranger: FrontEnd, guest: Guest, kind: type[AnyDriver], device: Reverse
) -> None:
    stranger.negotiate(FEATURES | V.ACCESS_PLATFORM | V.RING_PACKED * kind.packed, PROTOCOL | P.BACKEND_REQ)
    stranger.do(R.ADD_MEM_REG, Region(0, guest.size, USER, 0), [guest.fd])
    driver = kind(guest)
    call = os.eventfd(0, os.EFD_CLOEXEC)
    kick = os.eventfd(0, os.EFD_CLOEXEC)
    driver.brk = 0x4FFE  # over a page's border
    at, size = driver.buffer(b"hello")
    into, room = driver.buffer(5)
    driver.given[driver.put([(SHIFT + at, size, 0), (SHIFT + into, room, WRITE)])] = (1, [(into, room)])
    addresses = RingAddresses(*(address - USER + SHIFT for address in kind.addresses))
    with Channel(stranger) as channel:
        stranger.do(R.SET_VRING_CALL, 0, [call])
        stranger.do(R.SET_VRING_NUM, VringState(0, driver.size))
        stranger.do(R.SET_VRING_ADDR, VringAddress(0, 0, addresses.descriptor, addresses.used, addresses.available, 0))
        stranger.do(R.SET_VRING_KICK, 0, [kick])
        stranger.do(R.SET_VRING_ENABLE, VringState(0, 1))
        asked = []
        while (page := (miss(channel).iova - SHIFT) & -PAGE) != 0x5000:
            assert device.events in (["attach"], ["attach", "start 0"])
            asked.append(page)
            stranger.settle()  # the session goes on
            assert know(stranger, update(SHIFT + page, USER + page)) == 0
            channel.answer(BackEndRequest.IOTLB_MSG)
        assert know(stranger, update(SHIFT + page, USER + page)) == 0
        channel.answer(BackEndRequest.IOTLB_MSG)
        os.eventfd_read(call)
        stranger.settle()
        assert driver.collect() == [1]
        assert driver.data[1] == b"olleh"
        assert asked == [0, 0x1000, 0x4000]
        assert channel.is_silent()
    os.close(call)
    os.close(kick)


def test_a_request_on_many_pages_asks_for_each_of_them(behind: FrontEnd, channel: Channel, ring: Queue) -> None:
    """More than may be asked for one address in vain."""
    pieces = [bytes((number,)) * PAGE for number in range(misses.MAX_TRIES + 4)]
    behind.memory.allocate(1)
    ring.put(*pieces, PAGE)
    ring.kick()
    asked = answer_until_done(behind, channel, ring)
    assert len(asked - pages(ring)) >= len(pieces)


def test_a_ring_that_waits_keeps_no_other_and_no_message(
    behind: FrontEnd, channel: Channel, ring: Queue, device: Reverse
) -> None:
    other = behind.queue(1)
    other.start()
    end = ring.put(b"ab", 2).places[1] + 2
    known = -(-end // PAGE) * PAGE
    behind.memory.allocate(known - end, align=1, at=end)  # what comes next is in another page, which is known
    assert know(behind, update(known, USER + known, MEMORY // 2)) == 0
    ring.kick()
    wanted = miss(channel)
    assert other.exchange(b"cd", 2).data == b"dc"
    for _ in range(5):
        ring.kick()
        behind.settle()
    assert channel.is_silent()  # what is asked for and not answered is not asked for again
    assert know(behind, update(wanted.iova & -PAGE, USER + wanted.iova & -PAGE)) == 0
    assert len(ring.wait_used()) == 1


def test_a_translation_that_allows_less_is_asked_for_again_with_what_is_needed(
    behind: FrontEnd, channel: Channel, ring: Queue
) -> None:
    ring.put(b"ab", 2)
    ring.kick()
    page = miss(channel).iova & -PAGE
    assert know(behind, update(page, USER + page, permissions=1)) == 0
    channel.answer(BackEndRequest.IOTLB_MSG)
    assert miss(channel).permissions == 2
    assert know(behind, update(page, USER + page)) == 0
    channel.answer(BackEndRequest.IOTLB_MSG)
    assert len(ring.wait_used()) == 1


def test_what_a_front_end_says_by_itself_need_not_be_asked_for(behind: FrontEnd) -> None:
    """Without a channel there is no other way, and a ring that waits goes on by it."""
    know_rings(behind)
    ring = behind.queue()
    ring.start()
    ring.put(b"ab", 2)
    ring.kick()
    behind.settle()
    assert know(behind, update(0, USER, MEMORY)) == 0
    assert len(ring.wait_used()) == 1


# -- what is taken back


@pytest.mark.parametrize("size", [PAGE, 0], ids=["a page", "everything"])
def test_what_is_taken_back_is_not_used_any_more(behind: FrontEnd, channel: Channel, ring: Queue, size: int) -> None:
    """The size of all addresses does not fit into 64 bits, and is 0."""
    ring.put(b"ab", 2)
    ring.kick()
    page = answer_miss(behind, channel)
    assert len(ring.wait_used()) == 1
    assert know(behind, IotlbMessage(page if size else 0, size, 0, 0, IotlbType.INVALIDATE)) == 0
    if not size:
        know_rings(behind)
    moved = 0xC0000 - page  # what the guest has at another place now
    read_from, written_to = ring.put(b"cd", 2).places
    before = behind.memory[written_to : written_to + 2]
    behind.memory[read_from + moved : read_from + moved + 2] = b"ef"
    ring.kick()
    assert miss(channel).iova & -PAGE == page
    assert know(behind, update(page, USER + page + moved)) == 0
    channel.answer(BackEndRequest.IOTLB_MSG)
    assert len(ring.wait_used()) == 1
    assert behind.memory[written_to + moved : written_to + moved + 2] == b"fe"
    assert behind.memory[written_to : written_to + 2] == before


def test_a_ring_whose_own_memory_is_taken_back_asks_for_that(behind: FrontEnd, channel: Channel, ring: Queue) -> None:
    assert know(behind, update(0, USER, MEMORY)) == 0
    assert ring.exchange(b"ab", 2).data == b"ba"
    assert know(behind, IotlbMessage(USER, 1 << 62, 0, 0, IotlbType.INVALIDATE)) == 0
    ring.put(b"cd", 2)
    ring.kick()
    assert answer_until_done(behind, channel, ring) == pages(ring)


def test_translations_to_memory_that_was_there_are_not_for_what_is_there_now(server: Server) -> None:
    with FrontEnd(str(server.listener.address), memory=GuestMemory(MEMORY, regions=2)) as behind:
        behind.negotiate(FEATURES | V.ACCESS_PLATFORM, PROTOCOL | P.BACKEND_REQ | P.CONFIGURE_MEM_SLOTS)
        behind.share_memory()
        with Channel(behind) as channel:
            know_rings(behind)
            ring = behind.queue()
            ring.start()
            upper = behind.memory.regions[1]
            behind.memory.allocate(upper.guest_address - (1 << 20), at=1 << 20)

            def again_by_slot() -> None:
                behind.do(R.REM_MEM_REG, upper)
                behind.do(R.ADD_MEM_REG, upper, [behind.memory.fd])

            def again_by_table() -> None:
                behind.do(R.SET_MEM_TABLE, behind.memory.regions, [behind.memory.fd] * 2)

            def asks() -> bool:
                ring.put(b"ab" * (1 << 19), 2)
                ring.kick()
                return any(page >= upper.guest_address for page in answer_until_done(behind, channel, ring))

            assert [asks(), asks()] == [True, False]
            for change in (again_by_slot, again_by_table):
                change()
                assert [asks(), asks()] == [True, False], change.__name__


def test_a_device_that_was_stopped_asks_anew(behind: FrontEnd, channel: Channel, ring: Queue) -> None:
    """QEMU says nothing of what is taken back while a device is stopped."""
    assert know(behind, update(0, USER, MEMORY)) == 0
    ring.exchange(b"ab", 2)
    base = ring.stop()
    place = ring.put(b"cd", 2).places[0]
    ring.start(base)
    assert answer_until_done(behind, channel, ring) == {*pages(ring), place & -PAGE}


@pytest.mark.parametrize("started", [True, False])
def test_a_second_owner_has_no_translation_of_the_first(behind: FrontEnd, channel: Channel, started: bool) -> None:
    """Neither of a ring that ran nor of one that was not begun."""
    assert know(behind, update(0, USER, MEMORY)) == 0
    know_rings(behind)
    if started:
        behind.queue().start()
    behind.send(R.SET_OWNER)
    behind.negotiate(FEATURES | V.ACCESS_PLATFORM, PROTOCOL | P.BACKEND_REQ)
    behind.share_memory()
    with Channel(behind) as other:
        ring = behind.queue(at=0x40000)
        place = ring.put(b"cd", 2).places[0]
        ring.start()
        assert answer_until_done(behind, other, ring) == {*pages(ring), place & -PAGE}


def test_whatever_takes_translations_back_waits_for_requests_that_may_use_them(
    behind: FrontEnd, channel: Channel, ring: Queue, device: Reverse
) -> None:
    """They wait beside the session; when it is answered none of them is there."""
    regions, fd = behind.memory.regions, behind.memory.fd
    ways: dict[str, Callable[[], int]] = {
        "an invalidation": lambda: know(behind, IotlbMessage(0, MEMORY, 0, 0, IotlbType.INVALIDATE)),
        "another table": lambda: behind.tell(R.SET_MEM_TABLE, regions, [fd] * len(regions)),
    }
    for name, way in ways.items():
        know_rings(behind)
        assert know(behind, update(0, USER, MEMORY)) == 0
        device.go_on.clear()
        ring.put(b"wait", 4)
        ring.kick()
        behind.settle()
        threading.Timer(0.05, device.go_on.set).start()
        assert way() == 0
        assert [completion.data for completion in ring.take_used()] == [b"tiaw"], name


def test_what_is_taken_back_answers_no_question(behind: FrontEnd, channel: Channel, ring: Queue) -> None:
    """However often: a front-end may take back what is asked for, and is not asked anew for that."""
    ring.put(b"ab", 2)
    ring.kick()
    page = miss(channel).iova & -PAGE
    for _ in range(misses.MAX_TRIES + 1):
        assert know(behind, IotlbMessage(page, PAGE, 0, 0, IotlbType.INVALIDATE)) == 0
    behind.settle()
    assert channel.is_silent()
    assert know(behind, update(page, USER + page)) == 0
    assert len(ring.wait_used()) == 1


def test_a_stop_of_a_ring_that_never_ran_takes_nothing_back(behind: FrontEnd, channel: Channel) -> None:
    know_rings(behind)
    assert know(behind, update(0, USER, MEMORY)) == 0
    ring = behind.queue()
    assert ring.stop() == 0
    ring.start()
    assert ring.exchange(b"ab", 2).data == b"ba"
    assert channel.is_silent()


# -- front-ends that answer wrong, or not


def test_a_front_end_that_never_answers_has_a_bound(
    behind: FrontEnd, channel: Channel, ring: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(misses, "MISS_SECONDS", 0.05)
    ring.put(b"ab", 2)
    ring.kick()
    miss(channel)
    assert ring.wait_err(3)
    behind.settle()


def test_a_front_end_that_has_no_translation_breaks_the_ring(
    behind: FrontEnd, channel: Channel, ring: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    ring.put(b"ab", 2)
    ring.kick()
    wanted = miss(channel)
    channel.answer(BackEndRequest.IOTLB_MSG, 1)
    assert ring.wait_err()
    behind.settle()
    assert f"{wanted.iova:#x}" in caplog.text


def test_a_front_end_that_answers_without_a_translation_is_asked_so_many_times(
    behind: FrontEnd, channel: Channel, ring: Queue
) -> None:
    ring.put(b"ab", 2)
    ring.kick()
    for _ in range(misses.MAX_TRIES):
        miss(channel)
        channel.answer(BackEndRequest.IOTLB_MSG)
    assert ring.wait_err()
    behind.settle()
    assert channel.is_silent()


def test_a_ring_that_waits_can_be_stopped_and_has_lost_nothing(behind: FrontEnd, channel: Channel, ring: Queue) -> None:
    ring.put(b"ab", 2)
    ring.kick()
    miss(channel)
    assert ring.stop(drain=False) == 0
    assert know(behind, update(0, USER, MEMORY)) == 0
    know_rings(behind)
    ring.start(0)
    assert len(ring.wait_used()) == 1


def test_what_was_asked_for_on_a_channel_that_has_gone_is_asked_for_on_the_next(
    behind: FrontEnd, channel: Channel, ring: Queue
) -> None:
    ring.put(b"ab", 2)
    ring.kick()
    miss(channel)
    channel.close()
    with Channel(behind) as other:
        answer_miss(behind, other)
        assert len(ring.wait_used()) == 1


@pytest.mark.parametrize("said", [b"\xff" * 12, b"\1\0\0\0\1\0\0\0\0\0\0\0", b"\2\0\0\0\5\0\0\0\10\0\0\0" + bytes(8)])
def test_a_front_end_that_says_something_else_there_loses_its_channel(
    behind: FrontEnd, channel: Channel, ring: Queue, said: bytes
) -> None:
    channel.stream.send(said)
    with pytest.raises((EOFError, ConnectionError)):
        channel.receive()
    assert know(behind, update(0, USER, MEMORY)) == 0
    assert ring.exchange(b"ab", 2).data == b"ba"


def test_the_front_ends_own_end_is_no_channel(stranger: FrontEnd) -> None:
    """Who keeps it never sees that the front-end has gone, and nobody else is served."""
    stranger.negotiate(protocol=PROTOCOL | P.BACKEND_REQ)
    assert stranger.tell(R.SET_BACKEND_REQ_FD, None, [stranger.stream.fileno()]) == errno.EINVAL
    stranger.settle()


@for_each(
    [
        update(0, USER + MEMORY),
        update(0, USER, MEMORY + 1),
        update(0, USER, 0),
        update(1 << 63, USER, 1 << 63 | 1),
        update(0, USER, permissions=0),
        update(0, USER, permissions=4),
        IotlbMessage(0, PAGE, USER, 3, IotlbType.MISS),
        IotlbMessage(0, PAGE, USER, 3, 77),
    ]
)
def test_a_translation_that_cannot_be_is_refused_in_an_answer(wrong: IotlbMessage, behind: FrontEnd) -> None:
    assert know(behind, wrong)
    behind.settle()


def test_translations_are_no_message_without_an_iommu(front_end: FrontEnd) -> None:
    assert know(front_end, update(0, USER))
    front_end.settle()


# -- the dirty log


def test_the_log_is_of_the_guests_memory(behind: FrontEnd, channel: Channel) -> None:
    """QEMU gives the used ring's I/O address for the log as well; the kernel's vhost and DPDK translate it."""
    behind.send(R.SET_FEATURES, int(behind.negotiated.features | V.LOG_ALL))
    log = behind.share_log()
    ring = behind.queue(at=0x80000)
    descriptor, used, available = (SHIFT + address for address in ring.driver.addresses)
    said = VringAddress(0, VRING_F_LOG, descriptor, used, available, used)
    behind.do(R.SET_VRING_CALL, 0, [ring.call_fd])
    behind.do(R.SET_VRING_NUM, VringState(0, ring.size))
    behind.do(R.SET_VRING_ADDR, said)
    assert know(behind, update(SHIFT + 0x80000, USER + 0x80000, 0x10000)) == 0
    assert know(behind, update(0, USER, MEMORY // 2)) == 0
    behind.do(R.SET_VRING_KICK, 0, [ring.kick_fd])
    ring.enable()
    written_to = ring.put(b"ab", 2).places[1]
    ring.kick()
    while not ring.take_used():
        assert ring.wait_call(3)
    assert {page >> 3 for page in log.pages()} == {written_to >> 15, ring.driver.addresses.used >> 15}


def test_a_log_that_begins_while_a_ring_runs_waits_for_no_translation(
    behind: FrontEnd, channel: Channel, ring: Queue
) -> None:
    """The message is answered at once; it is the ring that asks, before it goes on."""
    assert know(behind, update(0, USER, MEMORY)) == 0
    ring.exchange(b"ab", 2)
    assert know(behind, IotlbMessage(USER, 1 << 62, 0, 0, IotlbType.INVALIDATE)) == 0
    behind.do(R.SET_VRING_ADDR, ring.addresses._replace(flags=VRING_F_LOG, log=ring.addresses.used))
    assert channel.is_silent()
    ring.put(b"cd", 2)
    ring.kick()
    assert answer_until_done(behind, channel, ring) == pages(ring)
