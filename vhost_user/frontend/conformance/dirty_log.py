"""The dirty log: what a device writes while a migration goes on is marked, page by page."""

from __future__ import annotations

from userdev.conformance import Group, Level, Skip, require
from vhost_user.frontend.conformance.bench import AGREED, SERVED, Bench
from vhost_user.frontend.memory import PAGE, DirtyPages
from vhost_user.frontend.queue import Queue
from vhost_user.wire import FrontEndRequest, ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import Log

log = Group[Bench]("log", "spec: Migration", needs=SERVED)

R, P, V = FrontEndRequest, ProtocolFeature, VirtioFeature

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


@log.check("data", needs=AGREED)
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


@log.check("used-ring-elsewhere", level=Level.OPEN, needs=("log/used-ring",))
def log_used_ring_elsewhere(bench: Bench) -> None:
    """Of the used ring that is marked which SET_VRING_ADDR says, also where the guest has no memory."""
    front_end = bench.front_end
    front_end.need_offered(V.LOG_ALL)
    queue = bench.running()
    bench.serve(queue)
    page = front_end.memory.size // PAGE + _FAR
    pages = front_end.share_log(page + 8)
    queue.log_at = page * PAGE
    front_end.log_writes()
    bench.serve(queue)
    require(page in pages.pages(), f"what is marked of the used ring is not page {page}, as SET_VRING_ADDR says")


@log.check("offset", rule="spec: Log description, log offset", needs=("log/data", "log/used-ring"))
def log_offset(bench: Bench) -> None:
    """A log begins where SET_LOG_BASE says, and nothing is written in front of it."""
    queue, _ = _logging(bench)
    pages = bench.front_end.share_log(offset=PAGE)
    bench.serve(queue)
    require(pages.is_whole, "something is written in front of the log")
    require(queue.driver.addresses.used // PAGE in pages.pages(), "the used ring is not marked")


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
