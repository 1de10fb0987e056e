"""A server of the other protocol, which speaks vhost-user and not vfio-user or the other way round."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.conftest import PATIENCE
from userdev.conformance import CheckResult, Outcome
from userdev.conformance.targets import RunningServer
from userdev.errors import UserError
from userdev.transport import Stream
from userdev_servers.edu import Edu
from userdev_servers.rng import Rng
from vfio_user.cli._other_protocol import speaks_vfio_user
from vfio_user.cli.conformance import command as check
from vfio_user.cli.probe import command as probe
from vfio_user.cli.vhost_conformance import command as check_back_end
from vfio_user.cli.vhost_probe import command as probe_back_end
from vfio_user.client import Client, conformance
from vfio_user.server import Server
from vfio_user.wire import CURRENT
from vhost_user.backend import Server as BackEndServer
from vhost_user.frontend import conformance as of_back_ends

SECONDS = 0.05


@pytest.fixture
def vfio_user(tmp_path: Path) -> Iterator[str]:
    with Server(Edu(), f"unix:{tmp_path / 's'}"):
        yield str(tmp_path / "s")


@pytest.fixture
def vhost_user(tmp_path: Path) -> Iterator[str]:
    with closing(Rng()) as device, BackEndServer(device, f"unix:{tmp_path / 's'}"):
        yield str(tmp_path / "s")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does speak the other protocol answers as late as a busy machine has it."""
    monkeypatch.setattr("vfio_user.cli._other_protocol.SECONDS", PATIENCE)


def one_failure_of_all(results: list[CheckResult[Any]]) -> bool:
    return {result.outcome for result in results[1:]} == {Outcome.NOT_JUDGED} and results[0].outcome is Outcome.FAIL


def test_no_rule_of_vfio_user_is_tried_with_a_vhost_user_back_end(vhost_user: str) -> None:
    target = RunningServer(vhost_user, conformance.greeting(CURRENT), timeout=SECONDS)
    assert one_failure_of_all(list(conformance.run(conformance.CATALOGUE, target, CURRENT, timeout=SECONDS)))


def test_no_rule_of_vhost_user_is_tried_with_a_vfio_user_server(vfio_user: str) -> None:
    target = RunningServer(vfio_user, of_back_ends.greet, timeout=SECONDS)
    assert one_failure_of_all(list(of_back_ends.run(of_back_ends.CATALOGUE, target, timeout=SECONDS)))


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("dialect", ["auto", "draft-v6"])
def test_a_back_end_is_recognized_by_the_probe_for_servers_of_vfio_user(vhost_user: str, dialect: str) -> None:
    error = CliRunner().invoke(probe, [vhost_user, "--dialect", dialect]).exception
    assert isinstance(error, UserError)
    assert f"vhost-user probe {vhost_user}" in error.hint


def test_what_speaks_neither_is_not_taken_for_a_back_end(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        error = CliRunner().invoke(probe, [str(tmp_path / "s"), "--timeout", "0.05"]).exception
    assert isinstance(error, UserError)
    assert "vhost-user" not in error.hint


def test_the_probe_for_back_ends_names_the_one_for_servers_of_vfio_user(vfio_user: str) -> None:
    error = CliRunner().invoke(probe_back_end, [vfio_user, "--timeout", "0.05"]).exception
    assert isinstance(error, UserError)
    assert f"vfio-user probe {vfio_user}" in error.hint
    with Client.connect(f"unix:{vfio_user}") as client:
        assert client.device_info().num_regions, "it serves on"


@pytest.mark.usefixtures("patient")
def test_conformance_names_the_command_of_the_other_protocol_and_has_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server waits for the rest of what is no message to it, and a back-end hangs up."""

    def speaks(connect: Callable[[], Stream], *, timeout: float) -> bool:
        return speaks_vfio_user(connect, timeout=PATIENCE)

    monkeypatch.setattr("vfio_user.cli.vhost_conformance.speaks_vfio_user", speaks)
    server, back_end = str(tmp_path / "server"), str(tmp_path / "back-end")
    with Server(Edu(), f"unix:{server}"), closing(Rng()) as device, BackEndServer(device, f"unix:{back_end}"):
        for command, address, protocol, timeout in (
            (check, back_end, "vhost-user", PATIENCE),
            (check_back_end, server, "vfio-user", 0.2),
        ):
            error = CliRunner().invoke(command, [address, "--timeout", f"{timeout:g}"]).exception
            assert isinstance(error, UserError), protocol
            assert f"{protocol} conformance {address}" in error.hint, protocol


def test_that_no_request_is_tried_without_a_device_is_said(vhost_user: str) -> None:
    for options in ([], ["--device", "rng"]):
        said = CliRunner().invoke(check_back_end, [vhost_user, "--only", "features", "--quiet", *options]).stderr
        assert ("--device" in said) == (not options), options
