"""The rooms whose tests are measured, as the folders and files that they are."""

from __future__ import annotations

from pathlib import Path

from tests.seeded_bugs.planting import ROOT

ROOMS = {
    "userdev": ["userdev/**/*.py"],
    "wire": ["vfio_user/wire/*.py"],
    "pci": ["vfio_user/pci/*.py"],
    "device": ["vfio_user/device/*.py"],
    "server": ["vfio_user/server/*.py"],
    "migration": ["vfio_user/migration/*.py"],
    "client": ["vfio_user/client/*.py"],
    "conformance": ["vfio_user/client/conformance/*.py"],
    "interposer": [
        "vfio_user/interposer/*.py",
        "vfio_user/interposer/faults/*.py",
        "vfio_user/interposer/control/*.py",
    ],
    "servers": [
        "servers/userdev_servers/control.py",
        "servers/userdev_servers/edu.py",
        "servers/userdev_servers/gpio.py",
        "servers/userdev_servers/nvme/*.py",
    ],
    "vhost-user": ["vhost_user/**/*.py", "servers/userdev_servers/rng.py", "servers/userdev_servers/blk.py"],
    "block": ["servers/userdev_servers/block/*.py"],
}


def files(room: str) -> list[str]:
    """The room's modules, from the root of the checkout."""
    found = {path for pattern in ROOMS[room] for path in ROOT.glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found)


def sources() -> list[Path]:
    """All that decides a measurement: the code of the rooms, and the tests."""
    tests = ROOT.glob("tests/**/*.py")
    return sorted({*(ROOT / file for room in ROOMS for file in files(room)), *tests})
