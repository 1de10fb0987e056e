"""Migration: one state machine with two faces, the format of a saved state, and the log of dirty pages."""

from vfio_user.migration.memory import Memfd, MemfdMemory, Memory
from vfio_user.migration.migratable import ClientMemory, Migratable, Storage
from vfio_user.migration.migration import Migration
from vfio_user.migration.region import MigrationRegion

__all__ = [
    "ClientMemory",
    "Memfd",
    "MemfdMemory",
    "Memory",
    "Migratable",
    "Migration",
    "MigrationRegion",
    "Storage",
]
