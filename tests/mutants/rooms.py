"""The rooms whose tests are measured, as the folders and files that they are."""

from __future__ import annotations

from pathlib import Path

from tests.seeded_bugs.planting import ROOT

ROOMS = {
    "wire": ["vfio_user/wire/**/*.py"],
    "pci": ["vfio_user/pci/**/*.py"],
    "device": ["vfio_user/device/**/*.py"],
    "server": ["vfio_user/server/**/*.py"],
    "migration": ["vfio_user/migration/**/*.py"],
    "client": ["vfio_user/client/*.py"],
    "conformance": ["vfio_user/client/conformance/**/*.py", "userdev/conformance/**/*.py"],
    "interposer": [
        "userdev/interposer/**/*.py",
        "userdev/relay/**/*.py",
        "userdev/trace/**/*.py",
        "vfio_user/interposer/**/*.py",
    ],
    "servers": ["servers/userdev_servers/*.py", "servers/userdev_servers/nvme/**/*.py"],
    "disks": ["servers/userdev_servers/blk/**/*.py", "servers/userdev_servers/block/**/*.py"],
    "userdev": [
        "userdev/*.py",
        "userdev/control/**/*.py",
        "userdev/declare/**/*.py",
        "userdev/memory/**/*.py",
        "userdev/process/**/*.py",
        "userdev/serving/**/*.py",
        "userdev/transport/**/*.py",
    ],
    "vhost-rings": ["vhost_user/wire/**/*.py", "vhost_user/memory/**/*.py", "vhost_user/rings/**/*.py"],
    "vhost-backend": ["vhost_user/device/**/*.py", "vhost_user/backend/**/*.py"],
    "vhost-frontend": ["vhost_user/frontend/**/*.py"],
    "vhost-interposer": ["vhost_user/interposer/**/*.py"],
}


def files(room: str) -> list[str]:
    """The room's modules, from the root of the checkout."""
    found = {path for pattern in ROOMS[room] for path in ROOT.glob(pattern)}
    return sorted(str(path.relative_to(ROOT)) for path in found)


def sources() -> list[Path]:
    """All that decides a measurement: the code of the rooms, and the tests."""
    tests = ROOT.glob("tests/**/*.py")
    return sorted({*(ROOT / file for room in ROOMS for file in files(room)), *tests})
