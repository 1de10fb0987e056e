"""Each act of a scenario does to a message what it says, and nothing to the others."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from tests.descriptors import fd_count
from tests.interposer_bench import Bench, BulkWrites, Peer, answer, dma_map, kept_back, read, request, write
from userdev.interposer.faults.engine import FaultPlan
from userdev.relay.direction import Direction
from userdev.transport import close_all
from vfio_user.interposer.faults.engine import FaultEngine
from vfio_user.interposer.faults.scenario import Scenario
from vfio_user.interposer.faults.stage import Faults
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at

SECOND = {"nth": 2}


class Faulty(Bench):
    """A bench whose session suffers one rule."""

    def __init__(self, act: Any, *, seed: int = 0, trace: Any = None, **match: Any) -> None:
        super().__init__(trace=trace)
        self.signals: list[int] = []
        match.setdefault("direction", "to-server")
        scenario = Scenario.model_validate({"seed": seed, "rules": [{"match": match, "act": act}]})
        self.faults = Faults(self.session, scenario, self.signalled)

    def signalled(self, number: int) -> int:
        self.signals.append(number)
        return 1


def three_writes(bench: Bench) -> None:
    for id in (1, 2, 3):
        bench.client.send(write(0, id, bytes([id]) * 4, id=id, posted=True))


def ids(peer: Peer, count: int) -> list[int]:
    return [peer.receive().id for _ in range(count)]


ADDING: list[tuple[Any, Callable[[FaultPlan[Message]], object], object]] = [
    ({"delay": 0.25}, lambda plan: plan.delay, 0.5),
    ({"duplicate": 2}, lambda plan: plan.copies, 5),
    ({"extra-fd": 3}, lambda plan: plan.extra_fds, 6),
    ({"close": {"side": "server"}}, lambda plan: len(plan.closes), 2),
    ({"signal": "SIGTERM"}, lambda plan: len(plan.signals), 2),
]


@for_each_row([(*row, rules) for row in ADDING for rules in [1, 2]])
def test_what_is_done_twice_to_a_message_adds_up(
    act: Any, of: Callable[[FaultPlan[Message]], object], twice: object, rules: int
) -> None:
    """Whether one rule has both acts, or two rules have one each."""
    match = {"direction": "to-server"}
    acts = [{"match": match, "act": [act, act]}] if rules == 1 else [{"match": match, "act": act}] * 2
    plan = FaultEngine(Scenario.model_validate({"rules": acts}), CURRENT).plan(
        Direction.TO_SERVER, read(0, 0), "running", 0.0
    )
    assert plan is not None
    assert of(plan) == twice
    assert len(plan.rules) == rules


@for_each_row(
    [
        ([{"missing-fd": {"index": 0}}, {"missing-fd": {"index": 2}}], [1]),
        ([{"missing-fd": {"index": 1}}, {"missing-fd": {"index": 1}}], [0, 2]),
        ([{"missing-fd": {"index": 1}}, "missing-fd"], []),
        (["missing-fd", {"missing-fd": {"index": 1}}], []),
    ]
)
def test_descriptors_that_several_rules_take_away_are_all_gone(acts: list[Any], left: list[int]) -> None:
    rules = [{"match": {"direction": "to-server"}, "act": act} for act in acts]
    engine = FaultEngine(Scenario.model_validate({"rules": rules}), CURRENT)
    message = replace(read(0, 0), fds=[7, 8, 9])
    plan = engine.plan(Direction.TO_SERVER, message, "running", 0.0)
    assert plan is not None
    assert plan.keep_fds == left


def test_without_a_match_everything_goes_on_unchanged() -> None:
    with Faulty("drop", region="BAR5") as bench:
        three_writes(bench)
        assert [bench.server.receive() for _ in range(3)][2] == write(0, 3, b"\3\3\3\3", id=3, posted=True)


def test_drop() -> None:
    with Faulty("drop", **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 2) == [1, 3]
        assert bench.server.is_silent()


def test_delay_holds_up_those_behind_it() -> None:
    with Faulty({"delay": 0.05}, **SECOND) as bench:
        began = time.monotonic()
        three_writes(bench)
        assert ids(bench.server, 3) == [1, 2, 3]
        assert time.monotonic() - began >= 0.05


def test_the_jitter_of_a_delay_is_by_chance_of_the_scenarios_seed_and_has_its_bounds() -> None:
    def delays(seed: int) -> list[float]:
        rule = {"match": {"direction": "to-server"}, "act": {"delay": {"seconds": 1, "jitter": 0.5}}}
        engine = FaultEngine(Scenario.model_validate({"seed": seed, "rules": [rule]}), CURRENT)
        plans = [engine.plan(Direction.TO_SERVER, read(0, 0), "running", 0.0) for _ in range(50)]
        return [plan.delay for plan in plans if plan is not None]

    drawn = delays(7)
    assert len({*drawn}) == 50
    assert 1 <= min(drawn) < 1.1 < 1.4 < max(drawn) <= 1.5
    assert drawn == delays(7) != delays(8)


def test_delay_that_lets_others_overtake() -> None:
    with Faulty({"delay": {"seconds": 0.03, "overtake": True}}, **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 3) == [1, 3, 2]


def test_duplicate() -> None:
    with Faulty({"duplicate": 2}, **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 5) == [1, 2, 2, 2, 3]


def test_a_duplicated_request_is_paired_twice() -> None:
    with Faulty("duplicate") as bench:
        bench.client.send(read(0, 0))
        for _ in range(2):
            bench.server.send(answer(bench.server.receive(), b"data"))
        assert bench.client.receive() == bench.client.receive() == answer(read(0, 0), b"data")


def test_reorder() -> None:
    with Faulty("reorder", nth=1) as bench:
        three_writes(bench)
        assert ids(bench.server, 3) == [2, 1, 3]


def test_a_reordered_message_that_nothing_follows_is_sent_in_the_end() -> None:
    with Faulty({"reorder": {"after": 5, "within": 0.02}}, nth=1) as bench:
        three_writes(bench)
        assert ids(bench.server, 3) == [2, 3, 1]


@for_each_row(
    [
        ({"field": "length", "value": 9}, at.REGION_ACCESS.pack(0x10, 0, 9)),
        ({"field": "offset", "xor": 0x1000}, at.REGION_ACCESS.pack(0x1010, 0, 4)),
        ({"field": "region", "value": "0x7"}, at.REGION_ACCESS.pack(0x10, 7, 4)),
        ({"at": 16, "bytes": "ff00ff"}, b"\xff\0\xff" + at.REGION_ACCESS.pack(0x10, 0, 4)[3:]),
        ({"field": "payload.length", "value": 9}, at.REGION_ACCESS.pack(0x10, 0, 9)),
        ({"field": "nr_vectors", "value": 1}, at.REGION_ACCESS.pack(0x10, 0, 4)),
        ({"at": 4000, "bytes": "ff"}, at.REGION_ACCESS.pack(0x10, 0, 4)),
    ]
)
def test_corrupt(act: dict[str, Any], expected: bytes) -> None:
    with Faulty({"corrupt": act}) as bench:
        bench.client.send(read(0, 0x10))
        assert bench.server.receive().payload == expected


@for_each_row([("flags", 4), ("size", 24), ("offset", 8), ("addr", 16)])
def test_corrupt_a_field_of_the_payload_that_the_header_has_too(field: str, place: int) -> None:
    with Faulty({"corrupt": {"field": f"payload.{field}", "xor": 0xFF}}, command="DMA_MAP") as bench:
        bench.client.send(dma_map(0x5000, 0x1000))
        expected = bytearray(dma_map(0x5000, 0x1000).payload)
        expected[place] ^= 0xFF
        assert bench.server.receive().payload == expected


def test_corrupt_a_field_of_a_features_structure() -> None:
    feature = at.FEATURE.pack(16, 0x20002) + at.DEVICE_STATE.pack(3, 0)
    with Faulty({"corrupt": {"field": "state", "value": 6}}, command="DEVICE_FEATURE") as bench:
        bench.client.send(request(Command.DEVICE_FEATURE, feature))
        assert bench.server.receive().payload == at.FEATURE.pack(16, 0x20002) + at.DEVICE_STATE.pack(6, 0)


def test_corrupt_the_data_of_a_reply() -> None:
    with Faulty({"corrupt": {"field": "data", "xor": 0xFF}}, direction="to-client", command="REGION_READ") as bench:
        bench.client.send(read(0, 0x10))
        bench.server.send(answer(bench.server.receive(), b"\0\1\2\3"))
        assert bench.client.receive().payload[16:] == b"\xff\1\2\3"


def test_truncate() -> None:
    with Faulty({"truncate": 20}) as bench:
        bench.client.send(read(0, 0x10))
        assert bench.server.receive() == Message(7, 9, payload=read(0, 0x10).payload[:4])


def test_truncate_and_keep_the_size() -> None:
    with Faulty({"truncate": {"to": 20, "size": "keep"}}) as bench:
        bench.client.send(read(0, 0x10))
        assert bench.server.receive_bytes(20) == read(0, 0x10).encode()[:20]
        assert bench.server.is_silent()


def test_wrong_id() -> None:
    with Faulty({"wrong-id": 99}) as bench:
        bench.client.send(read(0, 0))
        assert bench.server.receive().id == 99
    with Faulty("wrong-id") as bench:
        bench.client.send(read(0, 0, id=5))
        assert bench.server.receive().id != 5


@for_each_row([({"wrong-size": 4000}, 4000), ({"wrong-size": {"by": -5}}, 27)])
def test_wrong_size(act: dict[str, Any], size: int) -> None:
    with Faulty(act) as bench:
        bench.client.send(read(0, 0))
        sent = bench.server.receive_bytes(32)
        assert int.from_bytes(sent[4:8], "little") == size
        assert sent[:4] + sent[8:] == read(0, 0).encode()[:4] + read(0, 0).encode()[8:]


def test_extra_and_missing_descriptors() -> None:
    memory = os.memfd_create("guest")
    for act, count in (("extra-fd", 2), ({"extra-fd": 3}, 4), ("missing-fd", 0), ({"missing-fd": 0}, 0)):
        with Faulty(act) as bench:
            bench.client.send(dma_map(0, 4096, memory))
            arrived = bench.server.receive()
            assert len(arrived.fds) == count
            close_all(arrived.fds)
    os.close(memory)


def test_reply_with_errno() -> None:
    with Faulty({"reply": "EIO"}, **SECOND) as bench:
        for id in (1, 2):
            bench.client.send(read(0, 0, id=id))
        reply = bench.client.receive()
        assert (reply.id, reply.errno, reply.failed) == (2, 5, True)
        assert bench.server.receive().id == 1
        assert bench.server.is_silent()


def test_stall_after_the_header() -> None:
    with Faulty("stall-after-header", **SECOND) as bench:
        three_writes(bench)
        assert bench.server.receive().id == 1
        assert bench.server.receive_bytes(16) == write(0, 2, bytes(4), id=2, posted=True).encode()[:16]
        assert bench.server.is_silent()


def test_stall_after_the_header_for_a_while() -> None:
    with Faulty({"stall-after-header": 0.03}, **SECOND) as bench:
        began = time.monotonic()
        three_writes(bench)
        assert ids(bench.server, 3) == [1, 2, 3]
        assert time.monotonic() - began >= 0.03


def test_split_header() -> None:
    with Faulty({"split-header": {"at": 5, "seconds": 0.03}}) as bench:
        bench.client.send(read(0, 0))
        assert bench.server.receive_bytes(5) == read(0, 0).encode()[:5]
        assert bench.server.receive_bytes(27) == read(0, 0).encode()[5:]
        bench.server.send(answer(read(0, 0), b"data"))
        assert bench.client.receive() == answer(read(0, 0), b"data")


def test_pieces_wait_behind_what_the_server_has_not_taken() -> None:
    with Faulty([{"delay": 0.05}, {"split-header": {"seconds": 0}}]) as bench:
        sending = BulkWrites(bench.client.socket, [1 << 20, 4])
        while sending.go_on():
            bench.settle()
        assert ids(bench.server, 2) == [0, 1]
        assert bench.server.is_silent()


@for_each_row([("client", "server"), ("server", "client"), ("both", "server")])
def test_close(side: str, left: str) -> None:
    with Faulty({"close": side}) as bench:
        bench.client.send(read(0, 0))
        other: Peer = getattr(bench, left)
        bench.until(lambda: bench.ended or None)
        received = other.socket.recv(1000)
        assert received in (b"", read(0, 0).encode())


def test_half_close() -> None:
    """We write no more to the client, as if the server had shut down its side; the client may still write."""
    with Faulty({"close": {"side": "client", "how": "write"}}) as bench:
        bench.client.send(read(0, 0, id=1))
        assert bench.client.at_end()
        assert bench.server.receive().id == 1
        bench.client.send(read(0, 0, id=2))
        assert bench.server.receive().id == 2


def test_signals_go_to_the_server() -> None:
    with Faulty({"signal": {"signal": "SIGSTOP", "seconds": 0.01}}, nth=1) as bench:
        bench.client.send(read(0, 0))
        bench.server.receive()
        bench.until(lambda: len(bench.signals) == 2 or None)
        assert bench.signals == [signal.SIGSTOP, signal.SIGCONT]


def test_a_server_that_was_stopped_for_a_while_goes_on_though_its_session_has_ended() -> None:
    with Faulty({"signal": {"signal": "SIGSTOP", "seconds": 0.02}}, **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 3) == [1, 2, 3]
        bench.session.close()
        assert bench.signals == [signal.SIGSTOP]
        bench.until(lambda: len(bench.signals) == 2 or None)
        assert bench.signals == [signal.SIGSTOP, signal.SIGCONT]


def test_several_acts_add_up() -> None:
    with Faulty([{"corrupt": {"field": "region", "value": 1}}, "duplicate", {"delay": 0.01}]) as bench:
        bench.client.send(read(0, 4))
        assert [bench.server.receive().payload for _ in range(2)] == [at.REGION_ACCESS.pack(4, 1, 4)] * 2


def test_a_fault_that_is_taken_away_lets_everything_go() -> None:
    with Faulty({"delay": 60}) as bench:
        three_writes(bench)
        assert bench.server.is_silent()
        bench.faults.remove()
        assert ids(bench.server, 3) == [1, 2, 3]
        three_writes(bench)
        assert ids(bench.server, 3) == [1, 2, 3]


@for_each([{"split-header": {"seconds": 60}}, {"stall-after-header": 60}], ids=str)
def test_a_message_that_is_out_in_part_when_its_fault_is_taken_away_comes_whole(act: Any) -> None:
    """What came behind it would be taken for its rest."""
    with Faulty(act, **SECOND) as bench:
        bench.client.send(write(0, 1, b"1234", id=1, posted=True))
        bench.client.send(read(0, 2, id=2))
        bench.client.send(write(0, 3, b"5678", id=3, posted=True))
        bench.settle()
        bench.faults.remove()
        assert [bench.server.receive() for _ in range(3)][1] == read(0, 2, id=2)
        bench.server.send(answer(read(0, 2, id=2), b"data"))
        assert bench.client.receive() == answer(read(0, 2, id=2), b"data")
        three_writes(bench)
        assert ids(bench.server, 3) == [1, 2, 3]


def test_behind_half_a_message_that_nothing_is_to_follow_nothing_does_when_its_fault_is_taken_away() -> None:
    memory = os.memfd_create("guest")
    before = fd_count()
    with Faulty("stall-after-header", **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 1) == [1]
        bench.faults.remove()
        bench.client.send(dma_map(0, 4096, memory))
        bench.settle()
        assert bench.server.receive_bytes(16) == write(0, 2, b"\2\2\2\2", id=2, posted=True).encode()[:16]
        assert bench.server.is_silent()
        bench.server.send(request(Command.DMA_READ, bytes(16), id=9))
        assert bench.client.receive().id == 9, "the other direction goes on"
    assert fd_count() == before
    os.close(memory)


@pytest.mark.parametrize(
    "act",
    [{"delay": 60}, {"delay": {"seconds": 60, "overtake": True}}, {"reorder": {"after": 1000, "within": 60}}],
    ids=str,
)
def test_messages_that_wait_are_bounded_and_none_is_lost(act: Any) -> None:
    with Faulty(act) as bench:
        kept_back(bench, bench.faults.remove)


def test_a_session_that_ends_while_messages_wait_leaves_no_descriptor_open() -> None:
    memory = os.memfd_create("guest")
    before = fd_count()
    for act in ({"delay": 60}, {"reorder": {"within": 60}}, {"delay": {"seconds": 60, "overtake": True}}):
        bench = Faulty(act)
        bench.client.send(dma_map(0, 4096, memory))
        bench.settle()
        bench.close()
    assert fd_count() == before
    os.close(memory)


def test_hold() -> None:
    with Faulty("hold", **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 1) == [1]
        assert bench.server.is_silent()
        assert bench.session.holding.active
        bench.session.holding.resume()
        assert ids(bench.server, 2) == [2, 3]
        bench.client.send(write(0, 4, b"\4\4\4\4", id=4, posted=True))
        assert ids(bench.server, 1) == [4]


def test_hold_a_reply_and_all_requests_behind_it() -> None:
    with Faulty("hold", direction="to-client", kind="reply") as bench:
        bench.client.send(read(0, 0, 4, id=5))
        bench.server.send(answer(bench.server.receive(), b"\1\2\3\4"))
        bench.until(lambda: bench.session.holding.active or None)
        bench.client.send(write(0, 1, b"\1\1\1\1", id=6, posted=True))
        assert bench.client.is_silent()
        assert bench.server.is_silent()
        bench.session.holding.resume()
        assert ids(bench.client, 1) == [5]
        assert ids(bench.server, 1) == [6]


def test_a_hold_ends_with_its_rule() -> None:
    with Faulty("hold", **SECOND) as bench:
        three_writes(bench)
        assert ids(bench.server, 1) == [1]
        bench.until(lambda: bench.session.holding.active or None)
        bench.faults.remove()
        assert ids(bench.server, 2) == [2, 3]
        assert not bench.session.holding.active


def test_a_session_that_is_held_can_end() -> None:
    with Faulty("hold", **SECOND) as bench:
        three_writes(bench)
        bench.until(lambda: bench.session.holding.active or None)
        bench.session.close()
        assert bench.ended


@for_each(["delay", "delay that lets others overtake", "reorder"])
def test_what_is_late_waits_while_requests_are_held(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a server is replaced: the next is not asked before it knows what the last one knew."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now * 1e9))
    with Faulty(LATE[name], nth=1) as bench:
        three_writes(bench)
        bench.settle()
        bench.server.take_all()
        bench.session.holding.hold()
        now = 1.0
        bench.client.send(write(0, 4, b"\4\4\4\4", id=4, posted=True))
        assert bench.server.is_silent()
        bench.session.holding.resume()
        last = ids(bench.server, 4 if name == "delay" else 2)
        assert last == ([1, 2, 3, 4] if name == "delay" else [1, 4]), "the held one came last"


LATE: dict[str, Any] = {
    "delay": {"delay": 0.05},
    "delay that lets others overtake": {"delay": {"seconds": 0.05, "overtake": True}},
    "reorder": {"reorder": {"after": 3, "within": 0.05}},
    "split": {"split-header": {"at": 8, "seconds": 0.05}},
    "twice, in pieces": [{"duplicate": 1}, {"split-header": {"at": 8, "seconds": 0.05}}],
    "hold": "hold",
}


@for_each(LATE, ["to-server", "to-client"])
def test_the_end_of_a_stream_comes_behind_what_is_late_in_it(name: str, direction: str) -> None:
    """Who half-closes has sent all that came before: as without a fault, and as the trace has it."""
    with Faulty(LATE[name], direction=direction) as bench:
        source, sink = bench.client, bench.server
        if direction == "to-client":
            source, sink = bench.server, bench.client
        source.send(write(0, 0, b"last", id=9, posted=True))
        bench.settle()
        source.socket.shutdown(socket.SHUT_WR)
        bench.settle()
        if name == "hold":
            bench.session.holding.resume()
        arrived = ids(sink, 2 if "twice" in name else 1)
        assert set(arrived) == {9}
        assert sink.at_end()
        assert not bench.ended, "the other way is open"


def test_the_end_of_a_stream_comes_behind_requests_that_were_held() -> None:
    with Bench() as bench:
        bench.session.holding.hold()
        three_writes(bench)
        bench.settle()
        bench.client.socket.shutdown(socket.SHUT_WR)
        bench.settle()
        assert bench.server.is_silent()
        bench.session.holding.resume()
        assert ids(bench.server, 3) == [1, 2, 3]
        assert bench.server.at_end()
