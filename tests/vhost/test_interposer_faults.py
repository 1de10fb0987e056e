"""A scenario between a front-end and a back-end: its names are the protocol's, and each act does what it says."""

from __future__ import annotations

import errno
import gc
import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each, for_each_row
from tests.vhost.between import B, Between, R, V, channel
from userdev.errors import UserError
from userdev.trace import Note, read_trace
from userdev.transport import close_all
from vfio_user.cli import vhost_user_cli
from vhost_user.interposer.faults.scenario import Scenario, parse_scenario
from vhost_user.interposer.faults.stage import SessionFaults
from vhost_user.interposer.traces import PROTOCOL
from vhost_user.wire import HEADER_SIZE, Message, acknowledge, encode_reply, encode_request
from vhost_user.wire.payloads import Region, VringState

NUM = VringState(1, 256)


class Faulty(Between):
    """A session that suffers one rule."""

    def __init__(self, act: Any, *, trace: Path | None = None, **match: Any) -> None:
        super().__init__(trace)
        self.signals: list[int] = []
        scenario = Scenario.model_validate({"rules": [{"match": match, "act": act}]})
        self.faults = SessionFaults(self.session, scenario, self.signalled)

    def signalled(self, number: int) -> int:
        self.signals.append(number)
        return 1

    def three(self) -> None:
        """The front-end says three things."""
        for vring in range(3):
            self.front_end.send(encode_request(R.SET_VRING_NUM, VringState(vring, 64)))

    def rings(self, count: int) -> list[int]:
        """The rings that the next messages to the back-end are about."""
        return [self.back_end.receive().payload[0] for _ in range(count)]


# -- the language


@for_each(["SET_VRING_NUM", "set_vring_num", "VHOST_USER_SET_VRING_NUM"])
def test_messages_are_named_as_the_specification_does(name: str) -> None:
    scenario = parse_scenario(f"rules:\n- match: {{command: {name}}}\n  act: drop\n", "good.yaml")
    assert scenario.rules[0].match.command == ["SET_VRING_NUM"]


@for_each_row(
    [
        ("rules:\n- match:\n    command: REGION_READ\n  act: drop\n", 3, "REGION_READ"),
        ("rules:\n- match:\n    command: CONFIG_CHANGE_MSG\n  act: drop\n", 3, "BACKEND_CONFIG_CHANGE_MSG"),
        ("rules:\n- act: drop\n  match:\n    region: BAR0\n", 4, "region"),
        ("rules:\n- act: drop\n  match:\n    ring: 256\n", 4, "255"),
        ("rules:\n- act: drop\n  match:\n    state: STOP_COPY\n", 4, "before-features"),
        ("rules:\n- act:\n    corrupt: {field: iovb, xor: 1}\n", 3, "iova"),
        ("rules:\n- act: wrong-id\n", 2, "wrong-id"),
    ]
)
def test_names_that_the_protocol_does_not_have_are_refused(text: str, line: int, about: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_scenario(text, "bad.yaml")
    assert f"bad.yaml:{line}:" in str(refused.value)
    assert about in str(refused.value)


def test_the_schema_can_be_had() -> None:
    result = CliRunner().invoke(vhost_user_cli, ["interpose", "--print-faults-schema"])
    assert '"ring"' in result.output


# -- what it does


def test_a_message_is_dropped_by_its_name() -> None:
    with Faulty("drop", command="SET_OWNER") as between:
        between.front_end.send(encode_request(R.SET_OWNER))
        between.three()
        assert between.rings(3) == [0, 1, 2]


def test_a_message_is_known_by_its_ring_and_by_its_number() -> None:
    with Faulty("drop", ring=1) as between:
        between.three()
        assert between.rings(2) == [0, 2]
    with Faulty("drop", nth=3) as between:
        between.three()
        assert between.rings(2) == [0, 1]


def test_a_rule_of_a_state_waits_for_it() -> None:
    with Faulty("drop", command="SET_VRING_NUM", state="running") as between:
        between.tell(R.SET_VRING_NUM, NUM)
        between.start_ring()
        between.front_end.send(encode_request(R.SET_VRING_NUM, NUM))
        assert between.back_end.is_silent()


def test_a_late_message_holds_up_those_behind_it() -> None:
    with Faulty({"delay": 0.05}, ring=0) as between:
        began = time.monotonic()
        between.three()
        assert between.rings(3) == [0, 1, 2]
        assert time.monotonic() - began >= 0.05


def test_a_reply_that_is_late_is_late() -> None:
    with Faulty({"delay": 0.05}, direction="to-client") as between:
        began = time.monotonic()
        assert between.ask(R.GET_FEATURES, answer=V.VERSION_1).is_reply
        assert time.monotonic() - began >= 0.05


def test_a_message_stalls_behind_its_header() -> None:
    with Faulty("stall-after-header", ring=1) as between:
        between.three()
        assert between.rings(1) == [0]
        assert between.back_end.receive_bytes(HEADER_SIZE)
        assert between.back_end.is_silent()


@for_each([1, HEADER_SIZE - 1])
def test_a_request_that_goes_in_pieces_waits_for_its_reply_and_teaches_as_others_do(at: int) -> None:
    with Faulty({"split-header": {"at": at, "seconds": 0.001}}) as between:
        between.front_end.send(encode_request(R.GET_QUEUE_NUM))
        between.back_end.receive()
        assert len(between.session.waiting) == 1
        between.back_end.send(encode_reply(R.GET_QUEUE_NUM, 1))
        between.front_end.receive()
        assert len(between.session.waiting) == 0
        between.tell(R.SET_VRING_NUM, NUM)
        assert between.session.model.rings[1].size == 256


def test_a_field_is_corrupted_where_it_is() -> None:
    with Faulty({"corrupt": {"field": "num", "value": 7}}, ring=1) as between:
        assert between.tell(R.SET_VRING_NUM, NUM).payload == encode_request(R.SET_VRING_NUM, VringState(1, 7)).payload


def test_a_feature_is_taken_away() -> None:
    event_idx = 1 << 29
    rule: dict[str, Any] = {"corrupt": {"field": "features", "xor": event_idx}}
    with Faulty(rule, command="GET_FEATURES", kind="reply") as between:
        reply = between.ask(R.GET_FEATURES, answer=V.VERSION_1 | V.EVENT_IDX)
        assert int.from_bytes(reply.payload, "little") == V.VERSION_1


@for_each_row([({"wrong-size": 4000}, 4000), ({"wrong-size": {"by": -3}}, 5)])
def test_a_header_tells_another_size(act: Any, told: int) -> None:
    with Faulty(act, ring=1) as between:
        between.front_end.send(encode_request(R.SET_VRING_NUM, NUM))
        assert int.from_bytes(between.back_end.receive_bytes(20)[8:12], "little") == told


def test_a_message_that_is_cut_short_says_so_in_its_header() -> None:
    with Faulty({"truncate": HEADER_SIZE + 4}, ring=1) as between:
        assert between.tell(R.SET_VRING_NUM, NUM) == Message(R.SET_VRING_NUM, payload=b"\1\0\0\0")


def test_descriptors_are_taken_away_and_added() -> None:
    memory = os.memfd_create("guest")
    for act, count in (("missing-fd", 0), ("extra-fd", 2)):
        with Faulty(act, command="SET_MEM_TABLE") as between:
            between.front_end.send(encode_request(R.SET_MEM_TABLE, (Region(0, 4096, 0, 0),), [memory]))
            arrived = between.back_end.receive()
            assert len(arrived.fds) == count
            close_all(arrived.fds)
    os.close(memory)


def test_a_request_is_refused_here_where_it_asks_for_an_acknowledgement() -> None:
    with Faulty({"reply": "EIO"}, command="SET_OWNER") as between:
        between.negotiate()
        between.front_end.send(encode_request(R.SET_OWNER, need_reply=True))
        assert between.front_end.receive() == acknowledge(R.SET_OWNER, errno.EIO)
        between.front_end.send(encode_request(R.SET_OWNER))
        assert between.front_end.is_silent()
        assert between.back_end.is_silent()


@for_each_row([("client", "back_end"), ("server", "front_end")])
def test_either_side_is_cut_at_a_message(side: str, hears: str) -> None:
    with Faulty([{"close": side}, "drop"], command="SET_OWNER") as between:
        between.front_end.send(encode_request(R.SET_OWNER))
        assert getattr(between, hears).at_end()
        between.until(lambda: between.ended or None)


def test_the_server_is_stopped_and_goes_on() -> None:
    with Faulty({"signal": {"signal": "SIGSTOP", "seconds": 0.01}}, command="SET_OWNER") as between:
        between.tell(R.SET_OWNER)
        between.until(lambda: len(between.signals) == 2 or None)
        assert between.signals == [signal.SIGSTOP, signal.SIGCONT]


def test_the_back_ends_requests_suffer_by_their_names() -> None:
    with Faulty("drop", command="BACKEND_CONFIG_CHANGE_MSG", nth=1) as between, channel(between) as ends:
        front_end, back_end = ends
        for _ in range(2):
            back_end.send(encode_request(B.CONFIG_CHANGE_MSG))
        assert front_end.receive().request == B.CONFIG_CHANGE_MSG
        assert front_end.is_silent()


def test_a_rules_time_is_the_sessions_on_a_channel_that_came_late() -> None:
    for seconds, suffers in ((-1000, False), (1000, True)):
        with Faulty("drop", command="BACKEND_CONFIG_CHANGE_MSG", time={"after": 100}) as between:
            between.session.began -= seconds
            with channel(between) as (front_end, back_end):
                back_end.send(encode_request(B.CONFIG_CHANGE_MSG))
                assert front_end.is_silent() is suffers


def test_requests_of_the_same_number_on_the_other_connection_do_not() -> None:
    """GET_FEATURES is 1, as the back-end's IOTLB_MSG is."""
    with Faulty("drop", command="BACKEND_IOTLB_MSG") as between:
        assert between.ask(R.GET_FEATURES, answer=V.VERSION_1).is_reply


def test_faults_that_are_taken_away_are_so_on_the_channel_too() -> None:
    with Faulty("drop", command="BACKEND_CONFIG_CHANGE_MSG") as between, channel(between) as (front_end, back_end):
        between.faults.remove()
        back_end.send(encode_request(B.CONFIG_CHANGE_MSG))
        assert front_end.receive().request == B.CONFIG_CHANGE_MSG
        with channel(between) as (front_end, back_end):  # and on one that comes later
            back_end.send(encode_request(B.CONFIG_CHANGE_MSG))
            assert front_end.receive().request == B.CONFIG_CHANGE_MSG


def test_nothing_is_kept_of_channels_that_have_ended() -> None:
    with Faulty("drop", command="BACKEND_CONFIG_CHANGE_MSG") as between:
        gone = []
        for _ in range(3):
            with channel(between):
                gone.append(weakref.ref(between.session.channels[0]))
            between.until(lambda: not between.session.channels or None)
        with channel(between):
            gc.collect()
            assert [ref() for ref in gone] == [None] * 3


def test_a_socket_whose_message_is_dropped_is_closed_at_both_ends() -> None:
    with Faulty("drop", command="SET_BACKEND_REQ_FD") as between:
        ours, theirs = between.pair()
        between.front_end.send(encode_request(R.SET_BACKEND_REQ_FD, None, [theirs.fileno()]))
        theirs.close()
        assert ours.at_end()
        ours.close()


def test_the_trace_says_which_rule_did_what(tmp_path: Path) -> None:
    with Faulty("drop", trace=tmp_path / "trace", command="SET_OWNER") as between:
        between.front_end.send(encode_request(R.SET_OWNER))
        between.settle()
    notes = [entry for entry in read_trace(tmp_path / "trace", PROTOCOL).entries if isinstance(entry, Note)]
    assert [note.details["acts"] for note in notes if note.event == "fault"] == [["drop"]]
