"""A disk (virtio 1.3, "Block Device"), kept in an image: read, written and flushed straight from guest memory.

A request is a header of 16 bytes to read, the data, and a byte of status to write; where they are cut is the driver's
choice. One is done after the other: a flush keeps all queues waiting.

The image is its writer's alone. It is handed over when the last queue has stopped, as it does at the end of a migration
by QEMU, and taken when the first one runs; what was acknowledged is on the disk before that.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Annotated

from userdev.errors import UserError
from userdev_servers.block.images import log, open_images
from vhost_user.device import BrokenRing, Chain, Queues, VhostDevice, config_field, queue

SECTOR = 512
HEADER = struct.Struct("<I4xQ")
"""Type and sector; between them is what was a priority once."""

QUEUE_SIZE = 1024
SEG_MAX = 126
"""Pieces of a request's data: what a ring of 128, QEMU's usual one, has place for beside header and status."""

SERIAL_SIZE = 20


class RequestType(IntEnum):
    """What a request wants (VIRTIO_BLK_T_*)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class Status(IntEnum):
    """What has become of it (VIRTIO_BLK_S_*)."""

    OK = 0
    IOERR = 1
    UNSUPP = 2


class Feature(IntFlag):
    """VIRTIO_BLK_F_*."""

    SEG_MAX = 1 << 2
    RO = 1 << 5
    BLK_SIZE = 1 << 6
    FLUSH = 1 << 9
    CONFIG_WCE = 1 << 11
    MQ = 1 << 12


class Blk(VhostDevice):
    """A disk."""

    virtio_id = 2
    queues = Queues(1, QUEUE_SIZE)
    features = Feature.SEG_MAX | Feature.BLK_SIZE | Feature.FLUSH | Feature.CONFIG_WCE | Feature.MQ

    capacity: int = config_field(8, 0)
    size_max: int = config_field(4, 0)
    seg_max: int = config_field(4, SEG_MAX)
    geometry: bytes = config_field(4, bytes(4))
    blk_size: int = config_field(4, SECTOR)
    topology: bytes = config_field(8, bytes(8))
    writeback: int = config_field(1, 1, writable=True)
    num_queues: int = config_field(2, 1, offset=34)
    discard_and_zeroes: bytes = config_field(24, bytes(24))

    def __init__(
        self,
        *,
        image: Annotated[str, "FILE[:SIZE][:ro] with the blocks; memory:SIZE is none, and gone at the end"] = "",
        queues: Annotated[int, "queues at most"] = 16,
        serial: Annotated[str, "what the guest knows it by; the image's name unless told"] = "",
    ) -> None:
        """Open the image.

        Raises:
            UserError: it cannot be had, or is used by another.
        """
        if not image:
            raise UserError("a disk needs an image", hint="--image FILE[:SIZE][:ro]")
        self.queues = Queues(queues, QUEUE_SIZE)
        backings = open_images(image, SECTOR)
        self.backing = backings[0]
        if len(backings) > 1:
            for backing in backings:
                backing.close()
            raise UserError(
                f"a disk has one image, and {len(backings)} are given: {image}", hint="serve a disk for each"
            )
        self.serial = (serial or self.backing.path.name).encode(errors="replace")[:SERIAL_SIZE]
        self.capacity = self.backing.size // SECTOR
        self.num_queues = queues
        if self.backing.read_only:
            self.features |= Feature.RO
        self.flushes = False
        self.running: set[int] = set()
        super().__init__()

    @queue()
    def serve(self, chain: Chain) -> int:
        """Do one request; its status is the last byte that it may write."""
        header = chain.read(HEADER.size)
        if len(header) < HEADER.size or not chain.writable:
            raise BrokenRing(f"a request with {len(header)} bytes of a header and {chain.writable} for its answer")
        size = chain.writable
        status = self._status_of(chain, *HEADER.unpack(header))
        last = next(view for view in reversed(chain.writable_views) if len(view))
        last[-1] = status
        return size

    def on_features(self, features: int) -> None:
        """Keep whether the driver flushes: for one that does not, each write is kept before it is answered."""
        self.flushes = bool(features & Feature.FLUSH)

    def on_start(self, queue: int) -> None:
        """Have the image.

        Raises:
            OSError: another has it.
        """
        if not self.running:
            self.backing.take_over()
        self.running.add(queue)

    def on_stop(self, queue: int) -> None:
        """Let another have the image once nothing runs any more, with all that was acknowledged."""
        self.running.discard(queue)
        if not self.running:
            self._keep()
            self.backing.hand_over()

    def on_config(self, name: str) -> None:
        """Keep what was written until now, where from now on each write is kept."""
        if not self.writeback:
            self._keep()

    def on_close(self) -> None:
        """Keep what was written, and close the image."""
        self._keep()
        self.backing.close()

    def _status_of(self, chain: Chain, kind: int, sector: int) -> Status:
        try:
            match kind:
                case RequestType.IN:
                    pieces = _without_last(chain.writable_views)
                    self.backing.read(pieces, self._place(sector, pieces))
                case RequestType.OUT:
                    pieces = _behind(chain.readable_views, HEADER.size)
                    offset = self._place(sector, pieces)
                    if self.backing.read_only:
                        return Status.IOERR
                    self.backing.write(pieces, offset)
                    if not (self.writeback and self.flushes):
                        self.backing.sync()
                case RequestType.FLUSH:
                    self.backing.sync()
                case RequestType.GET_ID:
                    chain.write(self.serial.ljust(SERIAL_SIZE, b"\0")[: chain.writable - 1])
                case _:
                    return Status.UNSUPP
        except (OSError, ValueError) as error:
            log.warning("image %s: a request of type %d at sector %d: %s", self.backing.path, kind, sector, error)
            return Status.IOERR
        return Status.OK

    def _place(self, sector: int, pieces: Sequence[memoryview]) -> int:
        """The offset of a request's data.

        Raises:
            ValueError: it is not whole sectors of the disk.
        """
        size = sum(map(len, pieces))
        if size % SECTOR or sector + size // SECTOR > self.capacity:
            raise ValueError(f"{size} bytes, and the disk has {self.capacity} sectors")
        return sector * SECTOR

    def _keep(self) -> None:
        """Have what was written on the disk; one that fails is told of with every flush."""
        if not self.backing.read_only and self.backing.lock.allows_use:
            try:
                self.backing.sync()
            except OSError as error:
                log.warning("image %s: %s", self.backing.path, error)


def _behind(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Views without their first `count` bytes."""
    left = []
    for view in views:
        if count < len(view):
            left.append(view[count:])
        count = max(0, count - len(view))
    return left


def _without_last(views: Sequence[memoryview]) -> list[memoryview]:
    """Views without their last byte."""
    whole = [view for view in views if len(view)]
    return [view for view in (*whole[:-1], whole[-1][:-1]) if len(view)]
