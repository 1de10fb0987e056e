"""Somebody else's server is looked at before QEMU has it: once for what it is, and never where it cannot matter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

from userdev.errors import UserError
from vfio_user.harness import first_look
from vfio_user.harness.artifacts import Timeline
from vfio_user.harness.device import Device
from vfio_user.harness.family import VhostUser
from vfio_user.harness.first_look import FirstLook
from vfio_user.harness.server import _not_up

FAR, HERE = (SimpleNamespace(host=SimpleNamespace(shares_memory=near)) for near in (False, True))


class Started:
    """A server that was started for a look."""

    path = Path("/tmp/a.sock")
    stopped = 0

    def __init__(self, device: Device, site: object, name: str) -> None:
        self.device = device

    def stop(self) -> None:
        Started.stopped += 1


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The properties with which servers were looked at."""
    found: list[Any] = []
    monkeypatch.setattr(first_look, "DeviceServer", Started)
    monkeypatch.setattr(Started, "stopped", 0)
    monkeypatch.setattr(VhostUser, "check_server", lambda _, version, name, path, properties: found.append(properties))
    return found


def test_it_is_taken_once_for_a_command_and_the_properties_of_its_device(looks: list[Any]) -> None:
    first = FirstLook(lambda: Version("11.1.3"), Timeline())
    for device, site, count in (
        ("./server {socket} [driver=vhost-user-rng-pci]", FAR, 0),
        ("./server {socket} [driver=vhost-user-rng-pci]", HERE, 1),
        ("./server {socket} [driver=vhost-user-rng-pci]", HERE, 1),
        ("./server {socket} [driver=vhost-user-rng-pci,iommu_platform=on]", HERE, 2),
        ("./other {socket} [driver=vhost-user-rng-pci]", HERE, 3),
        ("vhost-user-rng", HERE, 3),
    ):
        first.take(Device.parse(device), "rng", site)  # type: ignore[arg-type]
        assert len(looks) == Started.stopped == count


def test_what_is_refused_is_stopped(looks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("it would not survive")

    monkeypatch.setattr(VhostUser, "check_server", refuse)
    with pytest.raises(UserError):
        FirstLook(lambda: Version("11.1.3"), Timeline()).take(
            Device.parse("./server {socket} [driver=vhost-user-rng-pci]"),
            "rng",
            HERE,  # type: ignore[arg-type]
        )
    assert Started.stopped == 1


def test_a_server_that_ends_without_a_word_is_named_by_its_command(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    child = SimpleNamespace(name="a.look", log=tmp_path / "log", exit_code=1, fate=lambda: "exited with status 1")
    error = _not_up(Device.parse("./my-server {socket}"), child)  # type: ignore[arg-type]
    assert "`./my-server {socket}` exited with status 1" in str(error)
    assert "a.look" not in f"{error} {error.hint}"
