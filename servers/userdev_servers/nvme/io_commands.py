"""Commands of the I/O queues. Data goes by one system call between the image and guest memory.

What the page cache can answer is done at once; reads that miss it, and everything that has to be on the disk, end on a
thread of their own.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import partial
from struct import unpack_from
from typing import TYPE_CHECKING

from userdev_servers.block.backing import Lost, WouldBlock
from userdev_servers.nvme.identify import MAX_TRANSFER
from userdev_servers.nvme.pointers import buffers_of, receive
from userdev_servers.nvme.spec import ALL_NAMESPACES, Failure, Feature, HealthEvent, Io, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.background import Outcome
    from userdev_servers.nvme.namespace import Namespace
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.pointers import Buffers
    from userdev_servers.nvme.queues import Command

log = logging.getLogger("vfio_user.servers.nvme")

_FORCE_UNIT_ACCESS, _DEALLOCATE = 1 << 30, 1 << 25
_DATASET_DEALLOCATE = 1 << 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def read(device: Nvme, command: Command) -> int | None:
    namespace, offset, size = _transfer(device, command)
    buffers = buffers_of(device, command, size, writable=True)
    device.reads += 1
    device.sectors_read += size >> 9
    backing = namespace.backing
    try:
        if not buffers.in_place:
            backing.read(buffers.pieces, offset)
        else:
            backing.try_read(buffers.pieces, size, offset)
    except WouldBlock:
        done = partial(_data_done, device, buffers, read_failure)
        device.engine.later(command, partial(backing.read, buffers.pieces, offset), done)
        return None
    except OSError as error:
        buffers.release()
        raise read_error(device, error) from error
    buffers.finish()
    return 0


def write(device: Nvme, command: Command) -> int | None:
    namespace, offset, size = _transfer(device, command, writing=True)
    buffers = buffers_of(device, command, size, writable=False)
    device.writes += 1
    device.sectors_written += size >> 9
    backing = namespace.backing
    try:
        backing.write(buffers.pieces, offset)
    except OSError as error:
        raise write_error(device, error) from error
    finally:
        buffers.release()
    if _must_be_stable(device, command):
        device.engine.later(command, backing.sync, partial(write_failure, device))
        return None
    return 0


def flush(device: Nvme, command: Command) -> None:
    if command.nsid == ALL_NAMESPACES:
        chosen = [namespace for namespace in device.namespaces if namespace.active]
    else:
        chosen = [device.active_namespace(command.nsid)]
    device.engine.later(command, partial(sync_all, chosen), partial(write_failure, device))


def compare(device: Nvme, command: Command) -> int | None:
    namespace, offset, size = _transfer(device, command)
    buffers = buffers_of(device, command, size, writable=False)
    device.reads += 1
    device.sectors_read += size >> 9

    def work() -> None:
        if namespace.backing.read_bytes(size, offset) != buffers.gather():
            raise Failure(Status.COMPARE_FAILURE)

    device.engine.later(command, work, partial(_data_done, device, buffers, read_failure))
    return None


def write_zeroes(device: Nvme, command: Command) -> None:
    namespace = device.active_namespace(command.nsid)
    offset, size = namespace.writable_range(*_blocks(command))
    clear = namespace.backing.discard if command.cdw12 & _DEALLOCATE else namespace.backing.zero
    stable = _must_be_stable(device, command)

    def work() -> None:
        clear(offset, size)
        if stable:
            namespace.backing.sync()

    device.engine.later(command, work, partial(write_failure, device))


def dataset_management(device: Nvme, command: Command) -> int | None:
    """Deallocate ranges; the other attributes are hints, and taken as such."""
    namespace = device.active_namespace(command.nsid)
    count = (command.cdw10 & 0xFF) + 1
    raw = receive(device, command, count * 16)
    if not command.cdw11 & _DATASET_DEALLOCATE:
        return 0
    ranges = [
        namespace.writable_range(first, blocks)
        for blocks, first in (unpack_from("<4xIQ", raw, at) for at in range(0, len(raw), 16))
    ]

    stable = not device.setting(Feature.VOLATILE_WRITE_CACHE)

    def work() -> None:
        for offset, size in ranges:
            namespace.backing.discard(offset, size)
        if stable:
            namespace.backing.sync()

    device.engine.later(command, work, partial(write_failure, device))
    return None


HANDLERS: dict[int, Callable[[Nvme, Command], int | None]] = {
    Io.FLUSH: flush,
    Io.WRITE: write,
    Io.READ: read,
    Io.COMPARE: compare,
    Io.WRITE_ZEROES: write_zeroes,
    Io.DATASET_MANAGEMENT: dataset_management,
}


def sync_all(namespaces: list[Namespace]) -> None:
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


def read_failure(device: Nvme, outcome: Outcome) -> Exception | None:
    """What the guest is told of the outcome of reading."""
    return read_error(device, outcome) if isinstance(outcome, OSError) else outcome


def read_error(device: Nvme, error: OSError) -> Failure:
    """The disk could not read."""
    log.warning("reading: %s", error)
    device.media_errors += 1
    return Failure(Status.UNRECOVERED_READ_ERROR, retry=not _is_lost(device, error))


def write_failure(device: Nvme, outcome: Outcome) -> Exception | None:
    """What the guest is told of the outcome of writing."""
    return write_error(device, outcome) if isinstance(outcome, OSError) else outcome


def write_error(device: Nvme, error: OSError) -> Failure:
    """The disk could not write, or not keep; that it is full is no error of its medium, unless it was told too late."""
    log.warning("writing: %s", error)
    lost = _is_lost(device, error)
    if error.errno in _FULL and not lost:
        return Failure(Status.CAPACITY_EXCEEDED)
    device.media_errors += 1
    return Failure(Status.CAPACITY_EXCEEDED if error.errno in _FULL else Status.WRITE_FAULT, retry=not lost)


def _is_lost(device: Nvme, error: OSError) -> bool:
    """Whether something that was acknowledged may be gone: the guest is told, now and by SMART, and need not retry."""
    if isinstance(error, Lost):
        device.event_queue.warn(HealthEvent.RELIABILITY)
        return True
    return False


def _blocks(command: Command) -> tuple[int, int]:
    return command.cdw10 | command.cdw11 << 32, (command.cdw12 & 0xFFFF) + 1


def _transfer(device: Nvme, command: Command, *, writing: bool = False) -> tuple[Namespace, int, int]:
    """Namespace, offset and size in bytes of a command that moves data."""
    namespace = device.active_namespace(command.nsid)
    first, count = _blocks(command)
    if count << namespace.shift > MAX_TRANSFER:
        raise Failure(Status.INVALID_FIELD)
    return namespace, *(namespace.writable_range(first, count) if writing else namespace.byte_range(first, count))


def _must_be_stable(device: Nvme, command: Command) -> bool:
    """Force Unit Access, or there is no volatile write cache."""
    return bool(command.cdw12 & _FORCE_UNIT_ACCESS) or not device.setting(Feature.VOLATILE_WRITE_CACHE)


def _data_done(
    device: Nvme, buffers: Buffers, failure: Callable[[Nvme, Outcome], Exception | None], outcome: Outcome
) -> Exception | None:
    if outcome is None:
        buffers.finish()
    else:
        buffers.release()
    return failure(device, outcome)
