"""A network card (virtio 1.3, "Network Device") with one station behind it, which answers ARP and ping.

A frame is behind a header of 12 bytes, of 10 for a driver that has neither VERSION_1 nor merged buffers. What is
answered goes into the buffers of the receive queue, several of them where one is too small and the driver merges.
Frames that nobody can have are dropped and counted, as on any network.
"""

from __future__ import annotations

import struct
from collections import Counter, deque
from collections.abc import Mapping
from enum import IntFlag
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Annotated, Any, TypedDict

from userdev.errors import UserError
from userdev_servers.control import ControlSocket
from userdev_servers.station import ETHERNET, MAC_SIZE, Malformed, Station, is_announcement, parse_mac
from vhost_user.device import LEFT, Chain, Left, Queues, VhostDevice, config_field, queue, supply

RECEIVE, TRANSMIT = 0, 1
HEADER = struct.Struct("<BBHHHHH")
"""Flags, kind of segmentation, header and segment size, where a checksum begins and goes; then how many buffers."""
SHORT_HEADER_SIZE = 10
LINK_UP = 1
NOT_DIVIDED = 0
VERSION_1 = 1 << 32

MIN_MTU, MAX_MTU = 68, 65535 - ETHERNET.size
VLAN_TAG_SIZE = 4
BACKLOG = 256
"""Answers that wait for buffers: a driver that gives none loses what comes then."""


class Feature(IntFlag):
    """VIRTIO_NET_F_*."""

    MTU = 1 << 3
    MAC = 1 << 5
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    GUEST_ANNOUNCE = 1 << 21
    """QEMU has the driver say after a migration where its address is now."""


class Net(VhostDevice):
    """A network card, and a station that answers ARP and ping."""

    virtio_id = 1
    queues = Queues(2, size=1024, paired=True)
    features = Feature.MTU | Feature.MAC | Feature.MRG_RXBUF | Feature.STATUS | Feature.GUEST_ANNOUNCE

    mac: bytes = config_field(MAC_SIZE, bytes(MAC_SIZE))
    status: int = config_field(2, LINK_UP)
    max_virtqueue_pairs: int = config_field(2, 1)
    mtu: int = config_field(2, 1500)

    receive = supply(RECEIVE)

    def __init__(
        self,
        *,
        mac: Annotated[str, "the card's address, for drivers that read it here"] = "52:54:00:12:34:56",
        ip: Annotated[str, "the station's IPv4 address"] = "192.0.2.1",
        station: Annotated[str, "the station's MAC address; 52:55 and its IPv4 address unless told"] = "",
        mtu: Annotated[int, "bytes of a packet at most"] = 1500,
        control: Annotated[str, "listen here for JSON lines: link, status"] = "",
    ) -> None:
        """Have card and station.

        Raises:
            UserError: an address or the MTU is none.
        """
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise UserError(f"an MTU of {mtu}", hint=f"give one from {MIN_MTU} to {MAX_MTU}")
        try:
            address = IPv4Address(ip)
            self.mac = parse_mac(mac)
            self.station = Station(parse_mac(station) if station else b"\x52\x55" + address.packed, address)
        except (AddressValueError, ValueError) as error:
            raise UserError(f"the network card: {error}", hint="for example --ip 192.0.2.1") from None
        self.mtu = mtu
        self.counts: Counter[str] = Counter()
        """Of what has become of frames; no reset clears it."""
        self._header_size = SHORT_HEADER_SIZE
        self._merges = False
        self._backlog: deque[bytes] = deque()
        self._is_leaving = False
        """The receive queue was stopped; the other one is about to be, by a front-end that stops both."""
        super().__init__()
        self._control = ControlSocket(Path(control), self, COMMANDS) if control else None

    @queue(TRANSMIT)
    def transmit(self, chain: Chain) -> int | Left:
        """Take a frame, and have the station's answer received.

        While the queues are stopped one after the other frames stay where they are: an answer would have no place, and
        a guest that is moved has them taken where it goes on.
        """
        if self._is_leaving:
            return LEFT
        if not self.status & LINK_UP:
            self.counts["dropped_link_down"] += 1
            return 0
        try:
            frame = self._frame(chain)
            answer = self.station.answer(frame)
        except Malformed:
            self.counts["malformed"] += 1
            return 0
        self.counts["transmitted"] += 1
        if is_announcement(frame):
            self.counts["announced"] += 1
        if answer is not None:
            self.send(answer)
        return 0

    def send(self, frame: bytes) -> None:
        """Have the driver receive a frame, as soon as there is a buffer; where handlers run."""
        if not self.status & LINK_UP:
            self.counts["dropped_link_down"] += 1
        elif len(self._backlog) == BACKLOG:
            self.counts["dropped_no_buffers"] += 1
        else:
            self._backlog.append(frame)
            self._deliver()

    def set_link(self, *, up: bool) -> None:
        """Plug the cable in or out; the driver is told. Where handlers run."""
        self.status = LINK_UP if up else 0
        if not up:
            self._drop_backlog("dropped_link_down")
        self.config_changed()

    def on_features(self, features: int) -> None:
        """Have headers as the driver has them."""
        self._merges = bool(features & Feature.MRG_RXBUF)
        self._header_size = HEADER.size if features & (Feature.MRG_RXBUF | VERSION_1) else SHORT_HEADER_SIZE

    def on_supply(self, queue: int) -> None:
        """Deliver what waits for buffers."""
        self._deliver()

    def on_start(self, queue: int) -> None:
        """Take frames, again."""
        self._is_leaving = False

    def on_stop(self, queue: int) -> None:
        """Drop what would be received: it was for the driver that has gone."""
        self._is_leaving = queue == RECEIVE
        if queue == RECEIVE:
            self._drop_backlog("dropped_no_buffers")

    def on_close(self) -> None:
        """Close the control socket."""
        if self._control is not None:
            self._control.close()

    def _frame(self, chain: Chain) -> bytes:
        """The frame in a request of the transmit queue.

        Raises:
            Malformed: it is none, longer than the MTU allows, or wants what was not negotiated.
        """
        header = chain.read(self._header_size)
        if len(header) < self._header_size:
            raise Malformed(f"{len(header)} bytes of a header")
        flags, kind = header[:2]
        if flags or kind != NOT_DIVIDED:
            raise Malformed(f"a checksum or segmentation that was not negotiated: {flags:#x}, {kind}")
        if chain.readable > self.mtu + ETHERNET.size + VLAN_TAG_SIZE:
            raise Malformed(f"a frame of {chain.readable} bytes, and the MTU is {self.mtu}")
        return chain.read()

    def _deliver(self) -> None:
        while self._backlog and self._receive(self._backlog[0]):
            self._backlog.popleft()

    def _receive(self, frame: bytes) -> bool:
        """Put a frame into the driver's buffers, or drop it; False if there are too few."""
        size = self._header_size + len(frame)
        chains: list[Chain] = []
        while size > sum(chain.writable for chain in chains):
            if chains and not self._merges:
                self.receive.leave()
                self.counts["dropped_too_long"] += 1
                return True
            chain = self.receive.take()
            if chain is None:
                self.receive.leave()
                return False
            chains.append(chain)
        rest = memoryview(HEADER.pack(0, NOT_DIVIDED, 0, 0, 0, 0, len(chains))[: self._header_size] + frame)
        for chain in chains:
            written = chain.write(rest)
            self.receive.give(chain, written)
            rest = rest[written:]
        self.counts["received"] += 1
        return True

    def _drop_backlog(self, why: str) -> None:
        if self._backlog:
            self.counts[why] += len(self._backlog)
            self._backlog.clear()


class CardStatus(TypedDict):
    """The result of `status` and `link`."""

    link: bool
    counts: Mapping[str, int]


def get_status(device: Net, _: Mapping[str, Any]) -> CardStatus:
    """{"command": "status"}: whether the link is up, and what has become of frames."""
    return {"link": bool(device.status & LINK_UP), "counts": dict(device.counts)}


def set_link(device: Net, request: Mapping[str, Any]) -> CardStatus:
    """{"command": "link", "up": false} plugs the cable out."""
    if not isinstance(up := request.get("up"), bool):
        raise UserError('a link is "up": true or false')
    device.set_link(up=up)
    return get_status(device, request)


COMMANDS = {"status": get_status, "link": set_link}
