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

from userdev_servers.block.backing import WouldBlock
from userdev_servers.block.lost import Lost
from userdev_servers.nvme.namespace import sync_all
from userdev_servers.nvme.pointers import buffers_of, receive
from userdev_servers.nvme.spec import ALL_NAMESPACES, MAX_TRANSFER, Failure, Feature, HealthEvent, Io, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller, Outcome
    from userdev_servers.nvme.namespace import Namespace
    from userdev_servers.nvme.pointers import Buffers
    from userdev_servers.nvme.queues import Command

log = logging.getLogger("vfio_user.servers.nvme")

_FORCE_UNIT_ACCESS, _DEALLOCATE = 1 << 30, 1 << 25
_DATASET_DEALLOCATE = 1 << 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def read(controller: Controller, command: Command) -> int | None:
    """Read (section 6.9): at once where the page cache has it, else on a thread.

    Raises:
        Failure: the blocks are not in the namespace, or the disk cannot read them.
    """
    namespace, offset, size = _transfer(controller, command)
    buffers = buffers_of(controller, command, size, writable=True)
    statistics = controller.state.statistics
    statistics.reads += 1
    statistics.sectors_read += size >> 9
    backing = namespace.backing
    try:
        if not buffers.in_place:
            backing.read(buffers.pieces, offset)
        else:
            backing.try_read(buffers.pieces, size, offset)
    except WouldBlock:
        done = partial(_data_done, controller, buffers, read_failure)
        controller.later(command, partial(backing.read, buffers.pieces, offset), done)
        return None
    except OSError as error:
        buffers.release()
        raise read_error(controller, error) from error
    buffers.finish()
    return 0


def write(controller: Controller, command: Command) -> int | None:
    """Write (section 6.15); with FUA, or without a volatile write cache, it ends when the disk has it.

    Raises:
        Failure: the blocks are not in the namespace or cannot be written, or the disk refuses.
    """
    namespace, offset, size = _transfer(controller, command, writing=True)
    buffers = buffers_of(controller, command, size, writable=False)
    statistics = controller.state.statistics
    statistics.writes += 1
    statistics.sectors_written += size >> 9
    backing = namespace.backing
    try:
        backing.write(buffers.pieces, offset)
    except OSError as error:
        raise write_error(controller, error) from error
    finally:
        buffers.release()
    if _must_be_stable(controller, command):
        controller.later(command, backing.sync, partial(write_failure, controller))
        return None
    return 0


def flush(controller: Controller, command: Command) -> None:
    """Flush (section 6.8): bring one namespace, or all, to the disk.

    Raises:
        Failure: there is no such namespace.
    """
    if command.nsid == ALL_NAMESPACES:
        chosen = [namespace for namespace in controller.namespaces if namespace.active]
    else:
        chosen = [controller.active_namespace(command.nsid)]
    controller.later(command, partial(sync_all, chosen), partial(write_failure, controller))


def compare(controller: Controller, command: Command) -> int | None:
    """Compare (section 6.6): read blocks and tell the guest whether its data is the same.

    Raises:
        Failure: the blocks are not in the namespace.
    """
    namespace, offset, size = _transfer(controller, command)
    buffers = buffers_of(controller, command, size, writable=False)
    statistics = controller.state.statistics
    statistics.reads += 1
    statistics.sectors_read += size >> 9

    def work() -> None:
        if namespace.backing.read_bytes(size, offset) != buffers.gather():
            raise Failure(Status.COMPARE_FAILURE)

    controller.later(command, work, partial(_data_done, controller, buffers, read_failure))
    return None


def write_zeroes(controller: Controller, command: Command) -> None:
    """Write Zeroes (section 6.17), as a hole in the file where the guest lets blocks be deallocated.

    Raises:
        Failure: the blocks are not in the namespace, or cannot be written.
    """
    namespace = controller.active_namespace(command.nsid)
    offset, size = namespace.writable_range(*_blocks(command))
    clear = namespace.backing.discard if command.cdw12 & _DEALLOCATE else namespace.backing.zero
    stable = _must_be_stable(controller, command)

    def work() -> None:
        clear(offset, size)
        if stable:
            namespace.backing.sync()

    controller.later(command, work, partial(write_failure, controller))


def dataset_management(controller: Controller, command: Command) -> int | None:
    """Deallocate ranges; the other attributes are hints, and taken as such."""
    namespace = controller.active_namespace(command.nsid)
    count = (command.cdw10 & 0xFF) + 1
    raw = receive(controller, command, count * 16)
    if not command.cdw11 & _DATASET_DEALLOCATE:
        return 0
    ranges = [
        namespace.writable_range(first, blocks)
        for blocks, first in (unpack_from("<4xIQ", raw, at) for at in range(0, len(raw), 16))
    ]

    stable = not controller.settings[Feature.VOLATILE_WRITE_CACHE]

    def work() -> None:
        for offset, size in ranges:
            namespace.backing.discard(offset, size)
        if stable:
            namespace.backing.sync()

    controller.later(command, work, partial(write_failure, controller))
    return None


HANDLERS: dict[int, Callable[[Controller, Command], int | None]] = {
    Io.FLUSH: flush,
    Io.WRITE: write,
    Io.READ: read,
    Io.COMPARE: compare,
    Io.WRITE_ZEROES: write_zeroes,
    Io.DATASET_MANAGEMENT: dataset_management,
}


def read_failure(controller: Controller, outcome: Outcome) -> Exception | None:
    """The guest's error for the outcome of reading; None where it is good."""
    return read_error(controller, outcome) if isinstance(outcome, OSError) else outcome


def read_error(controller: Controller, error: OSError) -> Failure:
    """The disk could not read."""
    log.warning("reading: %s", error)
    controller.state.statistics.media_errors += 1
    return Failure(Status.UNRECOVERED_READ_ERROR, retry=not _is_lost(controller, error))


def write_failure(controller: Controller, outcome: Outcome) -> Exception | None:
    """The guest's error for the outcome of writing; None where it is good."""
    return write_error(controller, outcome) if isinstance(outcome, OSError) else outcome


def write_error(controller: Controller, error: OSError) -> Failure:
    """The disk could not write, or not keep; that it is full is no error of its medium, unless it was told too late."""
    log.warning("writing: %s", error)
    lost = _is_lost(controller, error)
    if error.errno in _FULL and not lost:
        return Failure(Status.CAPACITY_EXCEEDED)
    controller.state.statistics.media_errors += 1
    return Failure(Status.CAPACITY_EXCEEDED if error.errno in _FULL else Status.WRITE_FAULT, retry=not lost)


def _is_lost(controller: Controller, error: OSError) -> bool:
    """Whether something that was acknowledged may be gone: the guest is told, now and by SMART, and need not retry."""
    if isinstance(error, Lost):
        controller.events.warn(HealthEvent.RELIABILITY)
        return True
    return False


def _blocks(command: Command) -> tuple[int, int]:
    return command.cdw10 | command.cdw11 << 32, (command.cdw12 & 0xFFFF) + 1


def _transfer(controller: Controller, command: Command, *, writing: bool = False) -> tuple[Namespace, int, int]:
    """Namespace, offset and size in bytes of a command that moves data."""
    namespace = controller.active_namespace(command.nsid)
    first, count = _blocks(command)
    if count << namespace.shift > MAX_TRANSFER:
        raise Failure(Status.INVALID_FIELD)
    return namespace, *(namespace.writable_range(first, count) if writing else namespace.byte_range(first, count))


def _must_be_stable(controller: Controller, command: Command) -> bool:
    """Force Unit Access, or there is no volatile write cache."""
    return bool(command.cdw12 & _FORCE_UNIT_ACCESS) or not controller.settings[Feature.VOLATILE_WRITE_CACHE]


def _data_done(
    controller: Controller,
    buffers: Buffers,
    failure: Callable[[Controller, Outcome], Exception | None],
    outcome: Outcome,
) -> Exception | None:
    if outcome is None:
        buffers.finish()
    else:
        buffers.release()
    return failure(controller, outcome)
