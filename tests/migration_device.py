"""A device for the tests of migration: some values, some memory, and what was done to it."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from userdev.declare.values import encode
from userdev.errors import ProtocolError
from vfio_user.device.dma import Dma
from vfio_user.migration import Memory, Migration, Storage
from vfio_user.server.migration_commands import device_feature, mig_data_read, mig_data_write
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState
from vfio_user.wire.layouts import DEVICE_STATE, FEATURE, MIGRATION_DATA

LIMIT = 1 << 20
"""max_data_xfer_size of the client in these tests."""


class Adder:
    """Adds up numbers, and has memory. `fails` makes the action of that name raise."""

    def __init__(self, memory: int = 0x3000, *, color: str = "red", device_class: str = "adder") -> None:
        self.dma = Dma()
        self.values: dict[str, Any] = {"total": 0, "label": "", "queue": []}
        self.ram = bytearray(memory)
        self.color = color
        self.device_class = device_class
        self.actions: list[str] = []
        self.entered: list[MigrationState] = []
        self.fails: dict[str, Exception] = {}

    def identity(self) -> Mapping[str, Any]:
        return {"class": self.device_class, "ids": (0x1234, 0x5678), "color": self.color}

    def memories(self) -> Sequence[Memory]:
        return [Memory("ram", memoryview(self.ram))] if self.ram else []

    def storages(self) -> Sequence[Storage]:
        return []

    def save_state(self) -> Mapping[str, Any]:
        return dict(self.values)

    def check_state(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self.values.keys():
            raise ProtocolError("other values", errno.EINVAL)

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._act("load")
        self.values = dict(state)

    def check_savable(self) -> None:
        if "check" in self.fails:
            raise self.fails["check"]

    def digests(self, known: Mapping[str, str] = MappingProxyType({})) -> Mapping[str, str]:
        parts: dict[str, Any] = {name: encode(value) for name, value in self.values.items()} | {"ram": self.ram}
        return {name: hashlib.sha256(part).hexdigest()[:16] for name, part in parts.items()}

    def on_migration(self, state: MigrationState) -> None:
        if state.name in self.fails:
            raise self.fails[state.name]
        self.entered.append(state)

    def client_reset(self) -> None:
        self._act("reset")

    def stop(self) -> None:
        self._act("stop")

    def start(self) -> None:
        self._act("start")

    def _act(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]
        self.actions.append(name)


def set_state(migration: Migration, state: int) -> None:
    """SET MIG_DEVICE_STATE, as its message."""
    payload = FEATURE.pack(16, Feature.MIG_DEVICE_STATE | FeatureFlags.SET, tail=DEVICE_STATE.pack(state, 0))
    assert device_feature(migration, payload) == payload


def get_state(migration: Migration) -> MigrationState:
    """GET MIG_DEVICE_STATE, as its message."""
    reply = device_feature(migration, FEATURE.pack(16, Feature.MIG_DEVICE_STATE | FeatureFlags.GET))
    return MigrationState(DEVICE_STATE.unpack(reply, FEATURE.size).state)


def read_data(migration: Migration, size: int = LIMIT) -> bytes:
    """MIG_DATA_READ, as its message."""
    reply = mig_data_read(migration, MIGRATION_DATA.pack(MIGRATION_DATA.size + size, size), LIMIT)
    argsz, got = MIGRATION_DATA.unpack(reply)
    assert argsz == len(reply) == MIGRATION_DATA.size + got
    return reply[MIGRATION_DATA.size :]


def read_all(migration: Migration, size: int = LIMIT) -> bytes:
    """MIG_DATA_READ until there is nothing."""
    data = b""
    while piece := read_data(migration, size):
        data += piece
    return data


def write_data(migration: Migration, data: bytes, size: int = LIMIT) -> None:
    """MIG_DATA_WRITE, in transfers of `size` bytes."""
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        mig_data_write(migration, MIGRATION_DATA.pack(MIGRATION_DATA.size + len(piece), len(piece), tail=piece), LIMIT)


def save(device: Adder, size: int = LIMIT) -> bytes:
    """The whole state of a device that is stopped for it, and runs on."""
    migration = Migration(device)
    set_state(migration, MigrationState.STOP_COPY)
    data = read_all(migration, size)
    set_state(migration, MigrationState.RUNNING)
    return data


def load(device: Adder, data: bytes, size: int = LIMIT) -> None:
    """Put a state into a device and let it run."""
    migration = Migration(device)
    set_state(migration, MigrationState.RESUMING)
    write_data(migration, data, size)
    set_state(migration, MigrationState.RUNNING)
