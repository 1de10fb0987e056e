"""The device's state, which a migration takes to another back-end."""

from __future__ import annotations

from userdev.conformance import CheckFailed, Group, Level, Skip
from vhost_user.frontend.conformance.bench import SERVED, Bench
from vhost_user.frontend.conformance.rings import BASE
from vhost_user.frontend.errors import BackEndError
from vhost_user.frontend.front_end import FrontEnd
from vhost_user.frontend.queue import Queue
from vhost_user.wire import ProtocolFeature

state = Group[Bench]("state", "spec: Migrating back-end state", needs=SERVED)

P = ProtocolFeature


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


@state.check("resumed", needs=("state/saved", *BASE))
def state_resumed(bench: Bench) -> None:
    """A device that has saved its state goes on, as where a migration fails."""
    queue = _stopped(bench, bench.front_end)
    bench.front_end.save_state()
    bench.start_beside()
    queue.start()
    bench.serve(queue)


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
