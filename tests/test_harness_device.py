"""What a device's words come to: whose it is, how its server is started, and whose fault it is when it is not had."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from userdev.errors import UserError
from vfio_user.harness import server
from vfio_user.harness.attachment import Attachment
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.family import VFIO_USER, VHOST_USER
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.server import DeviceServer, ServerError, ServerFailure


def test_a_command_that_runs_our_package_is_ours_and_one_that_only_names_it_is_not() -> None:
    words = {
        "edu": True,
        "python -m vfio_user serve edu --socket-path {socket}": True,
        "/opt/vfio_user-server {socket}": False,
        "qemu:edu": False,
    }
    for text, ours in words.items():
        assert Device.parse(text).is_ours is ours, text


def test_paths_of_a_command_stay_one_word_each_whatever_is_in_them() -> None:
    path = Path("/tmp/it's a lab/dev.sock")
    command = server_command(Device(command="srv {socket} --state {scratch}/state"), path)
    assert command == ["srv", str(path), "--state", f"{path.parent}/state"]
    ours = server_command(Device(served="edu", options=("--state", "{scratch}/state")), path)
    assert ours[-2:] == ["--state", f"{path.parent}/state"]


def test_a_program_that_is_named_for_each_host_is_not_looked_for_on_this_one() -> None:
    for text in ("/opt/{host}/srv {socket}", "edu", "sh {socket}"):
        Device.parse(text).require_program()
    for text, said in (("/none/such/srv {socket}", "/none/such/srv: "), ("./none/srv {socket}", f" in {Path.cwd()}: ")):
        with pytest.raises(UserError, match=re.escape(said)):
            Device.parse(text).require_program()


def test_a_reason_with_words_that_every_device_has_is_still_the_servers() -> None:
    device = {"driver": "vfio-user-pci", "id": "dev0", "bus": "slot0", "socket": {"path": "/x"}, "x-msg-timeout": 1}
    reasons = {
        "cannot connect to the socket": True,
        "dev0: the id is not known to the driver": True,
        "the bus number of the socket: x-msg-timeout is not a number": False,
    }
    for reason, is_servers in reasons.items():
        assert Attachment(device).blames_server(reason) is is_servers, reason


class StandIn(SimpleNamespace):
    """A process that is none; each is another."""

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


@pytest.fixture
def exit_codes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How the next servers end: stand-ins, of which nothing runs."""
    codes: list[int] = []

    def started(device: Device, site: Any, name: str, path: Path, limit: float) -> Any:
        code = codes.pop(0)
        child = StandIn(
            name=name,
            pid=4321,
            exit_code=code,
            log=Path("/dev/null"),
            wait=lambda seconds: code,
            fate=lambda: f"exited with status {code}",
            last_words=lambda: "",
        )
        return SimpleNamespace(child=child, stop=lambda: None)

    monkeypatch.setattr(server, "OwnProcess", started)
    return codes


def site(folder: Path, *, shares_memory: bool = True) -> Any:
    host = SimpleNamespace(name="there", shares_memory=shares_memory)
    return SimpleNamespace(host=host, scratch=SimpleNamespace(socket_path=lambda name: folder / name))


def test_only_a_server_of_ours_says_by_its_status_that_it_cannot_be_had(exit_codes: list[int], tmp_path: Path) -> None:
    cases: list[tuple[Device, int, type[Exception]]] = [
        (Device(served="edu"), 2, ServerError),
        (Device(served="edu"), 1, ServerFailure),
        (Device(command="srv {socket}"), 2, ServerFailure),
    ]
    for device, code, wrong in cases:
        exit_codes.append(code)
        with pytest.raises(wrong):
            DeviceServer(device, site(tmp_path), "dev").check()


def test_an_interposer_is_told_a_servers_process_only_where_that_is_one_of_this_machines(
    exit_codes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the number is that of what leads there, and another's where it is used."""
    told: list[list[str]] = []

    def interposer(site: Any, name: str, family: Any, upstream: list[str], *_: Any, **__: Any) -> Any:
        told.append(upstream)
        return SimpleNamespace(path=tmp_path / "it", child=StandIn())

    monkeypatch.setattr(server, "InterposerProcess", interposer)
    for here in (True, False):
        exit_codes.append(0)
        DeviceServer(
            Device(served="edu"), cast(Any, site(tmp_path, shares_memory=here)), "dev", interposition=Interposition()
        )
        assert ("4321" in told[-1]) is here, shlex.join(told[-1])


def test_the_protocol_of_anybodys_server_is_that_of_the_device_which_its_properties_name() -> None:
    protocols = {
        "srv {socket}": VFIO_USER,
        "srv {socket} [x-msg-timeout=5]": VFIO_USER,
        "srv {socket} [driver=vhost-user-blk-pci]": VHOST_USER,
        "vhost-user-rng [ats=on]": VHOST_USER,
    }
    for text, family in protocols.items():
        assert Device.parse(text).family is family, text
