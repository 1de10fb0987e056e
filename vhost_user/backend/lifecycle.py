"""The life of a ring as a table: what each event makes of each state ("Ring states").

A ring is stopped until its kick descriptor comes, and disabled until it is enabled; it is served when it is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class RingState(Enum):
    """The states of a ring. Requests are taken in RUNNING alone."""

    STOPPED = "stopped"
    """And disabled."""
    ENABLED = "enabled"
    """And stopped still: QEMU enables all rings of a device, those too that its driver does not use."""
    STARTED = "started"
    """And disabled still."""
    RUNNING = "running"
    BROKEN = "broken"
    """What was in it cannot be right, or its device has failed: until it is stopped and started again."""
    BROKEN_DISABLED = "broken and disabled"
    """Enabling it mends nothing: what it had under way when it broke is told by GET_VRING_BASE alone."""

    @property
    def is_started(self) -> bool:
        """Whether SET_VRING_KICK has come since it was stopped."""
        return self not in (RingState.STOPPED, RingState.ENABLED)

    @property
    def is_broken(self) -> bool:
        """Whether it takes nothing before it was stopped."""
        return self in (RingState.BROKEN, RingState.BROKEN_DISABLED)


class RingEvent(Enum):
    """The events that befall a ring."""

    START = "start"
    """SET_VRING_KICK."""
    ENABLE = "enable"
    DISABLE = "disable"
    BREAK = "break"
    STOP = "stop"
    """GET_VRING_BASE, RESET_DEVICE, SET_OWNER, SET_STATUS 0, the end of the connection: all by `Vrings.stop`."""


_S, _E = RingState, RingEvent

TRANSITIONS: Mapping[RingState, Mapping[RingEvent, RingState]] = MappingProxyType(
    {
        _S.STOPPED: {_E.START: _S.STARTED, _E.ENABLE: _S.ENABLED},
        _S.ENABLED: {_E.START: _S.RUNNING, _E.DISABLE: _S.STOPPED},
        _S.STARTED: {_E.ENABLE: _S.RUNNING, _E.BREAK: _S.BROKEN_DISABLED, _E.STOP: _S.STOPPED},
        _S.RUNNING: {_E.DISABLE: _S.STARTED, _E.BREAK: _S.BROKEN, _E.STOP: _S.ENABLED},
        _S.BROKEN: {_E.DISABLE: _S.BROKEN_DISABLED, _E.STOP: _S.ENABLED},
        _S.BROKEN_DISABLED: {_E.ENABLE: _S.BROKEN, _E.STOP: _S.STOPPED},
    }
)
"""An event that is not in a state's row changes nothing there."""


def after(state: RingState, event: RingEvent) -> RingState:
    """The state that follows."""
    return TRANSITIONS[state].get(event, state)
