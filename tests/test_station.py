"""The station behind our network card: what it answers, and that nothing but one error comes of what is malformed."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from userdev_servers.station import Malformed, Station, checksum, link_local, parse_mac

OURS, THEIRS = parse_mac("52:55:c0:00:02:01"), parse_mac("52:54:00:12:34:56")
IP, OTHER = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.15")
IP6, OTHER6 = link_local(OURS).packed, link_local(THEIRS).packed
EVERYBODY = b"\xff" * 6

STATION = Station(OURS, IP)


def ethernet(kind: int, payload: bytes, target: bytes = OURS) -> bytes:
    return target + THEIRS + struct.pack("!H", kind) + payload


def arp(target: IPv4Address = IP, operation: int = 1) -> bytes:
    packet = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + THEIRS + OTHER.packed + bytes(6) + target.packed
    return ethernet(0x0806, packet, EVERYBODY)


def summed(message: bytes, before: bytes = b"") -> bytes:
    return message[:2] + struct.pack("!H", checksum(before + message)) + message[4:]


def icmp(kind: int = 8, data: bytes = b"0123456789", code: int = 0) -> bytes:
    return summed(struct.pack("!BBHHH", kind, code, 0, 0x1234, 7) + data)


def ipv4(
    message: bytes, target: IPv4Address = IP, protocol: int = 1, fragment: int = 0x4000, options: int = 0
) -> bytes:
    size = 20 + options
    fixed = (0x40 | size // 4, 0, size + len(message), 99, fragment, 64, protocol, 0)
    header = struct.pack("!BBHHHBBH", *fixed) + OTHER.packed + target.packed + bytes(options)
    return ethernet(0x0800, header[:10] + struct.pack("!H", checksum(header)) + header[12:] + message)


def ipv6(message: bytes, target: bytes = IP6, hops: int = 255, source: bytes = OTHER6, to: bytes = OURS) -> bytes:
    pseudo = source + target + struct.pack("!II", len(message), 58)
    packet = struct.pack("!IHBB", 6 << 28, len(message), 58, hops) + source + target + summed(message, pseudo)
    return ethernet(0x86DD, packet, to)


def solicitation(wanted: bytes = IP6) -> bytes:
    return struct.pack("!BBHI", 135, 0, 0, 0) + wanted + b"\1\1" + THEIRS


ECHO6 = struct.pack("!BBHHH", 128, 0, 0, 0x1234, 7) + b"0123456789"
GROUP = b"\x33\x33\xff" + OURS[3:]


def answer(frame: bytes) -> bytes:
    said = STATION.answer(frame)
    assert said is not None
    assert said[:12] == THEIRS + OURS
    return said[14:]


def test_it_says_which_mac_has_its_address() -> None:
    said = answer(arp())
    assert struct.unpack("!HHBBH", said[:8]) == (1, 0x0800, 6, 4, 2)
    assert said[8:] == OURS + IP.packed + THEIRS + OTHER.packed


@for_each([0, 4, 40], [b"", b"x", bytes(1472)])
def test_it_answers_a_ping_with_what_was_sent(options: int, data: bytes) -> None:
    padding = bytes(8)  # Ethernet's shortest frame has some
    said = answer(ipv4(icmp(data=data), options=options) + padding)
    assert said[0] == 0x45
    assert checksum(said[:20]) == 0
    assert said[12:20] == IP.packed + OTHER.packed
    assert struct.unpack("!H", said[2:4]) == (28 + len(data),)
    assert said[20:] == icmp(0, data)


def test_it_answers_a_ping_of_ipv6() -> None:
    said = answer(ipv6(ECHO6, hops=64))
    assert said[8:40] == IP6 + OTHER6
    assert said[40] == 129
    assert said[44:] == ECHO6[4:]
    assert checksum(said[8:40] + struct.pack("!II", len(ECHO6), 58) + said[40:]) == 0


def test_it_tells_its_neighbours_of_itself() -> None:
    said = answer(ipv6(solicitation(), target=b"\xff\x02" + bytes(9) + b"\1\xff" + IP6[-3:], to=GROUP))
    assert said[40] == 136
    assert said[48:64] == IP6
    assert said[-8:] == b"\2\1" + OURS
    assert said[7] == 255


@for_each(
    [
        ethernet(0x0806, arp()[14:], target=b"\x02" * 6),
        ethernet(0x88CC, b"LLDP"),
        arp(target=OTHER),
        arp(operation=2),
        ethernet(0x0806, struct.pack("!HHBBH", 6, 0x0800, 6, 4, 1) + bytes(20)),
        ipv4(icmp(), target=OTHER),
        ipv4(icmp(), protocol=17),
        ipv4(icmp(), fragment=0x2000),
        ipv4(icmp(), fragment=1),
        ipv4(icmp(0)),
        ipv4(icmp(code=1)),
        ipv6(solicitation(OTHER6)),
        ipv6(solicitation(), hops=64),
        ipv6(solicitation(), source=bytes(16)),
        ipv6(ECHO6, target=OTHER6),
        ethernet(0x86DD, struct.pack("!IHBB", 6 << 28, 0, 17, 64) + bytes(32)),
    ]
)
def test_it_is_silent_about_what_is_not_for_it(frame: bytes) -> None:
    assert STATION.answer(frame) is None


def flipped(frame: bytes, at: int, bits: int = 1) -> bytes:
    return frame[:at] + bytes((frame[at] ^ bits,)) + frame[at + 1 :]


@for_each(
    [
        b"",
        arp()[:13],
        arp()[:30],
        ipv4(icmp())[:30],
        ipv4(icmp())[:-1],
        ipv4(icmp()[:7]),
        flipped(ipv4(icmp()), 14),
        flipped(ipv4(icmp()), 24),
        flipped(ipv4(icmp()), 50),
        ipv6(ECHO6)[:50],
        ipv6(ECHO6)[:-1],
        flipped(ipv6(ECHO6), 14 + 50),
        flipped(ipv6(ECHO6), 14, 0x10),  # version 7
        ethernet(0x86DD, struct.pack("!IHBB", 6 << 28, 1, 17, 64) + bytes(32)),  # a byte that is not there
        ipv6(b"\x80\0\0\0"),
        ipv6(struct.pack("!BBHI", 135, 0, 0, 0)),
    ]
)
def test_what_cannot_be_right_is_one_error(frame: bytes) -> None:
    with pytest.raises(Malformed):
        STATION.answer(frame)


@for_each_row(
    [
        ("", 0xFFFF),
        ("0001f203f4f5f6f7", 0x220D),  # RFC 1071, section 3
        ("0001f203f4f5f6", 0x2304),
        ("80", 0x7FFF),
        ("ffff0001", 0xFFFE),
        ("ffffffff", 0),
        ("4500003044224000800600008c7c19acae241e2b", 0x442E),
    ]
)
def test_the_checksum_is_the_internets(data: str, expected: int) -> None:
    assert checksum(bytes.fromhex(data)) == expected


WHOLE = [arp(), ipv4(icmp()), ipv4(icmp(), options=8), ipv6(ECHO6), ipv6(solicitation())]


@given(st.sampled_from(WHOLE), st.integers(0, 200), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255))))
def test_nothing_else_comes_of_any_bytes(frame: bytes, size: int, changes: list[tuple[int, int]]) -> None:
    bent = bytearray(frame[:size])
    for at, value in changes:
        if at < len(bent):
            bent[at] = value
    try:
        STATION.answer(bytes(bent))
    except Malformed:
        return


@for_each(["", "52:54:00:12:34", "52:54:00:12:34:5", "01:00:5e:00:00:01", "00:00:00:00:00:00", "x"])
def test_a_mac_address_is_that_of_one_station(text: str) -> None:
    with pytest.raises(ValueError, match="MAC"):
        parse_mac(text)
