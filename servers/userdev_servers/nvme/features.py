"""Features: values that a guest sets and gets (sections 5.13 and 5.21)."""

from __future__ import annotations

import time
from functools import partial
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from userdev_servers.nvme.feature_table import UNCHANGEABLE, UNDER_TEMPERATURE
from userdev_servers.nvme.io_commands import write_failure
from userdev_servers.nvme.pointers import receive, send
from userdev_servers.nvme.spec import ALL_NAMESPACES, CRITICAL_WARNING, Failure, Feature, HealthEvent, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller
    from userdev_servers.nvme.queues import Command

_ALL_SENSORS = 0xF  # where a threshold is set (section 5.21.1.4)
TEMPERATURE = 0x143
"""Kelvin, always: 50 degrees Celsius."""
_ALL_ONES = 0xFFFF

_SAVE = 1 << 31
_CURRENT, _DEFAULT, _SAVED, _SUPPORTED = range(4)

_CHANGEABLE = 1 << 2


def get_features(controller: Controller, command: Command) -> int:
    """Get Features (section 5.13): the value now, by default, as saved, or what can be done with it.

    Raises:
        Failure: there is no such feature or selection.
    """
    feature, select = command.cdw10 & 0xFF, command.cdw10 >> 8 & 7
    settings = controller.settings
    if feature not in settings and feature != Feature.TIMESTAMP:
        raise Failure(Status.INVALID_FIELD)
    if select == _SUPPORTED:
        return 0 if feature in (Feature.POWER_MANAGEMENT, Feature.ERROR_RECOVERY) else _CHANGEABLE
    if select > _SUPPORTED:
        raise Failure(Status.INVALID_FIELD)
    if feature == Feature.TIMESTAMP:
        send(controller, command, _timestamp(controller))
        return 0
    if feature == Feature.TEMPERATURE_THRESHOLD:
        feature = _threshold(command)
    vector = command.cdw11 & 0xFFFF if feature == Feature.INTERRUPT_VECTOR_CONFIG else 0
    if vector and vector >= controller.model.vectors:
        raise Failure(Status.INVALID_FIELD)
    if select in (_DEFAULT, _SAVED):
        return settings.defaults.get(feature, 0) | vector
    if vector:
        return settings.vector(vector)
    return settings[feature]


def set_features(controller: Controller, command: Command) -> int | None:
    """Set Features (section 5.21); the result is what was granted (Number of Queues), else 0.

    Raises:
        Failure: there is no such feature, or not this value of it.
    """
    feature, value = command.cdw10 & 0xFF, command.cdw11
    if command.cdw10 & _SAVE:
        raise Failure(Status.FEATURE_NOT_SAVEABLE)
    if feature not in controller.settings and feature != Feature.TIMESTAMP:
        raise Failure(Status.INVALID_FIELD)
    if command.nsid not in (0, ALL_NAMESPACES):
        controller.namespace(command.nsid)  # one that cannot be is the first thing that is wrong
        raise Failure(Status.FEATURE_NOT_PER_NAMESPACE)
    if value & UNCHANGEABLE.get(feature, 0):
        raise Failure(Status.FEATURE_NOT_CHANGEABLE)
    match feature:
        case Feature.TIMESTAMP:
            _set_timestamp(controller, receive(controller, command, 8))
        case Feature.NUMBER_OF_QUEUES:
            return _set_queues(controller, value)
        case Feature.TEMPERATURE_THRESHOLD:
            controller.settings[_threshold(command, _ALL_SENSORS)] = value & 0xFFFF
            _warn(controller)
        case Feature.ASYNC_EVENT_CONFIG:
            controller.settings[feature] = value
            _warn(controller)
        case Feature.VOLATILE_WRITE_CACHE:
            return _set_write_cache(controller, command, value & 1)
        case Feature.INTERRUPT_VECTOR_CONFIG:
            if value & 0xFFFF >= max(1, controller.model.vectors):
                raise Failure(Status.INVALID_FIELD)
            controller.settings.set_vector(value & 0xFFFF, value & 0x1FFFF)
        case _:
            controller.settings[feature] = value
    return 0


def critical_warning(controller: Controller) -> int:
    """The first byte of the SMART log."""
    return sum(CRITICAL_WARNING[event] for event in health_events(controller))


def health_events(controller: Controller) -> list[HealthEvent]:
    """The warnings there are to give: a disk that has lost something, a temperature outside of the thresholds."""
    under, over = controller.settings[UNDER_TEMPERATURE], controller.settings[Feature.TEMPERATURE_THRESHOLD]
    found = {
        HealthEvent.RELIABILITY: any(namespace.backing.failure for namespace in controller.namespaces),
        HealthEvent.TEMPERATURE: not under < TEMPERATURE < over,
    }
    return [event for event, is_so in found.items() if is_so]


def _warn(controller: Controller) -> None:
    for event in health_events(controller):
        controller.events.warn(event)


def _set_write_cache(controller: Controller, command: Command, enabled: int) -> int | None:
    """Turn the cache on or off: off at once, for what comes meanwhile; what it holds is on the disk when the command
    ends.
    """
    controller.settings[Feature.VOLATILE_WRITE_CACHE] = enabled
    if enabled:
        return 0
    controller.later(command, controller.sync_namespaces, partial(write_failure, controller))
    return None


def _threshold(command: Command, *others: int) -> int:
    """Which threshold is meant. There is one sensor, number 0, which can have `others`."""
    sensor, which = command.cdw11 >> 16 & 0xF, command.cdw11 >> 20 & 3
    if sensor not in (0, *others) or which > 1:
        raise Failure(Status.INVALID_FIELD)
    return UNDER_TEMPERATURE if which else Feature.TEMPERATURE_THRESHOLD


def _set_queues(controller: Controller, value: int) -> int:
    if _ALL_ONES in (value & 0xFFFF, value >> 16):
        raise Failure(Status.INVALID_FIELD)
    if len(controller.queues.completion) > 1:
        raise Failure(Status.COMMAND_SEQUENCE_ERROR)
    return controller.settings.defaults[Feature.NUMBER_OF_QUEUES]


def _timestamp(controller: Controller) -> bytes:
    """Since the last reset, unless it was set (section 5.21.1.14)."""
    offset, was_set = controller.state.clock
    since_reset = int((time.monotonic() - controller.was_reset_at) * 1000)
    now = (time.time_ns() // 1_000_000 + offset if was_set else since_reset) & (1 << 48) - 1
    return pack("<Q", now | was_set << 49)


def _set_timestamp(controller: Controller, data: bytes) -> None:
    (value,) = unpack_from("<Q", data)
    controller.state.clock = [(value & (1 << 48) - 1) - time.time_ns() // 1_000_000, 1]
