"""A requirement of a check, and who does not keep it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.conformance_target import Fault
from tests.everything_device import Everything
from vfio_user.device import PciDevice
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Dialect


class Clause(NamedTuple):
    """A requirement: its check, words of what that says of who does not keep it, and who does not."""

    id: str
    words: str
    server: Fault | type[Session]
    dialect: Dialect = CURRENT
    device: Callable[[], PciDevice] = Everything
