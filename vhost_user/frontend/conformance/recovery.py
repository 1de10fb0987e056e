"""What a migration and a back-end's death ask: dirty log, in-flight region, the device's state, later pages."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from userdev.conformance import CheckFailed, Group, Level, Skip, Unmet, require
from userdev.memory.guard import guard
from userdev.memory.shrinking import can_shrink
from userdev.transport import close_all
from vhost_user.frontend.conformance.bench import RING, SERVED, Bench
from vhost_user.frontend.errors import BackEndError
from vhost_user.frontend.front_end import PROTOCOL_FEATURES, FrontEnd, InflightBuffer
from vhost_user.frontend.memory import PAGE, DirtyPages
from vhost_user.frontend.queue import Queue
from vhost_user.frontend.split import SplitDriver
from vhost_user.rings import region_size
from vhost_user.wire import FrontEndRequest, ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import Log

log = Group[Bench]("log", "spec: Migration", needs=SERVED)
inflight = Group[Bench]("inflight", "spec: Inflight I/O tracking", needs=SERVED)
state = Group[Bench]("state", "spec: Migrating back-end state", needs=SERVED)
postcopy = Group[Bench]("postcopy", "spec: Front-end message types, POSTCOPY_ADVISE", needs=SERVED)

R, P, V = FrontEndRequest, ProtocolFeature, VirtioFeature


# The dirty log

_FAR = 256
"""The page that requests lie behind: 8 pages share a byte of the log, which some back-ends mark as a whole."""


def _logging(bench: Bench) -> tuple[Queue, DirtyPages]:
    """A ring that runs, and a log; what is written is marked from now on."""
    front_end = bench.front_end
    front_end.need_offered(V.LOG_ALL)
    queue = bench.running()
    bench.serve(queue)
    pages = front_end.share_log()
    front_end.log_writes()
    bench.fill_to(front_end, _FAR * PAGE)
    return queue, pages


@log.check("answered", rule="spec: Communication, SET_LOG_BASE")
def log_answered(bench: Bench) -> None:
    """A log in shared memory is taken, and answered once."""
    bench.front_end.need(P.LOG_SHMFD)
    bench.front_end.share_log()
    bench.front_end.settle()


@log.check("answer", level=Level.OPEN, rule="spec: Front-end message types, SET_LOG_BASE: its reply has no payload")
def log_answer(bench: Bench) -> None:
    """The answer to a log that was taken is the number 0."""
    front_end = bench.front_end
    front_end.need(P.LOG_SHMFD)
    pages = front_end.share_log()
    answer = front_end.ask(R.SET_LOG_BASE, Log(pages.size, 0), [pages.fd])
    require(answer == 0, f"SET_LOG_BASE is answered with {answer if answer is not None else 'no payload'}")


@log.check("data")
def log_data(bench: Bench) -> None:
    """What a device writes is marked, page by page."""
    if not bench.device.writable:
        raise Skip(f"the request of {bench.device.name} has nothing written")
    queue, pages = _logging(bench)
    request = bench.put(queue)
    queue.kick()
    [done] = bench.served(queue)
    lengths = [buffer if isinstance(buffer, int) else 0 for buffer in bench.device.request]
    wanted: set[int] = set()
    left = done.written
    for place, length in zip(request.places, lengths, strict=True):
        if take := min(left, length):
            wanted |= set(range(place // PAGE, (place + take - 1) // PAGE + 1))
            left -= take
    missing = wanted - pages.pages()
    require(not missing, f"what was written to pages {sorted(missing)} is not marked")


@log.check("used-ring", needs=("log/data",))
def log_used_ring(bench: Bench) -> None:
    """What a device writes to the used ring is marked, where SET_VRING_ADDR asks for that."""
    queue, pages = _logging(bench)
    pages.clear()
    bench.serve(queue)
    page = queue.driver.addresses.used // PAGE
    require(page in pages.pages(), f"the used ring, page {page}, is not marked")


@log.check("another", needs=("log/data", "log/used-ring"))
def log_another(bench: Bench) -> None:
    """Another log, given while rings run, is marked from then on."""
    queue, pages = _logging(bench)
    bench.serve(queue)
    other = bench.front_end.share_log()
    bench.serve(queue)
    require(other.pages() & pages.pages(), "nothing is marked in the second log")


@log.check("off", level=Level.OPEN)
def log_off(bench: Bench) -> None:
    """Nothing is marked before LOG_ALL is agreed on, nor after it was taken back."""
    front_end = bench.front_end
    front_end.need_offered(V.LOG_ALL)
    queue = bench.running()
    pages = front_end.share_log()
    bench.serve(queue)
    require(not pages.pages(), "something is marked before LOG_ALL is agreed on")
    front_end.log_writes()
    bench.serve(queue)
    front_end.log_writes(False)
    pages.clear()
    bench.serve(queue)
    require(not pages.pages(), "something is marked after LOG_ALL was taken back")


# The in-flight region

_GIVEN = "inflight/given"
_VERSION, _DESC_NUM, _USED_IDX = 8, 10, 14
_DESC, _DESC_SIZE = 16, 16
"""Offsets in the region of a split ring (QueueRegionSplit), where the states of descriptors are (DescStateSplit)."""


def _tracking(bench: Bench) -> InflightBuffer:
    bench.front_end.need(P.INFLIGHT_SHMFD)
    return bench.front_end.ask_inflight(bench.device.queue + 1, RING)


@contextmanager
def _mapped(region: InflightBuffer, queue: Queue) -> Iterator[memoryview]:
    """The part of a queue. A back-end that makes the file smaller behind that is survived."""
    described = region.described
    part = region_size(RING, packed=False)
    start = described.mmap_offset + part * queue.index
    try:
        memory = mmap.mmap(region.fd, described.mmap_offset + described.mmap_size)
    except (OSError, ValueError, OverflowError) as error:
        raise Unmet(_GIVEN, f"the region cannot be mapped: {error}") from None
    with memory:
        if can_shrink(region.fd):
            guard(memory)
        if len(memory) < start + part:
            raise Unmet(_GIVEN, f"the region has {described.mmap_size} bytes, too few for queue {queue.index}")
        view = memoryview(memory)[start : start + part]
        try:
            yield view
        finally:
            view.release()


@inflight.check("given", rule="spec: Front-end message types, GET_INFLIGHT_FD")
def inflight_given(bench: Bench) -> None:
    """A region is given that has room for the rings, as long as it is said to be."""
    bench.front_end.need(P.INFLIGHT_SHMFD)
    described, fd = bench.front_end.ask_inflight(1, RING)
    least, size = region_size(RING, packed=False), os.fstat(fd).st_size
    require(described.mmap_size >= least, f"the region has {described.mmap_size} bytes, and the ring needs {least}")
    require(size >= described.mmap_offset + described.mmap_size, f"the region's file has {size} bytes: {described}")
    require((described.num_queues, described.queue_size) == (1, RING), f"a region for 1 ring of {RING} is {described}")


@inflight.check("taken", rule="spec: Front-end message types, SET_INFLIGHT_FD", needs=(_GIVEN,))
def inflight_taken(bench: Bench) -> None:
    """A region is taken back, and rings are served with it."""
    bench.front_end.set_inflight(_tracking(bench))
    bench.serve(bench.running(), 3)


@inflight.check("kept", needs=(_GIVEN,))
def inflight_kept(bench: Bench) -> None:
    """The region of a ring that is served says its version, its size and where it is, and nothing is under way."""
    region = _tracking(bench)
    bench.front_end.set_inflight(region)
    queue = bench.running()
    bench.serve(queue, 3)
    queue.stop()
    with _mapped(region, queue) as part:
        version, size = struct.unpack_from("<HH", part, _VERSION)
        (used,) = struct.unpack_from("<H", part, _USED_IDX)
        under_way = [index for index in range(RING) if part[_DESC + _DESC_SIZE * index]]
    require((version, size) == (1, RING), f"the region is of version {version}, for {size} descriptors")
    require(used == 3, f"the region says that {used} requests have come back, of 3")
    require(not under_way, f"descriptors {under_way} are under way, and all requests have come back")


@inflight.check("resubmitted", rule="spec: Inflight I/O tracking, When reconnecting", needs=(_GIVEN,))
def inflight_resubmitted(bench: Bench) -> None:
    """What a back-end that died had taken is done by the next, once, as is what it had not taken."""
    region = _tracking(bench)
    front_end = bench.front_end
    queue = bench.queue()
    driver = queue.driver
    assert isinstance(driver, SplitDriver)
    taken = bench.put(queue).head
    bench.put(queue)
    with _mapped(region, queue) as part:  # as one leaves it that has died with the first request
        struct.pack_into("<HH", part, _VERSION, 1, RING)
        part[_DESC + _DESC_SIZE * taken] = 1
    bench.again(front_end)
    front_end.set_inflight(region)
    bench.start_beside()
    queue.start(0)
    bench.served(queue, 2)
    base = queue.stop()
    require(base == 2, f"2 requests were there, and GET_VRING_BASE says {base}")
    require(driver.used_index == 2, f"{driver.used_index} requests came back, of 2")


# The device's state


def _stopped(bench: Bench, front_end: FrontEnd) -> Queue:
    """A ring that was served and stopped."""
    front_end.need(P.DEVICE_STATE)
    queue = bench.running(front_end)
    bench.serve(queue)
    queue.stop()
    bench.stop_beside()
    return queue


@state.check("saved")
def state_saved(bench: Bench) -> None:
    """A device whose rings are stopped saves its state, to an end."""
    _stopped(bench, bench.front_end)
    bench.front_end.save_state()
    bench.front_end.settle()


@state.check("loaded")
def state_loaded(bench: Bench) -> None:
    """A device takes the state that it has saved, by another connection, and goes on."""
    front_end = bench.front_end
    queue = _stopped(bench, front_end)
    saved = front_end.save_state()
    bench.again(front_end)
    front_end.load_state(saved)
    bench.start_beside()
    queue.start()
    bench.serve(queue)


@state.check("cut-off", level=Level.OPEN, rule="spec: CHECK_DEVICE_STATE")
def state_cut_off(bench: Bench) -> None:
    """A state that is cut off is refused."""
    front_end = bench.front_end
    _stopped(bench, front_end)
    saved = front_end.save_state()
    if not saved:
        raise Skip("the device has no state")
    bench.again(front_end)
    try:
        front_end.load_state(saved[: len(saved) // 2])
    except BackEndError:
        return
    raise CheckFailed(f"{len(saved) // 2} of {len(saved)} bytes are taken for a whole state")


# Memory that comes later


def _advised(bench: Bench) -> tuple[FrontEnd, list[int]]:
    """One that has asked for a userfaultfd, and what came; there are no slots (specification, CONFIGURE_MEM_SLOTS)."""
    front_end = bench.agreed(protocol=PROTOCOL_FEATURES & ~P.CONFIGURE_MEM_SLOTS | P.PAGEFAULT)
    front_end.need(P.PAGEFAULT)
    _, fds = front_end.ask_for_fds(R.POSTCOPY_ADVISE)
    return front_end, fds


@postcopy.check("advised")
def postcopy_advised(bench: Bench) -> None:
    """A migration whose memory comes later is advised with a userfaultfd."""
    front_end, fds = _advised(bench)
    kinds = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds]
    close_all(fds)
    require(kinds == ["anon_inode:[userfaultfd]"], f"POSTCOPY_ADVISE is answered with {kinds or 'no descriptor'}")
    front_end.settle()


@postcopy.check("ended", rule="spec: Front-end message types, POSTCOPY_END", needs=("postcopy/advised",))
def postcopy_ended(bench: Bench) -> None:
    """Its end is acknowledged with 0, and memory that is shared after that is there."""
    front_end, fds = _advised(bench)
    close_all(fds)
    front_end.do(R.POSTCOPY_LISTEN)
    answer = front_end.ask(R.POSTCOPY_END)
    require(answer == 0, f"POSTCOPY_END is answered with {answer:#x}")
    front_end.share_memory()
    bench.serve(bench.running(front_end))
