"""Messages of vhost-user are the specification's, and a peer's wrong bytes are a ProtocolError and nothing else."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import for_each, for_each_row
from userdev.errors import ProtocolError
from userdev.transport import BadFrame, Framer
from vhost_user.wire import (
    BACK_END,
    FRONT_END,
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    NEED_REPLY,
    NO_FD,
    REPLY,
    VERSION,
    BackEndRequest,
    FrontEndRequest,
    Message,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
    acknowledge,
    check_protocol_features,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    is_postcopy_acknowledgement,
    payloads,
)
from vhost_user.wire.messages import Fds, Reply, Request, shape_of

R, B, P = FrontEndRequest, BackEndRequest, ProtocolFeature
CHANNELS = (FrontEndRequest, BackEndRequest)

# The specification's message types, by hand: number, name, bytes of the request, bytes of its own reply (- none), file
# descriptors of request and reply, the bit that it needs (V: of virtio). Sizes of tables are those of one entry.
FRONT_END_TABLE = """
 1 GET_FEATURES              0   8    none         none
 2 SET_FEATURES              8   -    none         none
 3 SET_OWNER                 0   -    none         none
 4 RESET_OWNER               0   -    none         none
 5 SET_MEM_TABLE             40  40   per_region   none
 6 SET_LOG_BASE              16  8    optional     none
 7 SET_LOG_FD                0   -    optional     none
 8 SET_VRING_NUM             8   -    none         none
 9 SET_VRING_ADDR            40  -    none         none
10 SET_VRING_BASE            8   -    none         none
11 GET_VRING_BASE            8   8    none         none
12 SET_VRING_KICK            8   -    unless_no_fd none
13 SET_VRING_CALL            8   -    unless_no_fd none
14 SET_VRING_ERR             8   -    unless_no_fd none
15 GET_PROTOCOL_FEATURES     0   8    none         none         V30
16 SET_PROTOCOL_FEATURES     8   -    none         none         V30
17 GET_QUEUE_NUM             0   8    none         none         0
18 SET_VRING_ENABLE          8   -    none         none         V30
19 SEND_RARP                 8   -    none         none         2
20 NET_SET_MTU               8   -    none         none         4
21 SET_BACKEND_REQ_FD        0   -    one          none         5
22 IOTLB_MSG                 32  8    none         none         V33
23 SET_VRING_ENDIAN          8   -    none         none         6
24 GET_CONFIG                13  13   none         none         9
25 SET_CONFIG                13  -    none         none         9
26 CREATE_CRYPTO_SESSION     1   1    none         none         7
27 CLOSE_CRYPTO_SESSION      8   -    none         none         7
28 POSTCOPY_ADVISE           0   0    none         one          8
29 POSTCOPY_LISTEN           0   -    none         none         8
30 POSTCOPY_END              0   8    none         none         8
31 GET_INFLIGHT_FD           24  24   none         optional     12
32 SET_INFLIGHT_FD           24  -    one          none         12
33 GPU_SET_SOCKET            0   -    one          none
34 RESET_DEVICE              0   -    none         none         13
35 VRING_KICK                8   -    none         none         14
36 GET_MAX_MEM_SLOTS         0   8    none         none         15
37 ADD_MEM_REG               40  40   one          none         15
38 REM_MEM_REG               40  -    optional     none         15
39 SET_STATUS                8   -    none         none         16
40 GET_STATUS                0   8    none         none         16
41 GET_SHARED_OBJECT         16  0    none         optional     18
42 SET_DEVICE_STATE_FD       8   8    one          unless_no_fd 19
43 CHECK_DEVICE_STATE        0   8    none         none         19
44 GET_SHMEM_CONFIG          0   2056 none         none         22
45 GET_VRING_BASE_SKIP_DRAIN 8   8    none         none         23
"""
BACK_END_TABLE = """
 1 IOTLB_MSG                 32  -    none         none         V33
 2 CONFIG_CHANGE_MSG         0   -    none         none         9
 3 VRING_HOST_NOTIFIER_MSG   24  -    optional     none         11
 4 VRING_CALL                8   -    none         none         14
 5 VRING_ERR                 8   -    none         none         14
 6 SHARED_OBJECT_ADD         16  -    none         none         18
 7 SHARED_OBJECT_REMOVE      16  -    none         none         18
 8 SHARED_OBJECT_LOOKUP      16  8    none         optional     18
 9 SHMEM_MAP                 40  -    one          none         22
10 SHMEM_UNMAP               40  -    none         none         22
"""

U64 = st.integers(0, 2**64 - 1)
REGION = payloads.Region(0x100000, 0x3B10, 0x7F0000000000, 0x1000)


def example(payload: payloads.Payload[Any]) -> Any:
    """A value of a payload: its numbers all different, tables with one entry, data of one byte."""
    match payload:
        case payloads.Empty():
            return None
        case payloads.Number():
            return 0x0807060504030201
        case payloads.ConfigPayload():
            return payloads.Config(4, 1, 0, b"x")
        case payloads.Opaque():
            return b"x"
        case payloads.Table():
            return (payload.entry.record(*range(1, 1 + len(payload.entry.record._fields))),)
        case payloads.Either():
            return example(payload.choices[0])
        case payloads.Fixed():
            if payload is payloads.SHARED_OBJECT:
                return payloads.SharedObject(bytes(range(16)))
            return payload.layout.record(*range(1, 1 + len(payload.layout.record._fields)))
    raise AssertionError(payload)


def test_a_table_has_as_many_entries_as_are_allowed_and_no_more() -> None:
    for table in (*payloads.REGIONS.choices, payloads.SHMEM_CONFIG):
        assert isinstance(table, payloads.Table)
        (entry,) = example(table)
        assert table.decode(table.encode((entry,) * table.most)) == (entry,) * table.most
        with pytest.raises(ProtocolError, match="at most"):
            table.decode(bytes([table.most + 1 & 0xFF, table.most + 1 >> 8]) + bytes(6 + 4096))


def rows(table: str) -> Iterable[list[str]]:
    return (line.split() for line in table.strip().splitlines())


@for_each_row([(R, FRONT_END_TABLE), (B, BACK_END_TABLE)])
def test_every_message_is_as_the_specification_has_it(kind: type[Request], table: str) -> None:
    found = []
    for request in kind:
        shape = shape_of(request)
        own = shape.reply is not Reply.ASKED
        needs = [] if shape.needs is None else [str(shape.needs.value.bit_length() - 1)]
        found.append(
            [
                str(request.value),
                request.name,
                str(len(shape.payload.encode(example(shape.payload)))),
                str(len(shape.reply_payload.encode(example(shape.reply_payload)))) if own else "-",
                shape.fds.name.lower(),
                shape.reply_fds.name.lower(),
                *("V" * isinstance(shape.needs, VirtioFeature) + bit for bit in needs),
            ]
        )
    assert found == list(rows(table))


def test_the_tables_have_every_request() -> None:
    assert (set(FRONT_END), set(BACK_END)) == (set(R), set(B))


@for_each_row(
    [
        (payloads.VRING_STATE, (1, 2), "i1 i2"),
        (payloads.VRING_ADDRESS, (1, 2, 3, 4, 5, 6), "i1 i2 q3 q4 q5 q6"),
        (payloads.IOTLB, (1, 2, 3, 4, 5), "q1 q2 q3 b4 b5 b0 b0 i0"),
        (payloads.DEVICE_STATE, (1, 2), "i1 i2"),
        (payloads.MMAP, (1, 2, 3, 4, 5), "b1 b0 b0 b0 i0 q2 q3 q4 q5"),
        (payloads.VRING_AREA, (1, 2, 3), "q1 q2 q3"),
        (payloads.LOG, (1, 2), "q1 q2"),
    ]
)
def test_fields_are_where_the_specification_has_them(
    payload: payloads.Fixed[Any], fields: tuple[int, ...], expected: str
) -> None:
    """`i2` is a number of 32 bits with the value 2, `q` has 64 and `b` has 8."""
    data = b"".join(int(word[1]).to_bytes({"b": 1, "i": 4, "q": 8}[word[0]], "little") for word in expected.split())
    assert payload.decode(data) == fields
    assert payload.encode(payload.layout.record(*fields)) == data


def test_a_region_is_behind_8_bytes_of_count_and_padding() -> None:
    one = struct.pack("<4Q", *REGION)
    assert payloads.REGIONS.encode((REGION, REGION)) == struct.pack("<II", 2, 0) + 2 * one
    assert payloads.REGION.encode(REGION) == bytes(8) + one


def test_regions_of_xen_have_two_fields_more() -> None:
    region = payloads.XenRegion(*REGION, xen_mmap_flags=0x101, domain=7)
    data = struct.pack("<II4QII", 1, 0, *region)
    assert payloads.REGIONS.decode(data) == (region,)
    assert payloads.REGIONS.encode((region,)) == data
    assert payloads.REGION.decode(bytes(8) + data[8:]) == region


@for_each([20, 24])
def test_an_inflight_description_comes_with_the_padding_of_c_or_without(size: int) -> None:
    data = struct.pack("<QQHH4x", 0, 64, 2, 128)[:size]
    assert payloads.INFLIGHT.decode(data) == payloads.Inflight(0, 64, 2, 128)


def test_an_inflight_description_is_sent_with_the_padding_of_c() -> None:
    assert len(payloads.INFLIGHT.encode(payloads.Inflight(0, 0, 1, 128))) == 24


def count_of(fds: Fds, value: Any) -> int:
    """The most descriptors that a payload may have beside it."""
    return len(value) if fds is Fds.PER_REGION else int(fds is not Fds.NONE)


@for_each([*R, *B])
def test_each_request_and_its_reply_reach_the_other_role(request_: Request) -> None:
    shape = shape_of(request_)
    value = example(shape.payload) if shape.fds is not Fds.UNLESS_NO_FD else 1
    sent = encode_request(request_, value, list(range(100, 100 + count_of(shape.fds, value))), need_reply=True)
    framer = Framer(Message, max_fds=MAX_FDS)
    framer.feed(sent.encode(), sent.fds)
    received = framer.next()
    assert received == sent
    assert received.needs_reply
    assert decode_request(type(request_), received) == (request_, value)

    negotiated = Negotiated(protocol_features=P.REPLY_ACK | P.LOG_SHMFD, postcopy=True)
    assert negotiated.is_answered(request_, received)
    if not negotiated.is_own_reply(request_):
        assert decode_reply(request_, acknowledge(request_, 5), negotiated) == 5
        return
    answer = example(shape.reply_payload) if shape.reply_fds is not Fds.UNLESS_NO_FD else NO_FD
    count = 0 if shape.reply_fds is Fds.UNLESS_NO_FD else count_of(shape.reply_fds, answer)
    reply = encode_reply(request_, answer, [100] * count)
    assert (reply.flags, reply.request) == (VERSION | REPLY, request_)
    assert decode_reply(request_, reply, negotiated) == answer


@given(
    kind=st.sampled_from(CHANNELS),
    number=st.integers(0, 50),
    flags=st.integers(0, 15),
    payload=st.binary(max_size=340),
    fds=st.integers(0, 9),
)
def test_wrong_bytes_are_a_protocol_error_in_a_request(
    kind: Any, number: int, flags: int, payload: bytes, fds: int
) -> None:
    message = Message(number, flags, payload, [-1] * fds)
    try:
        request, value = decode_request(kind, message)
    except ProtocolError:
        return
    again = encode_request(request, value, message.fds, need_reply=message.needs_reply)
    assert decode_request(kind, again) == (request, value)


@given(
    request=st.sampled_from([*R, *B]),
    flags=st.sampled_from([VERSION | REPLY, VERSION | REPLY | NEED_REPLY, 0, VERSION, 6]),
    payload=st.binary(max_size=2060),
    fds=st.integers(0, 9),
    postcopy=st.booleans(),
)
def test_wrong_bytes_are_a_protocol_error_in_a_reply(
    request: Request, flags: int, payload: bytes, fds: int, postcopy: bool
) -> None:
    try:
        decode_reply(request, Message(request, flags, payload, [-1] * fds), Negotiated(postcopy=postcopy))
    except ProtocolError:
        return
    assert flags & ~NEED_REPLY == VERSION | REPLY


@for_each(R)
def test_a_payload_that_is_too_short_or_too_long_is_einval(request_: FrontEndRequest) -> None:
    payload = shape_of(request_).payload
    if isinstance(payload, payloads.Opaque):
        return
    data = payload.encode(example(payload))
    for wrong in (data[:-1], data + b"\0" * 3):
        if wrong != data:
            with pytest.raises(ProtocolError) as caught:
                decode_request(R, Message(request_, VERSION, wrong))
            assert caught.value.errno == errno.EINVAL


def test_an_unknown_request_is_enosys_and_the_connection_goes_on() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(R, Message(46, VERSION))
    assert (caught.value.errno, caught.value.fatal) == (errno.ENOSYS, False)


@for_each([0, 2, 3, VERSION | REPLY])
def test_what_is_no_request_of_this_version_ends_the_connection(flags: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(R, Message(R.GET_FEATURES, flags))
    assert caught.value.fatal


@for_each([VERSION | REPLY, VERSION | REPLY | NEED_REPLY])
def test_a_reply_may_leave_need_reply_in_its_flags(flags: int) -> None:
    """The storage daemon of QEMU 10.0 and 11.1, and passt, do."""
    assert decode_reply(R.GET_FEATURES, Message(R.GET_FEATURES, flags, bytes(8)), Negotiated()) == 0


def test_a_reply_to_another_request_ends_the_connection() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_reply(R.GET_FEATURES, Message(R.GET_QUEUE_NUM, VERSION | REPLY, bytes(8)), Negotiated())
    assert caught.value.fatal


@for_each([bytes(8), bytes(16), b""])
def test_any_reply_to_set_log_base_that_real_back_ends_give_is_taken(payload: bytes) -> None:
    """The storage daemon and passt: a number; virtiofsd: the request's payload; DPDK: none."""
    reply = Message(R.SET_LOG_BASE, VERSION | REPLY, payload)
    decode_reply(R.SET_LOG_BASE, reply, Negotiated(protocol_features=P.LOG_SHMFD))


@for_each([b"", struct.pack("<III", 0, 0, 0)])
def test_a_reply_to_get_config_without_data_is_an_error_to_be_seen(payload: bytes) -> None:
    """The storage daemon sends no payload, vhost-device-vsock a header with size 0."""
    config = decode_reply(R.GET_CONFIG, Message(R.GET_CONFIG, VERSION | REPLY, payload), Negotiated())
    assert config is None or config.data == b""


@for_each([0, 1, 57, 256])
def test_configuration_space_is_as_long_as_it_says(size: int) -> None:
    config = payloads.Config(0, size, 0, bytes(size))
    assert payloads.CONFIG.decode(payloads.CONFIG.encode(config)) == config
    with pytest.raises(ProtocolError):
        payloads.CONFIG.decode(payloads.CONFIG.encode(config) + b"x")


def test_more_than_256_bytes_of_configuration_space_are_refused() -> None:
    with pytest.raises(ProtocolError):
        payloads.CONFIG.decode(struct.pack("<III", 0, 257, 0) + bytes(257))


@for_each([9, 2**32 - 1])
def test_more_than_eight_regions_are_refused(count: int) -> None:
    with pytest.raises(ProtocolError):
        decode_request(R, Message(R.SET_MEM_TABLE, VERSION, struct.pack("<II", count, 0) + bytes(9 * 32), [-1] * 9))


@for_each_row(
    [
        (R.SET_MEM_TABLE, payloads.REGIONS.encode((REGION, REGION)), 1),
        (R.SET_MEM_TABLE, payloads.REGIONS.encode((REGION,)), 2),
        (R.ADD_MEM_REG, payloads.REGION.encode(REGION), 0),
        (R.SET_VRING_KICK, payloads.NUMBER.encode(0), 0),
        (R.SET_VRING_KICK, payloads.NUMBER.encode(NO_FD), 1),
        (R.SET_FEATURES, payloads.NUMBER.encode(0), 1),
        (R.SET_BACKEND_REQ_FD, b"", 0),
        (R.REM_MEM_REG, payloads.REGION.encode(REGION), 2),
    ]
)
def test_descriptors_that_do_not_belong_to_a_request_are_refused(
    request_: FrontEndRequest, payload: bytes, fds: int
) -> None:
    with pytest.raises(ProtocolError):
        decode_request(R, Message(request_, VERSION, payload, [-1] * fds))


@for_each([0, 1])
def test_a_region_is_removed_with_a_descriptor_or_without(fds: int) -> None:
    """A descriptor comes from libblkio 1.5; rust-vmm does not take one."""
    assert decode_request(R, Message(R.REM_MEM_REG, VERSION, payloads.REGION.encode(REGION), [-1] * fds))[1] == REGION


def test_our_own_message_with_wrong_descriptors_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="SET_VRING_KICK"):
        encode_request(R.SET_VRING_KICK, 0)
    with pytest.raises(ValueError, match="GET_FEATURES"):
        encode_reply(R.GET_FEATURES, 0, [1])


@for_each_row([(P.REPLY_ACK, True, True), (P.REPLY_ACK, False, False), (P(0), True, False)])
def test_an_acknowledgement_is_given_where_it_is_negotiated_and_asked_for(
    features: ProtocolFeature, need_reply: bool, answered: bool
) -> None:
    message = encode_request(R.SET_FEATURES, 0, need_reply=need_reply)
    assert Negotiated(protocol_features=features).is_answered(R.SET_FEATURES, message) is answered


@for_each([False, True])
def test_a_request_with_a_reply_of_its_own_is_always_answered(need_reply: bool) -> None:
    assert Negotiated().is_answered(R.GET_QUEUE_NUM, encode_request(R.GET_QUEUE_NUM, need_reply=need_reply))


def test_a_memory_table_is_answered_with_addresses_after_postcopy_listen() -> None:
    message = encode_request(R.SET_MEM_TABLE, (REGION,), [-1])
    assert not Negotiated().is_answered(R.SET_MEM_TABLE, message)
    assert Negotiated(postcopy=True).is_answered(R.SET_MEM_TABLE, message)


@for_each([R.SET_MEM_TABLE, R.ADD_MEM_REG])
def test_the_front_end_acknowledges_those_addresses_with_a_number(request_: FrontEndRequest) -> None:
    """As QEMU 11.1 does; the same with a region is an ordinary request."""
    assert is_postcopy_acknowledgement(Message(request_, VERSION, bytes(8)))
    region = payloads.REGION.encode(REGION)
    assert not is_postcopy_acknowledgement(Message(request_, VERSION, region, [-1]))


def test_set_log_base_is_answered_where_the_log_is_shared() -> None:
    message = encode_request(R.SET_LOG_BASE, payloads.Log(16384, 0), [-1])
    assert not message.needs_reply
    assert Negotiated(protocol_features=P.LOG_SHMFD).is_answered(R.SET_LOG_BASE, message)
    assert not Negotiated().is_answered(R.SET_LOG_BASE, message)


def test_a_message_needs_its_feature() -> None:
    assert not Negotiated().allows(R.GET_CONFIG)
    assert Negotiated(protocol_features=P.CONFIG).allows(R.GET_CONFIG)
    assert not Negotiated(protocol_features=P(~0 & 0xFFFFFF)).allows(R.IOTLB_MSG)
    assert Negotiated(VirtioFeature.ACCESS_PLATFORM).allows(R.IOTLB_MSG)


@for_each([R.GET_PROTOCOL_FEATURES, R.SET_VRING_ENABLE])
def test_protocol_features_are_asked_for_before_their_bit_is_acknowledged(request_: FrontEndRequest) -> None:
    """QEMU and libblkio begin with GET_PROTOCOL_FEATURES; virtio_user enables rings without the bit."""
    assert Negotiated().allows(request_)


@for_each(
    [
        P.INBAND_NOTIFICATIONS | P.REPLY_ACK,
        P.INBAND_NOTIFICATIONS | P.BACKEND_REQ,
        P.GET_VRING_BASE_INFLIGHT,
        P.GET_VRING_BASE_SKIP_DRAIN | P.INFLIGHT_SHMFD,
    ]
)
def test_a_feature_without_what_it_needs_ends_the_connection(features: ProtocolFeature) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_protocol_features(features)
    assert caught.value.fatal


def test_unknown_feature_bits_are_kept() -> None:
    check_protocol_features(P.INBAND_NOTIFICATIONS | P.REPLY_ACK | P.BACKEND_REQ | P(1 << 60))
    assert P(1 << 60).value == 1 << 60


@given(payload_size=st.integers(MAX_PAYLOAD + 1, 2**32 - 1))
def test_a_size_beyond_all_messages_ends_the_connection(payload_size: int) -> None:
    framer = Framer(Message, max_fds=MAX_FDS)
    framer.feed(HEADER.pack(R.GET_FEATURES, VERSION, payload_size))
    with pytest.raises(BadFrame) as caught:
        framer.next()
    assert caught.value.fatal


def test_more_descriptors_than_any_message_has_are_closed_and_end_the_connection() -> None:
    framer = Framer(Message, max_fds=MAX_FDS)
    before = len(list(Path("/proc/self/fd").iterdir()))
    framer.feed(Message(R.SET_OWNER).encode(), [os.dup(0) for _ in range(MAX_FDS + 1)])
    with pytest.raises(BadFrame) as caught:
        framer.next()
    assert caught.value.fatal
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=64), st.integers(1, 12))
def test_a_message_survives_any_cutting_of_the_stream(number: int, flags: int, payload: bytes, step: int) -> None:
    message = Message(number, flags, payload)
    data, framer = message.encode(), Framer(Message)
    assert data[:12] == struct.pack("<III", number, flags, len(payload))
    for at in range(0, len(data), step):
        assert framer.next() is None
        framer.feed(data[at : at + step])
    assert framer.next() == message
