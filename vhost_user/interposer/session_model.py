"""What is known of a session from its messages: what was agreed on, the rings and where they are, memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from userdev.errors import ProtocolError
from vhost_user.interposer.asker import Asker
from vhost_user.interposer.unanswered import LIMIT
from vhost_user.wire import (
    VRING_MASK,
    DeviceStatus,
    FrontEndRequest,
    Message,
    Negotiated,
    ProtocolFeature,
    VirtioFeature,
    is_postcopy_acknowledgement,
)
from vhost_user.wire.messages import shape_of
from vhost_user.wire.payloads import Region

_R = FrontEndRequest
STATES = ("before-features", "set-up", "running", "stopped")
"""Until SET_FEATURES; until a ring was started; while one is; and while none is any more."""


MAX_SLOTS = 1024
"""Regions that are shown, more than a front-end has slots for (QEMU: 509). What is not acknowledged nobody refuses."""

_STOPS = (_R.GET_VRING_BASE, _R.GET_VRING_BASE_SKIP_DRAIN)
_MEMORY = (_R.SET_MEM_TABLE, _R.ADD_MEM_REG, _R.REM_MEM_REG)


def is_answered(negotiated: Negotiated, asker: Asker, message: Message) -> bool:
    """Whether a request is answered; one that nobody knows where it asks for an acknowledgement, as any other."""
    request = asker.request(message.request)
    if request is None:
        return message.needs_reply and ProtocolFeature.REPLY_ACK in negotiated.protocol_features
    return negotiated.is_answered(request, message)


@dataclass
class _MemoryChange:
    """A request for other memory; `done` is None until the back-end has said whether it is."""

    request: FrontEndRequest
    value: Any
    done: bool | None


@dataclass
class RingShown:
    """A ring, as the front-end has told of it; `base` is that of a start, or of the last stop."""

    size: int = 0
    base: int = 0
    started: bool = False
    enabled: bool = False


@dataclass
class SessionModel:
    """The state of a session, as the front-end's requests have it: refused ones end the connection, nearly always.

    Memory is what the back-end has acknowledged, where it was asked to: it may refuse a region and go on.
    """

    negotiated: Negotiated = field(default_factory=Negotiated)
    rings: dict[int, RingShown] = field(default_factory=dict)
    regions: dict[int, Region] = field(default_factory=dict)
    """By guest address."""
    status: DeviceStatus = field(default_factory=lambda: DeviceStatus(0))
    _changes: deque[_MemoryChange] = field(default_factory=deque)
    """In their order, from the first that has no answer on."""
    _agreed: bool = False
    _ran: bool = False

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if any(ring.started for ring in self.rings.values()):
            return "running"
        if self._ran:
            return "stopped"
        return "set-up" if self._agreed else "before-features"

    def is_answered(self, message: Message) -> bool:
        """Whether a request of the front-end's is answered."""
        return not self._acknowledges(message) and is_answered(self.negotiated, Asker.FRONT_END, message)

    def requested(self, message: Message) -> None:
        """Learn of a request that has gone to the back-end; one that cannot be read teaches nothing."""
        try:
            request = FrontEndRequest(message.request)
            value = shape_of(request).payload.decode(message.payload)
        except (ValueError, ProtocolError):
            return
        if self._acknowledges(message):
            return
        if request in _MEMORY and self._changes:
            self._change_memory(_MemoryChange(request, value, done=True))
        else:
            self._learn(request, value)

    def awaited(self, message: Message) -> Callable[[Message | None], None] | None:
        """Who is to be told of the acknowledgement of a request for other memory; None where it is no such request, or
        not acknowledged: then it is `requested`.
        """
        if message.request not in _MEMORY or self._acknowledges(message):
            return None
        request = FrontEndRequest(message.request)
        if self.negotiated.is_own_reply(request) or not self.negotiated.is_answered(request, message):
            return None
        try:
            change = _MemoryChange(request, shape_of(request).payload.decode(message.payload), done=None)
        except ProtocolError:
            return None
        self._change_memory(change)
        return lambda reply: self._settle(change, reply)

    def _change_memory(self, change: _MemoryChange) -> None:
        self._changes.append(change)
        if len(self._changes) > LIMIT:
            self._changes[0].done = True
            self._make_changes()

    def _settle(self, change: _MemoryChange, reply: Message | None) -> None:
        change.done = reply is None or not any(reply.payload)
        self._make_changes()

    def _make_changes(self) -> None:
        while self._changes and self._changes[0].done is not None:
            change = self._changes.popleft()
            if change.done:
                self._learn(change.request, change.value)

    def answered(self, message: Message) -> None:
        """Learn of a reply of the back-end's: where a ring has stopped."""
        if message.request not in _STOPS:
            return
        try:
            state = shape_of(FrontEndRequest(message.request)).reply_payload.decode(message.payload)
        except ProtocolError:
            return
        self._ring(state.vring).base = state.num

    def _learn(self, request: FrontEndRequest, value: Any) -> None:
        match request:
            case _R.SET_FEATURES:
                self._agreed = True
                self.negotiated = replace(self.negotiated, features=VirtioFeature(value))
                if not value & VirtioFeature.PROTOCOL_FEATURES:
                    self._enable_all(True)
            case _R.SET_PROTOCOL_FEATURES:
                self.negotiated = replace(self.negotiated, protocol_features=ProtocolFeature(value))
            case _R.POSTCOPY_LISTEN:
                self.negotiated = replace(self.negotiated, postcopy=True)
            case _R.POSTCOPY_END:
                self.negotiated = replace(self.negotiated, postcopy=False)
            case _R.SET_STATUS:
                if not value:
                    self._reset()
                self.status = DeviceStatus(value)
            case _R.SET_MEM_TABLE:
                self.regions = {region.guest_address: region for region in value}
            case _R.ADD_MEM_REG:
                if len(self.regions) < MAX_SLOTS or value.guest_address in self.regions:
                    self.regions[value.guest_address] = value
            case _R.REM_MEM_REG:
                self.regions.pop(value.guest_address, None)
            case _R.RESET_DEVICE:
                self._reset()
            case _R.RESET_OWNER:
                self._enable_all(False)
            case _R.SET_OWNER:
                self._begin_anew()
            case _:
                self._learn_of_ring(request, value)

    def _learn_of_ring(self, request: FrontEndRequest, value: Any) -> None:
        match request:
            case _R.SET_VRING_NUM:
                self._ring(value.vring).size = value.num
            case _R.SET_VRING_BASE:
                self._ring(value.vring).base = value.num
            case _R.SET_VRING_ENABLE:
                self._ring(value.vring).enabled = bool(value.num)
            case _R.SET_VRING_KICK:
                self._start(value & VRING_MASK)
            case _R.VRING_KICK:
                self._start(value.vring)
            case _R.GET_VRING_BASE | _R.GET_VRING_BASE_SKIP_DRAIN:
                self._ring(value.vring).started = False

    def _reset(self) -> None:
        self.status = DeviceStatus(0)
        self._enable_all(False)
        for ring in self.rings.values():
            ring.started = False

    def _enable_all(self, on: bool) -> None:
        for ring in self.rings.values():
            ring.enabled = on

    def _begin_anew(self) -> None:
        """Another owner says everything again, but for protocol features, which come before SET_OWNER."""
        self.negotiated = Negotiated(protocol_features=self.negotiated.protocol_features)
        self.status = DeviceStatus(0)
        self._agreed = self._ran = False
        self.rings.clear()
        self.regions.clear()
        self._changes.clear()

    def _start(self, index: int) -> None:
        ring = self._ring(index)
        ring.started = self._ran = True
        if VirtioFeature.PROTOCOL_FEATURES not in self.negotiated.features:
            ring.enabled = True

    def _ring(self, index: int) -> RingShown:
        return self.rings.setdefault(index & VRING_MASK, RingShown())

    def _acknowledges(self, message: Message) -> bool:
        return self.negotiated.postcopy and is_postcopy_acknowledgement(message)
