"""A disk (virtio 1.3, "Block Device"), kept in an image: read and written straight from guest memory.

What the page cache can answer is done at once. What has to wait for the disk is done beside the session: flushes, reads
that miss the page cache, whatever is cleared, writes while the disk is slow or where each is to be kept.

That each write is to be kept, which a driver may choose, is marked on the image: a server that follows this one, after
its death or on another host, goes on for the same driver, and neither that nor QEMU says so again.

The image is its writer's alone. It is handed over when the last queue has stopped, as it does at the end of a migration
by QEMU, and taken when the first one runs; what was acknowledged is on the disk before that.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

from userdev.errors import ProtocolError, UserError
from userdev_servers.blk.requests import (
    MAX_SEGMENT,
    MAX_SEGMENTS,
    REQUESTS,
    Disk,
    Refused,
    Work,
    cut_header,
    cut_status,
    size_of,
    unsupported,
)
from userdev_servers.blk.spec import HEADER, SECTOR, SERIAL_SIZE, Feature, Status
from userdev_servers.block.backing import WouldBlock
from userdev_servers.block.images import log, open_images, parse_size
from userdev_servers.block.together import Read
from userdev_servers.control import ControlSocket
from vhost_user.device import Begun, BrokenRing, Chain, Later, Queues, Taken, VhostDevice, config_field, queue

QUEUE_SIZE = 1024
SEG_MAX = 126
"""Pieces of a request's data: what a ring of 128, QEMU's usual one, has place for beside header and status."""

PAGE_SECTORS = 4096 // SECTOR
"""Of the page cache: writes of less than a page may have to read it, holes of less than one stay."""

WRITE_THROUGH = "write-through"
"""The mark of an image whose driver has chosen that each write is kept."""

TOPOLOGY = struct.pack("<BBHI", PAGE_SECTORS.bit_length() - 1, 0, PAGE_SECTORS, 0)
"""Blocks of a physical one as a power of two, the first aligned one, the least and the best size to read or write."""


class Blk(VhostDevice):
    """A disk."""

    virtio_id = 2
    queues = Queues(1, QUEUE_SIZE)
    features = (
        Feature.SEG_MAX
        | Feature.BLK_SIZE
        | Feature.FLUSH
        | Feature.TOPOLOGY
        | Feature.CONFIG_WCE
        | Feature.MQ
        | Feature.DISCARD
        | Feature.WRITE_ZEROES
    )

    capacity: int = config_field(8, 0)
    size_max: int = config_field(4, 0)
    seg_max: int = config_field(4, SEG_MAX)
    geometry: bytes = config_field(4, bytes(4))
    blk_size: int = config_field(4, SECTOR)
    topology: bytes = config_field(8, TOPOLOGY)
    writeback: int = config_field(1, 1, writable=True)
    num_queues: int = config_field(2, 1, offset=34)
    max_discard_sectors: int = config_field(4, MAX_SEGMENT)
    max_discard_seg: int = config_field(4, MAX_SEGMENTS)
    discard_sector_alignment: int = config_field(4, PAGE_SECTORS)
    max_write_zeroes_sectors: int = config_field(4, MAX_SEGMENT)
    max_write_zeroes_seg: int = config_field(4, MAX_SEGMENTS)
    write_zeroes_may_unmap: int = config_field(1, 1)
    unused: bytes = config_field(3, bytes(3))

    def __init__(
        self,
        *,
        image: Annotated[str, "FILE[:SIZE][:ro] with the blocks; memory:SIZE is none, and gone at the end"] = "",
        queues: Annotated[int, "queues at most"] = 16,
        serial: Annotated[str, "what the guest knows it by; the image's name unless told"] = "",
        control: Annotated[str, "listen here for JSON lines: image, resize"] = "",
    ) -> None:
        """Open the image.

        Raises:
            UserError: it cannot be had, or is used by another.
        """
        if not image:
            raise UserError("a disk needs an image", hint="--image FILE[:SIZE][:ro]")
        try:
            self.queues = Queues(queues, QUEUE_SIZE)
        except ValueError as error:
            raise UserError(f"--queues: {error}") from None
        backings = open_images(image, SECTOR)
        self.backing = backings[0]
        if len(backings) > 1:
            for backing in backings:
                backing.close()
            raise UserError(
                f"a disk has one image, and {len(backings)} are given: {image}", hint="serve a disk for each"
            )
        self.disk = Disk(self.backing, (serial or self.backing.path.name).encode(errors="replace")[:SERIAL_SIZE])
        self.capacity = self.disk.size // SECTOR
        self.num_queues = queues
        self._marked = False
        if self.backing.read_only:
            self.features = Feature.RO | self.features & ~(Feature.DISCARD | Feature.WRITE_ZEROES)
        self.running: set[int] = set()
        self._driver = Feature(0)
        self._told: set[str] = set()
        super().__init__()
        self._go_on_as_marked()
        try:
            self._control = ControlSocket(Path(control), self, COMMANDS) if control else None
        except UserError:
            self.backing.close()
            raise

    @queue()
    def serve(self, chain: Chain) -> Taken:
        """Do one request; its status is the last byte that it may write.

        Raises:
            BrokenRing: it has none.
        """
        into, status = cut_status(chain.writable_views)
        if status is None:
            raise BrokenRing("a request without a byte for its status")
        header, data = cut_header(chain.readable_views)
        size = size_of(into) + 1
        try:
            kind, sector = HEADER.unpack(header)
            work = REQUESTS.get(kind, unsupported)(self.disk, sector, data, into)
        except (OSError, Refused, struct.error) as error:
            status[0] = self._failed(error)
            return size
        if work is None:
            status[0] = 0
            return size
        if isinstance(work, Read):
            return BegunRead(self, work, status)
        return partial(self._finish, work, status, size)

    def end_read(self, read: Read, status: memoryview) -> int | Later:
        """Have a read be done that was begun."""
        size = read.size + 1
        try:
            read.end()
        except WouldBlock:
            return partial(self._finish, partial(self.backing.read, read.pieces, read.offset), status, size)
        except OSError as error:
            status[0] = self._failed(error)
        else:
            status[0] = 0
        return size

    def on_attach(self) -> None:
        """Tell people of this front-end's failures too."""
        self._told.clear()

    def on_features(self, features: int) -> None:
        """Keep whether the driver flushes: for one that does not, each write is kept before it is answered."""
        before, self._driver = self._driver, Feature(features & self.features)
        if before != self._driver and self._driver & (Feature.CONFIG_WCE | Feature.FLUSH) == Feature.CONFIG_WCE:
            self.writeback = 0
        self._choose_cache()

    def on_config(self, name: str) -> None:
        """Keep what was written until now, where from now on each write is kept; and have successors know it."""
        self._choose_cache()
        self._mark(write_through=not self.writeback)
        if not self.writeback:
            self._keep()

    def on_reset(self) -> None:
        """The cache is as it was, which the driver may have chosen."""
        self._choose_cache()

    def on_check(self, values: Mapping[str, Any]) -> None:
        """Refuse the state of a disk that this one has no room for.

        Raises:
            ProtocolError: EINVAL.
        """
        size, queues = values["capacity"] * SECTOR, values["num_queues"]
        if size > max(self.backing.size, self.backing.length):
            raise ProtocolError(f"a disk of {size} bytes, and image {self.backing.path} has {self.backing.length}")
        if queues > self.queues.count:
            raise ProtocolError(f"a disk of {queues} queues, and this one has {self.queues.count}")

    def on_load(self) -> None:
        """Go on for a driver with the cache that it has chosen; it is told where this disk is another."""
        known = self.capacity, self.num_queues
        if self.capacity * SECTOR > self.backing.size:
            self.backing.measure()
        self.disk.measure()
        self.capacity, self.num_queues = self.disk.size // SECTOR, self.queues.count
        if known != (self.capacity, self.num_queues):
            self.config_changed()
        self._choose_cache()
        if self.backing.lock.allows_use and self._marked == bool(self.writeback):
            self._mark(write_through=not self.writeback)

    def on_start(self, queue: int) -> None:
        """Have the image, and its size: another may have made it larger.

        Raises:
            OSError: another has it.
        """
        if not self.running and not self.backing.lock.held:
            self.backing.take_over()
            self.backing.measure_again()
            self._tell_size()
            self._go_on_as_marked()
        self.running.add(queue)

    def on_stop(self, queue: int) -> None:
        """Let another have the image once nothing runs any more, with all that was acknowledged."""
        self.running.discard(queue)
        if not self.running:
            self._keep()
            self.backing.hand_over()

    def on_close(self) -> None:
        """Close the control socket, keep what was written, and close the image."""
        if self._control is not None:
            self._control.close()
        self._keep()
        self.backing.close()

    def resize(self, size: int | None = None) -> int:
        """Have so many bytes, or as many as the image has now; the driver is told. Returns how many there are.

        Raises:
            UserError: they are no whole sectors, the image cannot have them, was cut, or is not this server's now.
        """
        backing = self.backing
        if size is not None and size % SECTOR:
            raise UserError(f"{size} bytes are no whole number of sectors of {SECTOR}")
        if not backing.lock.allows_use:
            raise UserError(f"{backing.path} is not this server's now: another has it, or may take it over")
        try:
            if size is None:
                if backing.length < backing.size:
                    raise UserError(f"{backing.path} was cut to {backing.length} bytes: what was there is lost")
                backing.measure()
            else:
                backing.resize(size)
        except OSError as error:
            raise UserError(f"{backing.path}: {error.strerror}") from error
        self._tell_size()
        return self.disk.size

    def _finish(self, work: Work, status: memoryview, size: int) -> int:
        """The rest of a request, on another thread."""
        try:
            work()
        except OSError as error:
            status[0] = self._failed(error)
        else:
            status[0] = 0
        return size

    def _failed(self, error: OSError | Refused | struct.error) -> Status:
        """What the driver is told. People are told of the first of a kind: a driver could write their log full."""
        status = error.status if isinstance(error, Refused) else Status.IOERR
        kind = f"{error.errno}" if isinstance(error, OSError) else status.name
        if kind not in self._told:
            self._told.add(kind)
            log.warning("image %s: a request failed, and others as this one are not told: %s", self.backing.path, error)
        return status

    def _choose_cache(self) -> None:
        knows_of_it = self._driver & (Feature.FLUSH | Feature.CONFIG_WCE)
        self.disk.write_back = bool(self.writeback and knows_of_it)

    def _mark(self, *, write_through: bool) -> None:
        """Nobody can be told of what was only read."""
        if self.backing.read_only:
            return
        try:
            self.backing.mark(WRITE_THROUGH, on=write_through)
        except OSError as error:
            log.warning(
                "image %s: the driver has chosen write-through, which a server after this one will not know, since the"
                " image cannot be marked: %s",
                self.backing.path,
                error.strerror,
            )
        else:
            self._marked = write_through

    def _go_on_as_marked(self) -> None:
        """Go on with what another server's driver has chosen."""
        marked = self.backing.is_marked(WRITE_THROUGH)
        if marked != self._marked:
            self._marked = marked
            self.writeback = int(not marked)
            self._choose_cache()
            self.config_changed()

    def _tell_size(self) -> None:
        if self.disk.measure():
            self.capacity = self.disk.size // SECTOR
            self.config_changed()

    def _keep(self) -> None:
        """Have what was written on the disk; one that fails is told of with every flush."""
        if not self.backing.read_only and self.backing.lock.allows_use:
            try:
                self.backing.sync()
            except OSError as error:
                log.warning("image %s: %s", self.backing.path, error)


class BegunRead(Begun):
    """A read that is copied while others are looked at."""

    def __init__(self, device: Blk, read: Read, status: memoryview) -> None:
        self.end = partial(device.end_read, read, status)  # type: ignore[method-assign]


class ImageShown(TypedDict):
    """The result of `image`; sizes in bytes."""

    image: str
    size: int
    read_only: bool
    in_use: bool
    """A queue runs."""
    failure: str | None
    """Why it no longer takes writes."""


class Resized(TypedDict):
    """The result of `resize`."""

    size: int


def image(device: Blk, request: Mapping[str, Any]) -> ImageShown:
    """{"command": "image"}: what there is."""
    backing = device.backing
    return {
        "image": str(backing.path),
        "size": device.disk.size,
        "read_only": backing.read_only,
        "in_use": bool(device.running),
        "failure": str(backing.failure.strerror) if backing.failure else None,
    }


def resize(device: Blk, request: Mapping[str, Any]) -> Resized:
    """{"command": "resize", "size": "128M"}; without a size, what the image has by now. The driver is told."""
    size = request.get("size")
    return {"size": device.resize(None if size is None else parse_size(str(size)))}


COMMANDS: dict[str, Callable[[Blk, Mapping[str, Any]], Mapping[str, object]]] = {"image": image, "resize": resize}
