"""The network card behind vhost-user: frames in and out, merged buffers, its link, and what is dropped and counted."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.test_station import OTHER, OURS, answer, arp, icmp, ipv4
from tests.vhost_frontend import FEATURES, PROTOCOL, FrontEnd, P, R, V
from userdev.control import ControlClient
from userdev.errors import UserError
from userdev_servers.net import BACKLOG, VLAN_TAG_SIZE, Feature, Net
from userdev_servers.station import ETHERNET
from vhost_user.backend import Server
from vhost_user.frontend.connection import Connection
from vhost_user.wire.payloads import Config

HEADER = bytes(12)
PING = ipv4(icmp())
MERGED = V(int(Feature.MRG_RXBUF))


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Net]:
    card = Net(mac="52:54:00:11:22:33", control=str(tmp_path / "control"))
    yield card
    card.close()


@pytest.fixture
def control(card: Net, tmp_path: Path) -> Iterator[ControlClient]:
    with ControlClient(tmp_path / "control") as client:
        yield client


@pytest.fixture
def front_end(card: Net, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FrontEnd]:
    features = getattr(request, "param", FEATURES | MERGED)
    with Server(card, f"unix:{tmp_path}/s") as server, FrontEnd(str(server.listener.address)) as front_end:
        front_end.negotiate(features, PROTOCOL | P.CONFIG)
        front_end.share_memory()
        yield front_end


@pytest.fixture
def wire(front_end: FrontEnd) -> Iterator[Wire]:
    wire = Wire(front_end)
    yield wire
    wire.receive.close()
    wire.transmit.close()


class Wire:
    """A driver's side of the card, both of its rings."""

    def __init__(self, front_end: FrontEnd) -> None:
        self.receive, self.transmit = front_end.queue(0), front_end.queue(1)
        self.receive.start()
        self.transmit.start()

    def give(self, *sizes: int) -> None:
        """Give buffers for what is received."""
        for size in sizes:
            self.receive.put(size)
        self.receive.kick()

    def send(self, frame: bytes, header: bytes = HEADER) -> None:
        """Send a frame, and wait until the card has taken it."""
        self.transmit.put(header + frame)
        self.transmit.kick()
        self.transmit.wait_used()

    def received(self, count: int = 1) -> list[bytes]:
        """The content of so many buffers that came back."""
        return [completion.data for completion in self.receive.wait_used(count)]


def counts(control: ControlClient) -> dict[str, int]:
    found: dict[str, int] = control.call("status")["counts"]
    return found


def test_arp_and_ping_are_answered(wire: Wire) -> None:
    wire.give(2048, 2048)
    wire.send(arp())
    wire.send(PING)
    said = wire.received(2)
    assert [frame[:12] for frame in said] == [HEADER[:10] + b"\1\0"] * 2
    assert said[0][12 + 6 : 12 + 12] == OURS
    assert said[1][12 + 14 :] == answer(PING)


def test_a_front_end_is_told_of_its_queues_in_pairs(front_end: FrontEnd) -> None:
    """QEMU and DPDK have as many pairs as GET_QUEUE_NUM says: with two they would use rings that are not there."""
    assert front_end.ask(R.GET_QUEUE_NUM) == 1


def test_whoever_announces_an_address_is_counted_and_has_no_answer(wire: Wire, control: ControlClient) -> None:
    """As a driver does that GUEST_ANNOUNCE has told so, after a migration."""
    for frame in (arp(OTHER, 1), arp(OTHER, 2), arp(), PING):
        wire.send(frame)
    assert counts(control) == {"transmitted": 4, "announced": 2}
    wire.give(2048, 2048, 2048)
    assert len(wire.received(2)) == 2
    assert wire.receive.take_used() == []


@pytest.mark.parametrize("front_end", [FEATURES], indirect=True)
def test_a_driver_without_merged_buffers_has_frames_in_one_or_not_at_all(wire: Wire, control: ControlClient) -> None:
    wire.give(20)
    wire.send(PING)
    wire.send(arp())
    assert counts(control) == {"transmitted": 2, "dropped_too_long": 2}
    wire.receive.stop(drain=False)
    assert wire.receive.take_used() == []


@pytest.mark.parametrize("front_end", [V.PROTOCOL_FEATURES], indirect=True)
def test_a_driver_of_before_virtio_1_has_a_header_of_10_bytes(wire: Wire) -> None:
    wire.give(2048)
    wire.send(PING, bytes(10))
    (said,) = wire.received()
    assert said[:10] == bytes(10)
    assert said[10 + 14 :] == answer(PING)


@pytest.mark.parametrize("front_end", [V.PROTOCOL_FEATURES | MERGED], indirect=True)
def test_a_driver_of_before_virtio_1_that_merges_buffers_has_a_header_of_12_bytes(wire: Wire) -> None:
    wire.give(30, 2048)
    wire.send(PING)
    pieces = wire.received(2)
    assert pieces[0][:12] == HEADER[:10] + b"\2\0"
    assert b"".join(pieces)[12 + 14 :] == answer(PING)


def test_a_frame_that_is_longer_than_a_buffer_has_several(wire: Wire) -> None:
    wire.give(30, 30)
    ping = ipv4(icmp(data=bytes(range(140))))
    wire.send(ping)
    wire.receive.connection.settle()
    assert wire.receive.take_used() == [], "two are too few"
    wire.give(40, 60, 40)
    pieces = wire.received(5)
    assert pieces[0][:12] == HEADER[:10] + b"\5\0"
    assert b"".join(pieces)[12 + 14 :] == answer(ping)
    assert [len(piece) for piece in pieces] == [30, 30, 40, 60, 34]


def test_a_driver_that_gives_no_buffers_loses_what_is_too_much(wire: Wire, control: ControlClient) -> None:
    for _ in range(BACKLOG + 3):
        wire.send(arp())
    assert counts(control)["dropped_no_buffers"] == 3
    wire.give(2048)
    assert wire.received()[0][12 + 6 : 12 + 12] == OURS
    wire.receive.stop(drain=False)
    assert counts(control) == {"transmitted": BACKLOG + 3, "received": 1, "dropped_no_buffers": BACKLOG + 2}


@pytest.mark.parametrize(
    ("frame", "header"),
    [
        (b"", HEADER[:5]),
        (b"", HEADER),
        (PING[:20], HEADER),
        (PING, b"\1" + HEADER[1:]),
        (PING, b"\0\1" + HEADER[2:]),
        (ipv4(icmp(data=bytes(1500))), HEADER),
    ],
)
def test_what_is_malformed_is_dropped_and_counted(
    wire: Wire, control: ControlClient, frame: bytes, header: bytes
) -> None:
    wire.give(2048)
    wire.send(frame, header)
    assert counts(control) == {"malformed": 1}
    wire.send(PING)
    assert wire.received()[0][12 + 14 :] == answer(PING)


def test_a_link_that_is_down_carries_nothing_and_the_driver_can_read_so(wire: Wire, control: ControlClient) -> None:
    wire.give(2048)
    assert control.call("link", up=False)["link"] is False
    assert config(wire.receive.connection)[6:8] == b"\0\0"
    wire.send(PING)
    assert counts(control) == {"dropped_link_down": 1}
    assert control.call("link", up=True)["link"] is True
    assert config(wire.receive.connection)[6:8] == b"\1\0"
    wire.send(PING)
    assert wire.received()[0][12 + 14 :] == answer(PING)


def test_a_driver_is_told_of_each_change_of_the_link(card: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(card, "config_changed", lambda: told.append(card.status))
    for up in (False, True, False):
        card.set_link(up=up)
    assert told == [0, 1, 0]


def test_what_waits_for_buffers_when_the_link_goes_down_is_lost_with_it(wire: Wire, control: ControlClient) -> None:
    wire.send(PING)
    wire.send(PING)
    for up in (False, True):
        assert control.call("link", up=up)["counts"] == {"transmitted": 2, "dropped_link_down": 2}
    wire.give(2048)
    wire.receive.connection.settle()
    assert wire.receive.take_used() == []


@pytest.mark.parametrize(("more", "count"), [(0, "transmitted"), (1, "malformed")])
def test_a_frame_has_a_packet_as_the_mtu_allows_and_a_tag(
    wire: Wire, control: ControlClient, more: int, count: str
) -> None:
    wire.send(ETHERNET.pack(bytes(6), bytes(6), 0) + bytes(1500 + VLAN_TAG_SIZE + more))
    assert counts(control) == {count: 1}


def test_the_link_can_be_changed_while_nobody_is_there(card: Net, control: ControlClient) -> None:
    assert control.call("link", up=False) == {"link": False, "counts": {}}
    assert card.status == 0
    with pytest.raises(UserError, match="true or false"):
        control.call("link", up=1)


def config(connection: Connection) -> bytes:
    data: bytes = connection.ask(R.GET_CONFIG, Config(0, 12, 0, bytes(12))).data
    return data


def test_its_configuration_is_that_of_the_specifications_structure(front_end: FrontEnd) -> None:
    assert config(front_end) == bytes.fromhex("525400112233") + struct.pack("<HHH", 1, 1, 1500)


@for_each([{"ip": "192.0.2"}, {"ip": "::1"}, {"mac": "1:2"}, {"station": "ff:ff:ff:ff:ff:ff"}, {"mtu": 67}])
def test_an_option_that_is_none_is_told_in_words(options: dict[str, str]) -> None:
    with pytest.raises(UserError):
        Net(**options)  # type: ignore[arg-type]


def test_the_station_has_the_address_that_it_is_given(tmp_path: Path) -> None:
    card = Net(ip="198.51.100.7", station="02:00:00:00:00:01")
    assert card.station.ip.packed == bytes((198, 51, 100, 7))
    assert card.station.mac == bytes.fromhex("020000000001")
    card.close()


def look(front_end: FrontEnd) -> None:
    """Have the device look at what was kicked: the second question is answered after the turn that took the first."""
    for _ in range(2):
        front_end.ask(R.GET_FEATURES)


def test_a_frame_that_is_sent_while_the_queues_are_stopped_is_answered_where_they_run_again(
    front_end: FrontEnd, wire: Wire
) -> None:
    """QEMU stops them in their order; a guest that is moved in this moment lost the answer to what it had sent."""
    wire.give(2048, 2048)
    wire.send(arp())
    wire.received()
    receive = wire.receive.stop(drain=False)
    for _ in range(2):
        wire.transmit.put(HEADER + PING)
        wire.transmit.kick()
    look(front_end)
    transmit = wire.transmit.stop(drain=False)
    assert wire.transmit.take_used() == []
    wire.give(2048)
    wire.receive.start(receive)
    wire.transmit.start(transmit)
    assert [frame[12 + 14 :] for frame in wire.received(2)] == [answer(PING)] * 2


def test_a_frame_waits_while_the_receive_queue_alone_is_stopped(front_end: FrontEnd, wire: Wire) -> None:
    wire.give(2048)
    base = wire.receive.stop(drain=False)
    wire.transmit.put(HEADER + PING)
    wire.transmit.kick()
    look(front_end)
    assert wire.transmit.take_used() == []
    wire.receive.start(base)
    assert [frame[12 + 14 :] for frame in wire.received()] == [answer(PING)]
    wire.transmit.wait_used()


def test_frames_for_a_driver_that_has_gone_are_not_for_the_next(wire: Wire) -> None:
    wire.send(PING)
    base = wire.receive.stop(drain=False)
    wire.give(2048)
    wire.receive.start(base)
    wire.send(arp())
    (said,) = wire.received()
    assert said[12 + 12 : 12 + 14] == b"\x08\x06"
