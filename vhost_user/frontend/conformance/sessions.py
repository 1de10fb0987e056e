"""Front-ends that come and go, well or badly, and what is left of them."""

from __future__ import annotations

import time
from operator import gt

from userdev.conformance import CheckFailed, Group, Level, require
from userdev.errors import UserdevError, UserError
from userdev.process import Deadline
from vhost_user.frontend.conformance.bench import CLOSING_SECONDS, LOOK_SECONDS, SERVED, Bench
from vhost_user.wire import HEADER, VERSION, FrontEndRequest

session = Group[Bench]("session", "spec: Communication", needs=SERVED)

R = FrontEndRequest

SECOND_SECONDS = 3.0
"""That a second front-end is watched: ours is hung up on after 2 s, in which the first may have been leaving."""

_VISITS = 4
"""Front-ends in a row, of which nothing may be left."""


@session.check("next")
def next_one(bench: Bench) -> None:
    """A front-end that leaves without a word is followed by the next."""
    for _ in range(3):
        bench.ready().close()
    bench.alive()


@session.check("gone-while-running")
def gone_while_running(bench: Bench) -> None:
    """A front-end that leaves with a ring that has requests is followed by the next, which is served."""
    for _ in range(3):
        front_end = bench.ready()
        queue = bench.running(front_end)
        bench.put(queue)
        queue.kick()
        front_end.close()
    bench.serve(bench.running())


@session.check("cut-off", level=Level.OPEN)
def cut_off(bench: Bench) -> None:
    """A front-end that leaves in the middle of a message is followed by the next."""
    header = HEADER.pack(int(R.SET_FEATURES), VERSION, 8)
    for data in (header[:7], header + b"\0"):
        front_end = bench.agreed()
        front_end.send_bytes(data)
        front_end.close()
    bench.alive()


@session.check("second", level=Level.OPEN, rule="spec: Introduction, one front-end and one back-end")
def second(bench: Bench) -> None:
    """A second front-end is hung up on, rather than left to wait without a limit."""
    queue = bench.running()
    try:
        other = bench.stranger(answered=False)
    except UserError:
        return  # nobody listens: that is an answer
    other.timeout = min(bench.timeout, SECOND_SECONDS)
    try:
        other.send(R.GET_FEATURES)
        gone = bench.ends(other)
    except UserdevError:
        gone = True
    try:
        bench.serve(queue)
    except UserdevError as error:
        raise CheckFailed(f"the first front-end is not served any more: {error}") from None
    require(gone, "it waits, or is served beside the first")


@session.check("nothing-left")
def nothing_left(bench: Bench) -> None:
    """Of front-ends that have gone, no descriptor and no mapping is left."""

    def visit() -> None:
        front_end = bench.ready()
        queue = bench.running(front_end)
        bench.serve(queue)
        queue.stop()
        front_end.close()

    def held(most: tuple[int, int] | None = None) -> tuple[int, int]:
        """While one more front-end is there, so that all others have been seen to leave; and a moment later than that
        where it is more than `most`.
        """
        front_end = bench.agreed()
        deadline = Deadline(CLOSING_SECONDS)
        while any(map(gt, holds := bench.process_holds(), most or holds)) and not deadline.passed:
            front_end.settle()
            time.sleep(min(LOOK_SECONDS, deadline.remaining))
        front_end.close()
        return holds

    visit()
    pid, before = bench.target.pid, held()
    for _ in range(_VISITS):
        visit()
    after = held(before)
    if bench.target.pid == pid:  # another process has nothing of those that one served
        for what, was, now in zip(("descriptors", "mappings of memory files"), before, after, strict=True):
            require(now <= was, f"it has {now} {what} after {_VISITS} more front-ends, and had {was}")
