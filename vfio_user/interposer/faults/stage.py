"""A scenario at work in a session of vfio-user's."""

from __future__ import annotations

from collections.abc import Callable

from userdev.interposer.faults import stage
from vfio_user.interposer.faults.engine import FaultEngine
from vfio_user.interposer.faults.scenario import Scenario
from vfio_user.interposer.session import ForwardedSession
from vfio_user.wire import Message


class Faults(stage.Faults[Message]):
    """A scenario at work in one session. Both directions' stage is the object itself."""

    def __init__(self, session: ForwardedSession, scenario: Scenario, signal_server: Callable[[int], int]) -> None:
        super().__init__(session, FaultEngine(scenario, session.dialect), signal_server)
