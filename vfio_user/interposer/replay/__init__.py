"""A recorded session, played again: the client's side of a trace against a server, without QEMU and without a guest.

A recorded bug becomes a test of a few lines::

    from vfio_user.interposer.replay import replay

    def test_the_doorbell_that_was_lost() -> None:
        replay("traces/doorbell.trace", "vfio-user serve mydevice --fd {fd}").check()
"""

from vfio_user.interposer.replay.ignoring import Ignored
from vfio_user.interposer.replay.minimize import minimize
from vfio_user.interposer.replay.outcome import Difference, ReplayOutcome, What
from vfio_user.interposer.replay.player import replay
from vfio_user.interposer.replay.reducing import Minimized, reduce_script
from vfio_user.interposer.replay.script import Script, load_script

__all__ = [
    "Difference",
    "Ignored",
    "Minimized",
    "ReplayOutcome",
    "Script",
    "What",
    "load_script",
    "minimize",
    "reduce_script",
    "replay",
]
