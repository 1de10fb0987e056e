"""A station on an Ethernet, without I/O: it answers ARP and ping, of IPv4 and of IPv6, and nothing else.

What is said of packets is in RFC 826 (ARP), 791 (IPv4), 792 (ICMP), 8200 (IPv6), 4443 (ICMPv6), 4861 (neighbours).
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

MAC_SIZE = 6
ETHERNET = struct.Struct("!6s6sH")
"""Destination, source, and what is behind."""
ARP = struct.Struct("!HHBBH6s4s6s4s")
"""Kinds and sizes of both addresses, operation, then sender and target, each by both."""
IPV4 = struct.Struct("!BBHHHBBH4s4s")
"""Version and words of the header, service, length, identification, fragment, hops, protocol, checksum, from, to."""
IPV6 = struct.Struct("!IHBB16s16s")
"""Version and flow, length, protocol, hops, from, to."""
ECHO = struct.Struct("!BBHHH")
"""Type, code, checksum, then what the answer repeats: identifier and number."""
NEIGHBOUR = struct.Struct("!BBHI16s")
"""Type, code, checksum, flags, and whom it is about."""

TYPE_IPV4, TYPE_ARP, TYPE_IPV6 = 0x0800, 0x0806, 0x86DD
ARP_KIND = (1, TYPE_IPV4, MAC_SIZE, 4)
ARP_REQUEST, ARP_REPLY = 1, 2
ICMP, ICMPV6 = 1, 58
ECHO_REPLY, ECHO_REQUEST = 0, 8
ECHO_REQUEST_V6, ECHO_REPLY_V6 = 128, 129
SOLICITATION, ADVERTISEMENT = 135, 136
SOLICITED_OVERRIDE = 0x60000000
TARGET_LINK_LAYER = struct.Struct("!BB6s")
HOPS, NEIGHBOUR_HOPS = 64, 255
FRAGMENT = 0x3FFF
"""More fragments, and the offset: neither is set in a whole packet."""


class Malformed(ValueError):
    """A frame that cannot be right; its sender is at fault."""


class Station:
    """What has `mac`, `ip` and the IPv6 address that belongs to that MAC on its link."""

    def __init__(self, mac: bytes, ip: IPv4Address) -> None:
        self.mac = mac
        self.ip = ip
        self.ip6 = link_local(mac)
        self._groups = (b"\xff" * MAC_SIZE, b"\x33\x33\x00\x00\x00\x01", b"\x33\x33\xff" + mac[3:])
        """Everybody, all nodes, and those whose address may be this station's: what is for it beside its own MAC."""

    def answer(self, frame: bytes) -> bytes | None:
        """The frame that answers one; None where there is nothing to say.

        Raises:
            Malformed: the frame cannot be right.
        """
        target, sender, kind = _unpack(ETHERNET, frame)
        if target != self.mac and target not in self._groups:
            return None
        answers = {TYPE_ARP: self._arp, TYPE_IPV4: self._ipv4, TYPE_IPV6: self._ipv6}
        if kind not in answers:
            return None
        payload = answers[kind](frame[ETHERNET.size :])
        return None if payload is None else ETHERNET.pack(sender, self.mac, kind) + payload

    def _arp(self, packet: bytes) -> bytes | None:
        *kind, operation, sender_mac, sender, _, target = _unpack(ARP, packet)
        if tuple(kind) != ARP_KIND or operation != ARP_REQUEST or target != self.ip.packed:
            return None
        return ARP.pack(*ARP_KIND, ARP_REPLY, self.mac, self.ip.packed, sender_mac, sender)

    def _ipv4(self, packet: bytes) -> bytes | None:
        version, _, length, _, fragment, _, protocol, _, source, target = _unpack(IPV4, packet)
        size = 4 * (version & 0xF)
        if version >> 4 != 4 or not IPV4.size <= size <= length <= len(packet) or checksum(packet[:size]):
            raise Malformed(f"an IPv4 header of {size} bytes for {length} of {len(packet)}, or its checksum")
        if target != self.ip.packed or fragment & FRAGMENT or protocol != ICMP:
            return None
        message = packet[size:length]
        kind, code, _, *repeated = _unpack(ECHO, message)
        if checksum(message):
            raise Malformed("an ICMP message with a wrong checksum")
        if (kind, code) != (ECHO_REQUEST, 0):
            return None
        reply = _summed(ECHO.pack(ECHO_REPLY, 0, 0, *repeated) + message[ECHO.size :])
        header = IPV4.pack(0x45, 0, IPV4.size + len(reply), 0, 0, HOPS, ICMP, 0, self.ip.packed, source)
        return header[:10] + checksum(header).to_bytes(2) + header[12:] + reply

    def _ipv6(self, packet: bytes) -> bytes | None:
        version, length, protocol, hops, source, target = _unpack(IPV6, packet)
        message = packet[IPV6.size : IPV6.size + length]
        if version >> 28 != 6 or len(message) < length:
            raise Malformed(f"an IPv6 packet of version {version >> 28} with {len(message)} of {length} bytes")
        if protocol != ICMPV6:
            return None
        if len(message) < ECHO.size or checksum(_pseudo_header(source, target, length) + message):
            raise Malformed(f"an ICMPv6 message of {length} bytes, or its checksum")
        if message[:2] == bytes((SOLICITATION, 0)) and hops == NEIGHBOUR_HOPS:
            reply = self._neighbour(message)
        elif message[:2] == bytes((ECHO_REQUEST_V6, 0)) and target == self.ip6.packed:
            reply = ECHO.pack(ECHO_REPLY_V6, 0, 0, *ECHO.unpack_from(message)[3:]) + message[ECHO.size :]
        else:
            return None
        if reply is None or not any(source):  # who has no address yet only asks whether this one is taken
            return None
        header = IPV6.pack(6 << 28, len(reply), ICMPV6, NEIGHBOUR_HOPS, self.ip6.packed, source)
        return header + _summed(reply, _pseudo_header(self.ip6.packed, source, len(reply)))

    def _neighbour(self, message: bytes) -> bytes | None:
        *_, wanted = _unpack(NEIGHBOUR, message)
        if wanted != self.ip6.packed:
            return None
        said = NEIGHBOUR.pack(ADVERTISEMENT, 0, 0, SOLICITED_OVERRIDE, wanted)
        return said + TARGET_LINK_LAYER.pack(2, 1, self.mac)


def is_announcement(frame: bytes) -> bool:
    """Whether a frame says of its sender's own IPv4 address, asked or not, where it is (RFC 5227)."""
    if len(frame) < ETHERNET.size + ARP.size or ETHERNET.unpack_from(frame)[2] != TYPE_ARP:
        return False
    *kind, _, _, sender, _, target = ARP.unpack_from(frame, ETHERNET.size)
    return tuple(kind) == ARP_KIND and sender == target


def parse_mac(text: str) -> bytes:
    """The bytes of a MAC address, six of two digits with colons between them.

    Raises:
        ValueError: it is none, or one of a group.
    """
    parts = text.split(":")
    if len(parts) != MAC_SIZE or any(len(part) != 2 for part in parts):
        raise ValueError(f"{text!r} is no MAC address")
    mac = bytes.fromhex("".join(parts))
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"{text} is no MAC address of one station")
    return mac


def link_local(mac: bytes) -> IPv6Address:
    """The address on its link that a MAC has (RFC 4291, appendix A)."""
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:])


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 of data that has a right one in it."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _summed(message: bytes, before: bytes = b"") -> bytes:
    """An ICMP message with its checksum, which also covers what is `before`."""
    return message[:2] + checksum(before + message).to_bytes(2) + message[4:]


def _pseudo_header(source: bytes, target: bytes, length: int) -> bytes:
    return source + target + struct.pack("!II", length, ICMPV6)


def _unpack(layout: struct.Struct, data: bytes) -> tuple[Any, ...]:
    if len(data) < layout.size:
        raise Malformed(f"{len(data)} bytes, and a header of {layout.size}")
    return layout.unpack_from(data)
