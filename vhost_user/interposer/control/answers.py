"""What an interposer of vhost-user's tells of itself and of its session."""

from __future__ import annotations

from typing import TypedDict

from userdev.interposer.control.answers import ByDirection, TraceStatus
from userdev.interposer.faults.use import RuleShown


class CountersStatus(TypedDict):
    """The counters of a connection so far."""

    messages: ByDirection
    bytes: ByDirection
    unframed: int
    held: int
    faults: int


class SessionStatus(TypedDict):
    """The session under way."""

    state: str
    holding: bool
    held: int
    counters: CountersStatus
    back_end_channel: CountersStatus | None
    """The same of the channel on which the back-end asks; None: there is none."""
    waiting: ByDirection
    """Requests without a reply."""


class InterposerStatus(TypedDict):
    """The result of `status`."""

    sessions: int
    server_pid: int | None
    trace: TraceStatus | None
    rules: list[RuleShown]
    """Of the scenario that happens, over all sessions so far."""
    session: SessionStatus | None


class RingStatus(TypedDict):
    """A ring as the front-end has told of it."""

    size: int
    base: int
    started: bool
    enabled: bool


class RegionStatus(TypedDict):
    """A region of guest memory: addresses of the guest and of the front-end, in bytes."""

    guest_address: int
    size: int
    user_address: int


class SessionShown(TypedDict):
    """The result of `session`; features are names, joined by a bar."""

    state: str
    features: str
    protocol_features: str
    status: str
    rings: dict[int, RingStatus]
    """By index; in JSON that is a string."""
    regions: list[RegionStatus]
