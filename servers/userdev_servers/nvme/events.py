"""Asynchronous events: what the guest is told without having asked now (section 5.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev_servers.nvme.spec import CRITICAL_WARNING, EventType, Failure, Feature, HealthEvent, LogPage, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.queues import Command

REQUEST_LIMIT = 4
NAMESPACE_NOTICES = 1 << 8
"""Bit of the Asynchronous Event Configuration feature, and of OAES."""


class Events:
    """Requests that wait for events, and events that wait for requests; both are the device's declared state."""

    def __init__(self, device: Nvme) -> None:
        self._device = device

    def request(self, command: Command) -> None:
        """Asynchronous Event Request: ends when there is something to tell. It holds no place in the queue."""
        device = self._device
        if len(device.event_requests) >= REQUEST_LIMIT:
            raise Failure(Status.TOO_MANY_EVENT_REQUESTS)
        command.queue.cq.claimed -= 1
        device.event_requests.append(command.cid)
        self.deliver()

    def abort(self, cid: int) -> bool:
        """Give up a request; whether there was one of this identifier."""
        if cid not in self._device.event_requests:
            return False
        self._device.event_requests.remove(cid)
        return True

    def add(self, type: EventType, information: int, page: LogPage) -> None:
        """Something happened. A type is told once until its log page was read."""
        device = self._device
        wanted = device.setting(Feature.ASYNC_EVENT_CONFIG)
        unwanted = type is EventType.NOTICE and not wanted & NAMESPACE_NOTICES
        if unwanted or not device.enabled or type in (event[0] for event in device.events):
            return
        device.events.append([type, information, page])
        self.deliver()

    def warn(self, event: HealthEvent) -> None:
        """A critical warning is in the SMART log from now on."""
        if self._device.setting(Feature.ASYNC_EVENT_CONFIG) & CRITICAL_WARNING[event]:
            self.add(EventType.SMART, event, LogPage.SMART)

    def seen(self, page: int) -> None:
        """The guest has read a log page: what points there may be told again."""
        device = self._device
        if page == LogPage.CHANGED_NAMESPACES:
            device.changed_namespaces = []
        types = {
            LogPage.ERRORS: EventType.ERROR,
            LogPage.SMART: EventType.SMART,
            LogPage.CHANGED_NAMESPACES: EventType.NOTICE,
        }
        if (type := types.get(LogPage(page))) in device.event_types_sent:
            device.event_types_sent.remove(int(type or 0))
            self.deliver()

    def deliver(self) -> None:
        """Bring events and requests together, as far as the admin queue has room."""
        device = self._device
        admin = device.engine.submission_queues.get(0)
        if admin is not None and device.events:
            admin.cq.look(device.dma)
        for event in list(device.events):
            type, information, page = event
            if admin is None or not device.event_requests or admin.cq.room <= 0:
                return
            if type in device.event_types_sent:
                continue
            device.events.remove(event)
            device.event_types_sent.append(int(type))
            device.engine.answer(admin, device.event_requests.pop(0), page << 16 | information << 8 | type)
