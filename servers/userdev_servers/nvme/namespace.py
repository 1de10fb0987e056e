"""Namespaces: numbered ranges of blocks, each in a backing of its own."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from userdev.errors import ProtocolError
from userdev_servers.block.backing import Backing
from userdev_servers.nvme.spec import Failure, Status

FORMATS = (9, 12)
"""LBA formats, as powers of two: blocks of 512 and of 4096 bytes."""


@dataclass
class Namespace:
    """`exists`: it has been created; `attached`: this controller gives access to it; `blocks` of `1 << shift` bytes."""

    nsid: int
    backing: Backing
    exists: bool
    attached: bool
    blocks: int
    shift: int
    copied: bool = False
    """Migrations bring the image along."""
    being_formatted: bool = False
    """Its blocks are about to be zeros, of another size perhaps: nobody else's command may reach them."""

    @classmethod
    def whole(cls, nsid: int, backing: Backing, block_size: int, *, copied: bool = False) -> Namespace:
        """One that has all of its image. What nobody writes to is not copied."""
        shift = block_size.bit_length() - 1
        return cls(nsid, backing, True, True, backing.size >> shift, shift, copied and not backing.read_only)

    @property
    def active(self) -> bool:
        """Whether the guest can use it: it exists, and this controller is attached."""
        return self.exists and self.attached

    @property
    def size(self) -> int:
        """Bytes."""
        return self.blocks << self.shift

    def blocks_of(self, shift: int) -> int:
        """Blocks of `1 << shift` bytes that it would have. One that has all of its image keeps all that is no part of
        a block now.
        """
        has_all = self.blocks == self.backing.size >> self.shift
        return (self.backing.size if has_all else self.size) >> shift

    @property
    def read_only(self) -> bool:
        """Whether its image was opened for reading alone."""
        return self.backing.read_only

    def byte_range(self, first: int, count: int) -> tuple[int, int]:
        """Offset and size of blocks; raises Failure if there are not that many."""
        if first + count > self.blocks:
            raise Failure(Status.LBA_OUT_OF_RANGE)
        return first << self.shift, count << self.shift

    def writable_range(self, first: int, count: int) -> tuple[int, int]:
        """The same, for writing: raises Failure where that is not allowed too."""
        if self.backing.read_only:
            raise Failure(Status.WRITE_PROTECTED)
        return self.byte_range(first, count)

    def save(self) -> list[int]:
        """The state that migrates: exists, attached, blocks, and the shift of a block's size."""
        return [int(self.exists), int(self.attached), self.blocks, self.shift]

    def load(self, saved: list[int]) -> None:
        """Take over what `save` gave on the other side, which `checks` has looked at."""
        exists, attached, self.blocks, self.shift = saved
        self.exists, self.attached = bool(exists), bool(attached)


def check_images(saved: list[list[int]], namespaces: Sequence[Namespace]) -> None:
    """Measure the images of these namespaces, and compare them with what was saved.

    Raises:
        ProtocolError: EINVAL, one cannot hold its namespace.
    """
    for namespace, (_exists, _attached, blocks, shift) in zip(namespaces, saved, strict=True):
        namespace.backing.measure()
        if blocks << shift > namespace.backing.size:
            what = (
                f"saved_namespaces has {blocks} blocks of {1 << shift} bytes, which image {namespace.nsid} cannot hold"
            )
            raise ProtocolError(f"saved state: {what}", errno.EINVAL)


def sync_all(namespaces: Sequence[Namespace]) -> None:
    """Bring everything that was written to the disk: to each that can take it, before the first failure is raised."""
    failures = []
    for namespace in namespaces:
        if not namespace.read_only:
            try:
                namespace.backing.sync()
            except OSError as error:
                failures.append(error)
    if failures:
        raise failures[0]
