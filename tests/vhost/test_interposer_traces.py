"""`vhost-user trace show` and `export`: a recorded session for people, Wireshark and Perfetto."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from tests.vhost.between import B, Between, R, V, channel
from tests.wireshark import Wireshark
from userdev.errors import UserError
from userdev.relay import Direction
from userdev.trace import Note, View, read_trace
from userdev.trace.exchanges import Exchange, Place
from userdev.trace.perfetto import INTERPOSER
from vfio_user.cli import cli, vhost_user_cli
from vhost_user.interposer.asker import REQUESTS, Asker, name_of
from vhost_user.interposer.decode import describe, known_fields, place_of
from vhost_user.interposer.reading import VhostReading
from vhost_user.interposer.traces import PACKETS, PROTOCOL, MessageRecord
from vhost_user.wire import (
    HEADER_SIZE,
    NO_FD,
    REPLY,
    VERSION,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    VirtioFeature,
    acknowledge,
    encode_reply,
    encode_request,
)
from vhost_user.wire.messages import shape_of
from vhost_user.wire.payloads import Config, Number, Opaque, Region, VringAddress, VringState


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session with a bit of everything."""
    path = tmp_path_factory.mktemp("trace") / "session.trace"
    memory = os.memfd_create("guest")
    os.truncate(memory, 4096)
    with Between(path) as between:
        between.negotiate(V.VERSION_1 | V.EVENT_IDX | V.PROTOCOL_FEATURES | V(1 << 6))
        with channel(between) as (front_end, back_end):
            back_end.send(encode_request(B.CONFIG_CHANGE_MSG, need_reply=True))
            front_end.receive()
            front_end.send(acknowledge(B.CONFIG_CHANGE_MSG))
            back_end.receive()
        between.ask(R.GET_CONFIG, Config(0, 4, 0, bytes(4)), Config(0, 4, 0, b"\1\2\3\4"))
        between.tell(R.SET_MEM_TABLE, (Region(0x1000, 4096, 0x7F0000000000, 0),), [memory])
        between.tell(R.SET_VRING_NUM, VringState(1, 256))
        between.tell(R.SET_VRING_ADDR, VringAddress(1, 0, 0x1000, 0x2000, 0x3000, 0))
        between.start_ring(1)
        between.acknowledged(R.SET_VRING_ENABLE, VringState(1, 1), error=22)
        between.front_end.socket.send(b"\xff" * 30)
        between.back_end.receive_bytes(30)
    os.close(memory)
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(vhost_user_cli, ["trace", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def shown(trace: Path, *options: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in run("show", trace, "--json", *options).splitlines()]


def one(trace: Path, command: str, kind: str) -> dict[str, object]:
    [found] = [line for line in shown(trace, "--command", command) if line["kind"] == kind]
    return found


# -- shown


def test_messages_are_shown_by_their_names(trace: Path) -> None:
    text = run("show", trace)
    for words in (
        "GET_FEATURES reply features=EVENT_IDX|PROTOCOL_FEATURES|VERSION_1|0x40",
        "SET_PROTOCOL_FEATURES posted protocol_features=REPLY_ACK|BACKEND_REQ|CONFIG",
        "SET_MEM_TABLE posted entries=[guest_address=0x1000 size=4096 user_address=0x7f0000000000 mmap_offset=0x0]"
        " fds[memfd 4096 bytes",
        "SET_VRING_NUM posted vring=1 num=256",
        "SET_VRING_KICK posted vring=1 fds[eventfd]",
        "SET_VRING_ENABLE error result=EINVAL",
        "<= BACKEND_CONFIG_CHANGE_MSG",
        "=> BACKEND_CONFIG_CHANGE_MSG reply result=0",
    ):
        assert words in text


def test_the_address_of_a_guest_is_shown_in_the_order_of_its_bytes() -> None:
    address = bytes.fromhex("525400123456")
    said = encode_request(R.SEND_RARP, int.from_bytes(address, "little"))
    assert describe(Asker.FRONT_END, said).fields == {"mac": "52:54:00:12:34:56"}


def test_programs_are_told_the_fields(trace: Path) -> None:
    table = one(trace, "SET_MEM_TABLE", "posted")
    assert table["entries"] == [
        {"guest_address": "0x1000", "size": 4096, "user_address": "0x7f0000000000", "mmap_offset": "0x0"}
    ]
    assert [fd["kind"] for fd in table["fds"]] == ["memfd"]  # type: ignore[attr-defined]
    assert one(trace, "GET_CONFIG", "reply")["data"] == "01020304"
    refused = one(trace, "SET_VRING_ENABLE", "request")["answer"]
    assert isinstance(refused, dict)
    assert refused["error"] == "EINVAL"
    assert refused.keys() == {"error", "record", "latency"}


def test_the_back_ends_channel_is_its_own_in_both_directions(trace: Path) -> None:
    lines = shown(trace, "--command", "BACKEND_CONFIG_CHANGE_MSG")
    assert [(line["channel"], line["direction"]) for line in lines] == [
        ("back-end", "to-client"),
        ("back-end", "to-server"),
    ]
    assert lines[1]["request"] == lines[0]["record"]


def test_a_reply_says_what_it_answers_and_how_long_it_took(trace: Path) -> None:
    request, reply = shown(trace, "--command", "GET_CONFIG")
    assert reply["request"] == request["record"]
    assert 0 < float(str(reply["latency"])) < 1


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--command", "set_vring_num"], 1),
        (["--command", "VHOST_USER_GET_CONFIG"], 2),
        (["--ring", "1"], 4),
        (["--ring", "0"], 0),
        (["--direction", "to-client", "--command", "GET_CONFIG"], 1),
    ],
)
def test_filters_select(trace: Path, options: list[str], count: int) -> None:
    assert len(shown(trace, *options)) == count


@pytest.mark.parametrize("wrong", [["--command", "SET_VRING_NUN"], ["--region", "BAR0"], ["--registers", "edu"]])
def test_wrong_filters_are_refused(trace: Path, wrong: list[str]) -> None:
    with pytest.raises(UserError):
        run("show", trace, *wrong)


def test_either_command_shows_traces_of_either_protocol(trace: Path) -> None:
    assert CliRunner().invoke(cli, ["trace", "show", str(trace)]).output == run("show", trace)


def test_what_a_ring_is_of_is_refused_for_a_trace_of_the_other_protocol(tmp_path: Path) -> None:
    from tests.interposer_bench import Bench

    with Bench(trace=tmp_path / "vfio") as bench:
        bench.negotiate()
    with pytest.raises(UserError, match="--ring"):
        run("show", tmp_path / "vfio", "--ring", "0")


# -- exported


def test_json_holds_every_entry(trace: Path, tmp_path: Path) -> None:
    run("export", trace, "--format", "json", "-o", tmp_path / "j")
    assert len(json.loads((tmp_path / "j").read_text())) == len(shown(trace))


def test_the_picture_has_the_channel_in_a_lane_of_its_own(trace: Path, tmp_path: Path) -> None:
    run("export", trace, "--format", "perfetto", "-o", tmp_path / "p")
    events = json.loads((tmp_path / "p").read_text())["traceEvents"]
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    asked = {event["name"]: lanes[event["tid"]] for event in events if event["ph"] == "X"}
    assert asked["GET_CONFIG"] == "front-end to back-end"
    assert asked["BACKEND_CONFIG_CHANGE_MSG"] == "back-end's channel"
    noted = {event["name"]: lanes[event["tid"]] for event in events if event["ph"] == "i"}
    assert noted["connected"] == noted["disconnected"] == INTERPOSER


def test_the_dissector_has_the_names_of_the_tables() -> None:
    text = PACKETS.dissector.read_text()
    for name, asker in (("FRONT_END", Asker.FRONT_END), ("BACK_END", Asker.BACK_END)):
        assert lua_names(text, name) == [known for known, each in REQUESTS.items() if isinstance(each, asker.requests)]
    assert lua_names(text, "PROTOCOL_FEATURES") == [feature.name for feature in ProtocolFeature]
    assert lua_names(text, "FEATURES") == [feature.name for feature in VirtioFeature]


def lua_names(text: str, table: str) -> list[str]:
    [found] = re.findall(rf"^local {table} = {{(.*?)^}}", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"(\w+)"', found)


@pytest.mark.network
@pytest.mark.timeout(600)
def test_wireshark_decodes_the_pcapng_file_with_our_dissector(trace: Path, tmp_path: Path) -> None:
    packets = tmp_path / "packets"
    run("export", trace, "--format", "pcapng", "-o", packets)
    wireshark = Wireshark.unpacked(tmp_path / "root")

    def rows(wanted: str, *names: str) -> list[list[str]]:
        return wireshark.fields(PACKETS.dissector, packets, wanted, *names)

    ring = rows("vhost_user.vring == 1", "vhost_user.name")
    assert [name for [name] in ring] == ["SET_VRING_NUM", "SET_VRING_ADDR", "SET_VRING_KICK", "SET_VRING_ENABLE"]
    agreed = rows('vhost_user.name == "SET_PROTOCOL_FEATURES"', "vhost_user.features", "vhost_user.fd.kind")
    assert agreed == [["REPLY_ACK|BACKEND_REQ|CONFIG", ""]]
    [[region, kind]] = rows('vhost_user.name == "SET_MEM_TABLE"', "vhost_user.guest_address", "vhost_user.fd.kind")
    assert (int(region, 16), kind) == (0x1000, "2")
    assert rows("vhost_user.channel == 1 && vhost_user.reply == 1", "vhost_user.name") == [
        ["BACKEND_CONFIG_CHANGE_MSG"]
    ]
    assert rows('vhost_user.name == "GET_CONFIG" && vhost_user.reply == 1', "vhost_user.data") == [["01020304"]]


# -- read back


def test_messages_are_read_back_as_they_were(tmp_path: Path) -> None:
    with Between(tmp_path / "trace") as between:
        sent = between.tell(R.SET_VRING_NUM, VringState(3, 64))
    entries = read_trace(tmp_path / "trace", PROTOCOL).entries
    assert [entry.message for entry in entries if isinstance(entry, MessageRecord)] == [sent]


def test_what_ended_early_is_shown_up_to_there(trace: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    cut.write_bytes(trace.read_bytes()[:-5])
    told = CliRunner().invoke(vhost_user_cli, ["trace", "show", str(cut)])
    whole, left = run("show", trace).splitlines(), told.stdout.splitlines()
    assert left == whole[: len(left)]
    assert left
    assert "cut off" in told.stderr


# -- taken apart


@for_each(REQUESTS)
def test_every_message_can_be_taken_apart_whatever_is_in_it(name: str) -> None:
    asker = Asker.BACK_END if name.startswith("BACKEND_") else Asker.FRONT_END
    request = REQUESTS[name]
    for flags in (VERSION, VERSION | REPLY):
        for payload in (b"", bytes(8), bytes(range(40)), b"\xff" * 300):
            found = describe(asker, Message(request, flags, payload))
            assert found.command == name
            assert found.text()
            json.dumps(found.json())


def test_a_payload_that_cannot_be_read_is_shown_as_it_is_with_the_reason() -> None:
    found = describe(Asker.FRONT_END, Message(R.SET_VRING_NUM, VERSION, b"odd"))
    assert found.data == b"odd"
    assert found.problem


def test_an_unknown_request_has_its_number() -> None:
    for asker in Asker:
        found = describe(asker, Message(99, VERSION, b"what"))
        assert (found.command, found.kind, found.data) == ("request-99", "request", b"what")
        assert describe(asker, Message(99, VERSION | REPLY)).kind == "reply"


@for_each(REQUESTS)
def test_a_number_and_bytes_are_shown_as_such(name: str) -> None:
    """What a request is, and what it is answered with beside an acknowledgement."""
    asker = Asker.BACK_END if name.startswith("BACKEND_") else Asker.FRONT_END
    shape = shape_of(REQUESTS[name])
    payloads = {VERSION: shape.payload, VERSION | REPLY: shape.reply_payload}
    for flags, payload in payloads.items():
        message = Message(REQUESTS[name], flags, (5).to_bytes(8, "little"))
        found = describe(asker, message)
        if isinstance(payload, Number):
            [(field, shown)] = found.fields.items()
            assert place_of(asker, message, field) == (HEADER_SIZE, 8)
            assert field != "result" or message.is_reply
            assert (field == "result") is (shown == "EIO") is (found.kind == "error")
            assert found.value == (None if field in ("result", "vring") else 5)
        elif isinstance(payload, Opaque):
            assert (found.data, found.fields) == (message.payload, {})


@for_each_row([(b"\7", "= 0x7"), (b"\7\1\0\0", "= 0x107"), (bytes(8), "= 0x0"), (b"abc", "616263")])
def test_configuration_is_shown_as_the_number_that_it_is(data: bytes, shown: str) -> None:
    found = describe(Asker.FRONT_END, encode_request(R.SET_CONFIG, Config(4, len(data), 1, data)))
    assert found.text().endswith(shown)
    assert found.fields == {"offset": "0x4", "size": len(data), "flags": 1}


@for_each_row([(0, "0x0"), (V.VERSION_1, "VERSION_1"), (1 << 6, "0x40"), (V.VERSION_1 | V(1 << 6), "VERSION_1|0x40")])
def test_bits_are_shown_by_their_names_and_those_without_one_as_a_number(bits: int, shown: str) -> None:
    assert describe(Asker.FRONT_END, encode_request(R.SET_FEATURES, bits)).fields == {"features": shown}


def test_a_ring_without_a_descriptor_is_that_ring() -> None:
    found = describe(Asker.FRONT_END, encode_request(R.SET_VRING_CALL, 2 | NO_FD))
    assert found.ring == 2
    assert "no descriptor" in found.text()


@for_each([name for name in REQUESTS if "VRING" in name])
def test_each_message_about_a_ring_says_which(name: str) -> None:
    asker = Asker.BACK_END if name.startswith("BACKEND_") else Asker.FRONT_END
    [(_, layout)] = shape_of(REQUESTS[name]).payload.layouts()
    found = describe(asker, Message(REQUESTS[name], VERSION, (5 | NO_FD).to_bytes(layout.size, "little")))
    assert (found.ring, found.detail) == (5, "ring 5")


RING_1 = {"ring": 1, "detail": "ring 1"}
CONFIG_4 = {"region": "config", "offset": 4, "size": 4}


@for_each_row(
    [
        (Asker.FRONT_END, encode_request(R.SET_VRING_NUM, VringState(1, 9)), {"kind": "posted", **RING_1}, None),
        (
            Asker.FRONT_END,
            encode_request(R.SET_VRING_NUM, VringState(1, 9), need_reply=True),
            {"kind": "request", **RING_1},
            None,
        ),
        (Asker.FRONT_END, encode_request(R.SET_FEATURES, 5), {"kind": "posted"}, 5),
        (
            Asker.FRONT_END,
            encode_request(R.GET_CONFIG, Config(4, 4, 0, bytes(4))),
            {"kind": "request", **CONFIG_4},
            None,
        ),
        (
            Asker.FRONT_END,
            encode_request(R.SET_CONFIG, Config(4, 4, 0, b"\7\0\0\0")),
            {"kind": "posted", "writes": True, **CONFIG_4},
            7,
        ),
        (Asker.BACK_END, encode_request(B.CONFIG_CHANGE_MSG), {"kind": "posted"}, None),
        (Asker.BACK_END, encode_request(B.VRING_CALL, VringState(1, 0)), {"kind": "posted", **RING_1}, None),
    ]
)
def test_what_a_request_is_about(asker: Asker, message: Message, place: dict[str, Any], number: int | None) -> None:
    """As what counts and compares traces has it: one object for all that are about the same."""
    reading, record = VhostReading(), b"before" + message.encode()
    found = reading.asked(record, 6, asker.value << 1 | asker.asking)
    assert found is not None
    about = Place(name_of(asker.requests(message.request)), direction=asker.asking, channel=asker.label, **place)
    assert asdict(found[0]) == asdict(about)
    assert found[1] == number
    again = reading.asked(message.encode(), 0, asker.value << 1 | asker.asking)
    assert again is not None
    assert again[0] is found[0]


@for_each_row(
    [
        (R.GET_FEATURES, encode_reply(R.GET_FEATURES, 5), 5, ""),
        (R.GET_CONFIG, encode_reply(R.GET_CONFIG, Config(4, 4, 0, b"\7\0\0\0")), 7, ""),
        (R.GET_CONFIG, encode_reply(R.GET_CONFIG, Config(4, 3, 0, b"\7\0\0")), None, ""),
        (R.SET_OWNER, acknowledge(R.SET_OWNER), None, ""),
        (R.SET_OWNER, acknowledge(R.SET_OWNER, errno.EINVAL), None, "EINVAL"),
        (R.SET_OWNER, acknowledge(R.SET_OWNER, 1 << 20), None, str(1 << 20)),
        (R.GET_VRING_BASE, encode_reply(R.GET_VRING_BASE, VringState(1, 3)), None, ""),
    ]
)
def test_what_a_reply_says(said: FrontEndRequest, reply: Message, value: int | None, error: str) -> None:
    exchange = Exchange(Place(said.name, "request", Direction.TO_SERVER), 1, 0, 3)
    VhostReading().answer(exchange, b"before" + reply.encode(), 6)
    assert (exchange.value, exchange.error) == (value, error)
    assert VhostReading().asked(reply.encode(), 0, 1) is None


def test_what_is_read_again_and_again_is_taken_apart_once_as_long_as_it_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others are right each time, and kept nowhere."""
    monkeypatch.setattr("vhost_user.interposer.reading.MOST_PLACES", 2)
    table = tuple(Region(index, 1, 1, 1) for index in range(3))
    short = [encode_request(R.SET_VRING_NUM, VringState(index, 1)).encode() for index in range(3)]
    long = encode_request(R.SET_MEM_TABLE, table, [0] * 3).encode()
    reading = VhostReading()
    first = [reading.asked(record, 0, 1) for record in (*short[:1], long, *short[1:])]
    again = [reading.asked(record, 0, 1) for record in (*short[:1], long, *short[1:])]
    assert first == again
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, False, True, False]


def test_a_place_of_configuration_space_is_not_kept_for_each_offset_that_a_front_end_can_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vhost_user.interposer.reading.MOST_PLACES", 10)
    reading = VhostReading()
    asked = [reading.asked(encode_request(R.GET_CONFIG, Config(at, 4, 0, bytes(4))).encode(), 0, 0) for at in range(64)]
    places = [found[0] for found in asked if found is not None]
    assert [place.offset for place in places] == [*range(10), *[None] * 54]
    assert len(set(map(id, places))) == 11
    assert {place.title for place in places[10:]} == {"GET_CONFIG config elsewhere"}


def test_no_message_carries_others_and_none_is_an_interrupt() -> None:
    reading, record = VhostReading(), encode_request(R.SET_OWNER).encode()
    assert reading.carried(record, 0, 1) == []
    assert reading.interrupt(Note(1, 0, Direction.TO_SERVER, View.SENT, "mark")) is None
    assert reading.without_id(record) == record


def test_an_acknowledgement_is_no_memory_table() -> None:
    found = describe(Asker.FRONT_END, acknowledge(R.SET_MEM_TABLE, 22))
    assert (found.kind, found.fields) == ("error", {"result": "EINVAL"})


def test_the_addresses_of_postcopy_are_a_table_again() -> None:
    table = (Region(0, 4096, 0x7000, 0),)
    found = describe(Asker.FRONT_END, encode_reply(R.SET_MEM_TABLE, table))
    assert found.fields["entries"][0]["user_address"] == "0x7000"


@for_each_row(
    [
        (encode_request(R.SET_VRING_NUM, VringState(0, 1)), "num", (HEADER_SIZE + 4, 4)),
        (encode_request(R.SET_FEATURES, 1), "features", (HEADER_SIZE, 8)),
        (acknowledge(R.SET_OWNER), "result", (HEADER_SIZE, 8)),
        (encode_request(R.SET_VRING_ADDR, VringAddress(*range(6))), "used", (HEADER_SIZE + 16, 8)),
        (encode_request(R.SET_VRING_ADDR, VringAddress(*range(6))), "payload.flags", (HEADER_SIZE + 4, 4)),
        (encode_request(R.SET_VRING_ADDR, VringAddress(*range(6))), "flags", (4, 4)),
        (encode_request(R.GET_CONFIG, Config(0, 4, 0, b"data")), "data", (HEADER_SIZE + 12, 4)),
        (encode_request(R.SET_OWNER), "num", None),
        (Message(R.SET_VRING_NUM, VERSION, b"odd"), "num", None),
        (Message(R.SET_VRING_NUM, VERSION, b"odd"), "payload.data", (HEADER_SIZE, 3)),
        (Message(99, VERSION, b"what"), "num", None),
        (Message(99, VERSION, b"what"), "data", (HEADER_SIZE, 4)),
    ]
)
def test_a_field_is_found_where_it_is(message: Message, name: str, place: tuple[int, int] | None) -> None:
    assert place_of(Asker.FRONT_END, message, name) == place


def test_a_field_behind_padding_is_where_c_has_it() -> None:
    message = encode_request(B.SHMEM_MAP, tuple_of_mmap(), [1])
    assert place_of(Asker.BACK_END, message, "fd_offset") == (HEADER_SIZE + 8, 8)


def tuple_of_mmap() -> object:
    return shape_of(B.SHMEM_MAP).payload.decode(bytes(40))


def test_an_entry_of_a_table_is_behind_its_head() -> None:
    left, right = socket.socketpair()
    message = encode_request(R.SET_MEM_TABLE, (Region(1, 2, 3, 4),), [left.fileno()])
    assert place_of(Asker.FRONT_END, message, "guest_address") == (HEADER_SIZE + 8, 8)
    left.close()
    right.close()


def test_the_known_fields_are_those_of_all_messages() -> None:
    assert {"vring", "num", "guest_address", "features", "status", "iova", "result", "data"} <= known_fields()
    assert "lenght" not in known_fields()


def test_a_reply_is_an_error_by_its_number_and_not_by_the_bit_that_there_is_no_descriptor() -> None:
    for request in (R.SET_DEVICE_STATE_FD, R.CHECK_DEVICE_STATE):
        for value, kind in ((0, "reply"), (0x100, "reply"), (1, "error"), (0x101, "error"), (22, "error")):
            assert describe(Asker.FRONT_END, acknowledge(request, value)).kind == kind, (request, value)


def test_the_size_of_a_log_that_was_taken_is_no_error() -> None:
    """The specification has no payload for the reply to SET_LOG_BASE: QEMU's storage daemon and passt send the size."""
    for value, kind in ((0, "reply"), (4096, "reply"), (16384, "reply"), (errno.EINVAL, "error"), (4095, "error")):
        assert describe(Asker.FRONT_END, acknowledge(R.SET_LOG_BASE, value)).kind == kind, value
