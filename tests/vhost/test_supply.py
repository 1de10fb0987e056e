"""Queues whose buffers wait until the device has something to say: what it does not fill stays in the ring."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import for_each_row
from tests.vhost.both import BOTH
from tests.vhost_frontend import FEATURES, FrontEnd, Queue, R, V, split
from tests.vhost_kit import AnyDriver, Guest, finish, inflight, inflight_region, take
from userdev.errors import DeclarationError
from vhost_user.backend import Server
from vhost_user.device import Chain, Queues, VhostDevice, model_of, queue, supply
from vhost_user.rings import SplitInflight


class Teller(VhostDevice):
    """Says what it is told to say, each letter in buffers of its own, and only whole words."""

    virtio_id = 42
    queues = Queues(2, size=64)
    told = supply(0)

    def __init__(self) -> None:
        super().__init__()
        self.words: list[bytes] = []
        self.kept: list[Chain] = []
        self.keeps = False
        self.taken: list[list[int]] = []
        """Buffers by their heads, each time some were taken."""

    @queue(1)
    def hear(self, chain: Chain) -> int:
        self.words.append(chain.read())
        self.tell()
        return 0

    def on_supply(self, queue: int) -> None:
        self.tell()

    def tell(self) -> None:
        while self.words:
            word = self.words[0]
            chains: list[Chain] = []
            while len(chains) < len(word) and (chain := self.told.take()) is not None:
                chains.append(chain)
            self.taken.append([chain.head for chain in chains])
            if self.keeps:
                self.kept = chains
                return
            if len(chains) < len(word):
                self.told.leave()
                return
            for letter, chain in zip(word, chains, strict=True):
                self.told.give(chain, chain.write(bytes((letter,))))
            self.words.pop(0)


@pytest.fixture
def device() -> Teller:
    return Teller()


@pytest.fixture(params=["plain", "events"])
def front_end(request: pytest.FixtureRequest, device: Teller, tmp_path: Path) -> Iterator[FrontEnd]:
    with Server(device, f"unix:{tmp_path}/s") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(FEATURES | (V.EVENT_IDX if request.param == "events" else V(0)))
        front_end.share_memory()
        yield front_end


@pytest.fixture
def rings(front_end: FrontEnd) -> Iterator[tuple[Queue, Queue]]:
    told, heard = front_end.queue(0), front_end.queue(1)
    told.start()
    heard.start()
    yield told, heard
    told.close()
    heard.close()


def say(heard: Queue, word: bytes) -> None:
    heard.put(word)
    heard.kick()
    heard.wait_used()


def letters(told: Queue, count: int) -> bytes:
    used = told.wait_used(count)
    assert [completion.written for completion in used] == [1] * count
    return b"".join(completion.data for completion in used)


def give(told: Queue, count: int) -> None:
    for _ in range(count):
        told.put(16)


def test_buffers_wait_until_there_is_something_to_say(rings: tuple[Queue, Queue]) -> None:
    told, heard = rings
    give(told, 4)
    told.kick()
    told.connection.settle()
    assert told.take_used() == []
    say(heard, b"abc")
    assert letters(told, 3) == b"abc"
    say(heard, b"d")
    assert letters(told, 1) == b"d"


def test_what_is_to_be_said_waits_for_buffers_and_takes_none_that_are_too_few(
    rings: tuple[Queue, Queue],
) -> None:
    told, heard = rings
    give(told, 2)
    say(heard, b"abc")
    told.connection.settle()
    assert told.take_used() == []
    give(told, 1)
    assert told.notify(), "it asked for more"
    assert letters(told, 3) == b"abc"


def test_a_stop_finds_every_buffer_in_the_ring_that_was_not_filled(rings: tuple[Queue, Queue], device: Teller) -> None:
    told, heard = rings
    give(told, 3)
    say(heard, b"a")
    assert letters(told, 1) == b"a"
    device.keeps = True
    say(heard, b"bcd")
    assert told.stop(drain=False) == 1
    assert len(device.kept) == 2
    with pytest.raises(ValueError, match="does not run"):
        device.told.give(device.kept[0], 1)
    assert device.told.take() is None
    device.keeps = False
    told.start(1)
    give(told, 1)
    told.kick()
    assert letters(told, 3) == b"bcd"


def test_buffers_that_a_device_has_when_its_front_end_leaves_are_nobodys(tmp_path: Path) -> None:
    """What was taken of one front-end cannot be given to the next, and is in the ring that was left, as it was."""
    device = Teller()
    with Server(device, f"unix:{tmp_path}/s") as server:
        with FrontEnd(str(server.listener.address)) as first:
            first.negotiate()
            first.share_memory()
            told, heard = first.queue(0), first.queue(1)
            give(told, 3)
            told.start()
            heard.start()
            device.keeps = True
            say(heard, b"abc")
            assert len(device.kept) == 3
            first.stream.shutdown()
            server._serving.join(5)  # type: ignore[union-attr]
            assert told.take_used() == []
            told.close()
            heard.close()
        assert device.told.take() is None
        with pytest.raises(ValueError, match="does not run"):
            device.told.give(device.kept[0], 1)
        device.keeps = False
        with FrontEnd(str(server.listener.address)) as second:
            second.negotiate()
            second.share_memory()
            told, heard = second.queue(0), second.queue(1)
            told.start()
            with pytest.raises(ValueError, match="first"):
                device.told.give(device.kept[0], 1)
            give(told, 3)
            told.kick()
            assert letters(told, 3) == b"abc"
            told.close()
            heard.close()


def test_buffers_that_a_dead_back_end_had_taken_are_filled_in_their_order_however_often_they_were_left(
    front_end: FrontEnd, device: Teller
) -> None:
    region = front_end.ask_inflight(2)
    front_end.set_inflight(region)
    told, heard = front_end.queue(0), front_end.queue(1)
    with mmap.mmap(region.fd, region.described.mmap_size) as memory:
        left = SplitInflight(memoryview(memory), 64)
        left.recover(0, 64)
        heads = [told.put(16).head for _ in range(4)]
        for head in heads[:3]:
            left.take(head)
        del left
    told.start(0)
    heard.start(0)
    for word in (b"abcde", b"abcd"):
        say(heard, word)
    heads.append(told.put(16).head)
    told.kick()
    assert [(done.head, done.data) for done in told.wait_used(5)] == [
        (head, bytes((letter,))) for head, letter in zip(heads, b"abcde", strict=True)
    ]
    assert len(device.taken) > 2
    for taken in device.taken:
        assert taken == heads[: len(taken)]
    told.close()
    heard.close()


def test_what_was_said_is_there_when_the_ring_stops_at_once(rings: tuple[Queue, Queue], device: Teller) -> None:
    told, _ = rings
    give(told, 2)

    def speak_and_leave() -> None:
        device.words.append(b"x")
        device.tell()

    for _ in range(20):
        model_of(device).call_soon(speak_and_leave)
        base = told.stop(drain=False)
        assert base == split(told).used_index
        give(told, 1)
        told.start(base)


def test_a_wrong_buffer_breaks_its_own_ring_and_not_that_of_the_request(
    rings: tuple[Queue, Queue], device: Teller
) -> None:
    told, heard = rings
    split(told).describe(0, 1 << 40, 16, 2, 0)
    split(told).offer(0)
    say(heard, b"a")
    assert told.wait_err()
    say(heard, b"b")
    assert not heard.wait_err(0)
    assert device.words == [b"a", b"b"]


def test_what_was_said_before_a_wrong_buffer_is_heard(rings: tuple[Queue, Queue], device: Teller) -> None:
    """The word that found the wrong one has nothing said of it, and its first buffer is still in the ring."""
    told, heard = rings
    wrong = split(told)._free.pop()
    split(told).describe(wrong, 1 << 40, 4, 2, 0)
    give(told, 3)
    split(told).offer(wrong)
    device.words = [b"ab"]
    say(heard, b"cd")
    assert told.wait_err()
    assert letters(told, 2) == b"ab"
    assert device.words == [b"cd"]
    assert told.stop(drain=False) == 2


def test_buffers_are_given_back_in_the_order_in_which_they_were_taken(
    rings: tuple[Queue, Queue], device: Teller
) -> None:
    told, heard = rings
    give(told, 2)
    device.keeps = True
    say(heard, b"ab")
    with pytest.raises(ValueError, match="first of 2"):
        device.told.give(device.kept[1], 1)
    device.kept = []
    told.connection.do(R.SET_VRING_ENABLE, (0, 0))
    assert told.stop(drain=False) == 0


@for_each_row(
    [
        ("told = supply(1)", "Bad: .* told takes queue 1, and there are 1"),
        ("told = supply(0)\n    other = supply(0)", "other takes queue 0, and told does so too"),
        ("told = supply(-1)", "told makes no sense: a queue has a number"),
        ("told = supply(0)\n    @queue(0)\n    def f(self, chain): return 0", "told takes queue 0, and f does so too"),
    ]
)
def test_a_queue_that_two_take_is_refused(body: str, says: str) -> None:
    source = f"class Bad(VhostDevice):\n    virtio_id = 4\n    queues = Queues(1)\n    {body}\n"
    with pytest.raises(DeclarationError, match=says.replace("Bad: .* ", "")):
        exec(source, {"__name__": "author", **globals()})


@BOTH
@pytest.mark.parametrize("start", [0, 6])
def test_a_request_that_is_left_is_taken_again(kind: type[AnyDriver], start: int) -> None:
    with Guest() as guest:
        driver = kind(guest, 8, start=start)
        ring = driver.ring(inflight=inflight(memoryview(inflight_region(driver)), driver))
        before = ring.base
        for _ in range(3):
            driver.request()
        chains = [take(ring) for _ in range(3)]
        heads = [chain.head for chain in chains]
        for chain in reversed(chains):
            ring.unpop(chain)
        assert ring.base == before
        assert ring.outstanding == 0
        again = [take(ring) for _ in range(3)]
        assert [chain.head for chain in again] == heads
        for chain in again:
            finish(ring, chain)
        assert driver.collect() == [1, 2, 3]
