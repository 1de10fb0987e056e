"""Asynchronous events: what the guest is told without having asked now (section 5.2)."""

from __future__ import annotations

from userdev_servers.nvme.model import REQUEST_LIMIT
from userdev_servers.nvme.queue_pairs import QueuePairs
from userdev_servers.nvme.queues import Command
from userdev_servers.nvme.settings import Settings
from userdev_servers.nvme.spec import CRITICAL_WARNING, EventType, Failure, Feature, HealthEvent, LogPage, Status
from userdev_servers.nvme.state import ControllerState

NAMESPACE_NOTICES = 1 << 8
"""Bit of the Asynchronous Event Configuration feature, and of OAES."""
_TYPES = {
    LogPage.ERRORS: EventType.ERROR,
    LogPage.SMART: EventType.SMART,
    LogPage.CHANGED_NAMESPACES: EventType.NOTICE,
}
"""Of the events that point to a log page."""


class Events:
    """Requests that wait for events, and events that wait for requests; both are the controller's declared state."""

    def __init__(self, state: ControllerState, settings: Settings, queues: QueuePairs) -> None:
        self._state = state
        self._settings = settings
        self._queues = queues

    def request(self, command: Command) -> None:
        """Asynchronous Event Request: ends when there is something to tell. It holds no place in the queue."""
        state = self._state
        if len(state.event_requests) >= REQUEST_LIMIT:
            raise Failure(Status.TOO_MANY_EVENT_REQUESTS)
        command.queue.cq.claimed -= 1
        state.event_requests.append(command.cid)
        self.deliver()

    def abort(self, cid: int) -> bool:
        """Give up a request; whether there was one of this identifier."""
        if cid not in self._state.event_requests:
            return False
        self._state.event_requests.remove(cid)
        return True

    def add(self, type: EventType, information: int, page: LogPage) -> None:
        """Add an event. A type is told once until its log page was read."""
        state = self._state
        unwanted = type is EventType.NOTICE and not self._settings[Feature.ASYNC_EVENT_CONFIG] & NAMESPACE_NOTICES
        if unwanted or not state.enabled or type in (event[0] for event in state.events):
            return
        state.events.append([type, information, page])
        self.deliver()

    def warn(self, event: HealthEvent) -> None:
        """A critical warning is in the SMART log from now on."""
        if self._settings[Feature.ASYNC_EVENT_CONFIG] & CRITICAL_WARNING[event]:
            self.add(EventType.SMART, event, LogPage.SMART)

    def seen(self, page: int) -> None:
        """The guest has read a log page: what points there may be told again."""
        state = self._state
        if page == LogPage.CHANGED_NAMESPACES:
            state.changed_namespaces = []
        if (type := _TYPES.get(LogPage(page))) in state.event_types_sent:
            state.event_types_sent.remove(int(type or 0))
            self.deliver()

    def deliver(self) -> None:
        """Bring events and requests together, as far as the admin queue has room."""
        state, admin = self._state, self._queues.submission.get(0)
        if admin is not None and state.events:
            self._queues.look(admin.cq)
        for event in list(state.events):
            type, information, page = event
            if admin is None or not state.event_requests or admin.cq.room <= 0:
                return
            if type in state.event_types_sent:
                continue
            state.events.remove(event)
            state.event_types_sent.append(int(type))
            self._queues.answer(admin, state.event_requests.pop(0), page << 16 | information << 8 | type)
