"""`vhost-user probe`: what a back-end offers, by name, and what a front-end would stumble over."""

from __future__ import annotations

import json
import re
import socket
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from tests.cases import for_each_row
from tests.vhost.reverse import Reverse
from userdev.errors import UserError
from userdev.transport import Stream
from vfio_user.cli import vhost_probe
from vhost_user.backend import Server
from vhost_user.backend.back_end import BackEnd
from vhost_user.frontend.description import _in_words as in_words
from vhost_user.frontend.description import _problems as problems_of
from vhost_user.wire import ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import Config

probe = vhost_probe.command


def probed(server: Server, *arguments: str) -> Result:
    return CliRunner().invoke(probe, [str(server.listener.address), *arguments])


def test_everything_that_is_offered_is_named(server: Server) -> None:
    said = json.loads(probed(server, "--json").output)
    assert {"bit 5", "bit 50", "VERSION_1", "RING_PACKED", "PROTOCOL_FEATURES"} <= set(said["features"])
    assert {"MQ", "REPLY_ACK", "CONFIG", "INFLIGHT_SHMFD"} <= set(said["protocol_features"])
    assert said["queues"] == 2
    assert said["memory_slots"] > 0
    assert bytes.fromhex(said["config"]).rstrip(b"\0") == b"\7\0\0\0\0\0\0\0\1"
    assert said["problems"] == []


def test_a_back_end_that_cannot_be_described_is_named_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """That a device of one's own may be another program's is no advice."""

    def hung_up() -> Stream:
        ours, theirs = socket.socketpair()
        theirs.close()
        return Stream(ours)

    target = SimpleNamespace(connect=hung_up)
    monkeypatch.setattr(vhost_probe, "server", lambda *_, **__: nullcontext(target))
    cases = {("--device", "rng"): ("rng: ", False), ("s.sock",): ("s.sock: ", True)}
    for words, (begins, names_another) in cases.items():
        error = CliRunner().invoke(probe, words).exception
        assert isinstance(error, UserError), words
        assert str(error).startswith(begins), words
        assert ("`vfio-user probe" in error.hint) is names_another, words
        assert "its log should say why" in error.hint, words


def test_nothing_of_the_device_is_started(server: Server, device: Reverse) -> None:
    assert probed(server).exception is None
    assert not any(event.startswith("start") for event in device.events)


def test_what_is_not_told_is_said_so_and_what_one_stumbles_over_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = VirtioFeature.PROTOCOL_FEATURES
    some = ProtocolFeature.LOG_SHMFD | ProtocolFeature.CONFIG | ProtocolFeature.INBAND_NOTIFICATIONS
    monkeypatch.setattr(BackEnd, "features", offered)
    monkeypatch.setattr(BackEnd, "protocol_features", some)
    said = json.loads(probed(server, "--json").output)
    assert said["queues"] is said["memory_slots"] is None
    about = ("VERSION_1", "REPLY_ACK", "LOG_SHMFD", "CONFIG", "protocol features that need")
    assert [problem.startswith(name) for problem, name in zip(said["problems"], about, strict=True)] == [True] * 5
    lines = probed(server).output.splitlines()
    assert sum(line.startswith("! ") for line in lines) == 5
    assert any(line.startswith("queues:") and line.endswith("not told") for line in lines)


P, V = ProtocolFeature, VirtioFeature
SOUND = V.VERSION_1 | V.PROTOCOL_FEATURES | V.LOG_ALL, P.REPLY_ACK | P.LOG_SHMFD | P.CONFIG | P.BACKEND_REQ


@for_each_row(
    [
        (*SOUND, []),
        (SOUND[0] & ~V.VERSION_1, SOUND[1], ["VERSION_1"]),
        (SOUND[0], SOUND[1] & ~P.REPLY_ACK, ["REPLY_ACK"]),
        (SOUND[0] & ~V.LOG_ALL, SOUND[1], ["LOG_SHMFD"]),
        (SOUND[0] & ~V.LOG_ALL, SOUND[1] & ~P.LOG_SHMFD, []),
        (SOUND[0], SOUND[1] & ~P.BACKEND_REQ, ["CONFIG"]),
        (SOUND[0], SOUND[1] & ~(P.BACKEND_REQ | P.CONFIG), []),
        (V.VERSION_1, P(0), []),
        (SOUND[0], SOUND[1] | P.INBAND_NOTIFICATIONS, []),
        (SOUND[0], SOUND[1] | P.GET_VRING_BASE_INFLIGHT, ["protocol features that need each other"]),
    ]
)
def test_each_problem_is_told_where_it_is_one_and_nowhere_else(
    features: VirtioFeature, protocol: ProtocolFeature, about: list[str]
) -> None:
    """A back-end without protocol features has none that could be missing."""
    told = [re.split(" is |:", problem)[0] for problem in problems_of(features, protocol)]
    assert told == about


def test_configuration_is_read_of_a_back_end_that_gives_none_where_more_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qemu-storage-daemon 11.1.3."""

    def get_config(back_end: BackEnd, wanted: Config, _: list[int]) -> Config:
        space = back_end.model.config.read()
        data = space[: wanted.size] if wanted.size <= len(space) else b""
        return wanted._replace(size=len(data), data=data)

    from vhost_user.backend.commands import COMMANDS
    from vhost_user.wire import FrontEndRequest

    commands = {**COMMANDS, FrontEndRequest.GET_CONFIG: get_config}
    monkeypatch.setattr("vhost_user.backend.session.COMMANDS", commands)
    assert bytes.fromhex(json.loads(probed(server, "--json").output)["config"]) == b"\7" + bytes(7)


def test_configuration_is_told_with_the_zeros_counted_that_are_behind_it() -> None:
    words = {"": "", "0700": "07, then 1 zero", "0007": "00 07", "0000": "2 zeros"}
    for config, said in words.items():
        assert in_words(bytes.fromhex(config)) == said, config


def test_one_that_does_not_answer_is_no_verdict_but_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen()
        result = CliRunner().invoke(probe, [str(path), "--timeout", "0.05"])
    assert isinstance(result.exception, UserError)
    assert "GET_FEATURES" in str(result.exception)
    assert "another front-end" in result.exception.hint
