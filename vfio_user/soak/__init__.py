"""A guest at work with its devices, to which what may happen to a guest happens in a random order, and nothing is lost.

docs/soak.md tells how it is used; `events.EVENTS` is what may happen, `loop.Soak` how it goes.
"""

from vfio_user.soak.events import EVENTS, USUAL_WEIGHTS
from vfio_user.soak.failed import Failed
from vfio_user.soak.guest import SoakedSpec
from vfio_user.soak.journal import Journal
from vfio_user.soak.loop import FIRST, LAST, TRIES, Soak, parse_numbers
from vfio_user.soak.measuring import trends
from vfio_user.soak.order import Happening, Order, weights_of
from vfio_user.soak.performance import Recorded, performances
from vfio_user.soak.until import Done, Until

__all__ = [
    "EVENTS",
    "FIRST",
    "LAST",
    "TRIES",
    "USUAL_WEIGHTS",
    "Done",
    "Failed",
    "Happening",
    "Journal",
    "Order",
    "Recorded",
    "Soak",
    "SoakedSpec",
    "Until",
    "parse_numbers",
    "performances",
    "trends",
    "weights_of",
]
