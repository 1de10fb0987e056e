"""Every device that can be served by name has a JSON description, and the wheel installs it where programs look."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.cases import for_each, for_each_row
from vfio_user.device import PciDevice
from vfio_user.server import catalogue as server
from vhost_user.backend import catalogue as backend

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Protocol(NamedTuple):
    """What a protocol's specification wants of the programs that serve its devices."""

    group: str
    folder: str
    binary: str
    own: Mapping[str, str]
    """What its catalogue knows by itself."""


PROTOCOLS = (
    Protocol("vfio_user.devices", "share/vfio-user", "vfio-user", server.OWN),
    Protocol("vhost_user.devices", "share/qemu/vhost-user", "vhost-user", backend.OWN),
)


def devices(protocol: Protocol) -> set[str]:
    return set(PROJECT["project"]["entry-points"][protocol.group])


def installed(protocol: Protocol) -> dict[str, Path]:
    paths = [ROOT / path for path in PROJECT["tool"]["setuptools"]["data-files"][protocol.folder]]
    return {path.stem: path for path in paths}


@for_each_row([(protocol, name) for protocol in PROTOCOLS for name in sorted(devices(protocol))])
def test_a_device_is_described_and_its_description_is_installed(protocol: Protocol, name: str) -> None:
    description = json.loads(installed(protocol)[name].read_text())
    kind = "pci" if protocol.binary == "vfio-user" else {"blk": "block"}.get(name, name)
    assert (description["type"], description["binary"]) == (kind, protocol.binary)
    assert description["arguments"] == ["serve", name]
    assert description["description"]
    assert isinstance(description["features"], list)


@for_each(PROTOCOLS)
def test_nothing_is_described_that_cannot_be_served(protocol: Protocol) -> None:
    assert installed(protocol).keys() == devices(protocol)


def test_every_description_in_the_tree_is_installed() -> None:
    known = {path for protocol in PROTOCOLS for path in installed(protocol).values()}
    assert set((ROOT / "servers").rglob("*.json")) == known


@for_each(PROTOCOLS, ids=lambda protocol: protocol.binary)
def test_our_own_names_mean_the_same_whether_looked_up_or_known(protocol: Protocol) -> None:
    assert protocol.own == PROJECT["project"]["entry-points"][protocol.group]


def test_a_device_whose_module_has_no_file_is_described_by_its_first_words() -> None:
    """As one has that is typed in."""
    for words, told in (("  A card.\n\n    More of it.", "A card."), (None, "Typed")):
        for module in ("builtins", "nowhere"):
            typed = type("Typed", (PciDevice,), {"__module__": module, "__doc__": words})
            assert server.DEVICES.description(typed)["description"] == told


@for_each(["vfio_user.server.catalogue:edu", "vhost_user.backend.catalogue:rng"])
def test_a_device_of_ours_is_found_without_a_look_at_what_is_installed(device: str) -> None:
    """That takes a sixth of what a start takes."""
    module, _, name = device.partition(":")
    program = (
        f"import sys; from {module} import DEVICES; DEVICES.find({name!r}); print('importlib.metadata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
