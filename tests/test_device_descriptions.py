"""Every device that can be served by name has a JSON description, and the wheel installs it where programs look."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DEVICES: dict[str, str] = PROJECT["project"]["entry-points"]["vfio_user.devices"]


def installed() -> dict[str, Path]:
    patterns = PROJECT["tool"]["setuptools"]["data-files"]["share/vfio-user"]
    return {path.stem: path for pattern in patterns for path in ROOT.glob(pattern)}


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_is_described_and_its_description_is_installed(name: str) -> None:
    description = json.loads(installed()[name].read_text())
    assert (description["type"], description["binary"]) == ("pci", "vfio-user")
    assert description["arguments"] == ["serve", name]
    assert description["description"]
    assert isinstance(description["features"], list)


def test_nothing_is_described_that_cannot_be_served() -> None:
    assert installed().keys() == DEVICES.keys()
