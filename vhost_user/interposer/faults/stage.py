"""A scenario at work in a session: on its connection, and on the back-end's channels as they come."""

from __future__ import annotations

from collections.abc import Callable

from userdev.interposer.faults.stage import Faults
from vhost_user.interposer.conversation import Conversation, FrontEndSession
from vhost_user.interposer.faults.engine import FaultEngine
from vhost_user.interposer.faults.scenario import Scenario
from vhost_user.wire import Message


class SessionFaults:
    """Each connection counts, and draws, by itself; all have the session's clock."""

    def __init__(self, session: FrontEndSession, scenario: Scenario, signal_server: Callable[[int], int]) -> None:
        self._session = session
        self._scenario = scenario
        self._signal_server = signal_server
        self._faults: dict[Conversation, Faults[Message]] = {}
        for conversation in (session, *session.channels):
            self._begin(conversation)
        session.on_channel.append(self._begin)

    def remove(self) -> None:
        """Stop interfering; what waits is sent now."""
        self._session.on_channel.remove(self._begin)
        for faults in self._faults.values():
            faults.remove()

    def _begin(self, conversation: Conversation) -> None:
        for ended in [each for each in self._faults if each.closed]:  # a front-end may have one channel after another
            del self._faults[ended]
        engine = FaultEngine(self._scenario, conversation.asker, conversation.is_answered)
        self._faults[conversation] = Faults(conversation, engine, self._signal_server, self._session.began)
