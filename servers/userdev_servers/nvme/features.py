"""Features: values that a guest sets and gets (sections 5.14 and 5.21)."""

from __future__ import annotations

import time
from functools import partial
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from userdev_servers.nvme.io_commands import write_failure
from userdev_servers.nvme.pointers import receive, send
from userdev_servers.nvme.spec import ALL_NAMESPACES, CRITICAL_WARNING, Failure, Feature, HealthEvent, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.queues import Command

TEMPERATURE = 0x143
"""Kelvin, always: 50 degrees Celsius."""
_THRESHOLD = 0x157
"""Kelvin, of the warning."""
_UNDER = 1 << 20
"""Bit of Temperature Threshold: the lower one is meant. It is kept beside the upper one, under this number."""
UNDER_TEMPERATURE = Feature.TEMPERATURE_THRESHOLD | _UNDER
_ALL_ONES = 0xFFFF

_SAVE = 1 << 31
_CURRENT, _DEFAULT, _SAVED, _SUPPORTED = range(4)

_UNCHANGEABLE: dict[int, int] = {Feature.ERROR_RECOVERY: 0xFFFF0000, Feature.POWER_MANAGEMENT: 0xFFFFFFFF}
"""Bits that cannot be set: errors are not limited in time for a single namespace, and there is one power state."""
_CHANGEABLE = 1 << 2


def defaults(device: Nvme) -> dict[int, int]:
    """The features that there are, but for the timestamp."""
    return {
        Feature.ARBITRATION: 0,
        Feature.POWER_MANAGEMENT: 0,
        Feature.TEMPERATURE_THRESHOLD: _THRESHOLD,
        UNDER_TEMPERATURE: 0,
        Feature.ERROR_RECOVERY: 0,
        Feature.VOLATILE_WRITE_CACHE: 1,
        Feature.NUMBER_OF_QUEUES: (device.max_queues - 1) * 0x10001,
        Feature.INTERRUPT_COALESCING: 0,
        Feature.INTERRUPT_VECTOR_CONFIG: 0,
        Feature.WRITE_ATOMICITY: 0,
        Feature.ASYNC_EVENT_CONFIG: 0,
    }


def get_features(device: Nvme, command: Command) -> int:
    feature, select = command.cdw10 & 0xFF, command.cdw10 >> 8 & 7
    known = device.default_settings
    if feature not in known and feature != Feature.TIMESTAMP:
        raise Failure(Status.INVALID_FIELD)
    if select == _SUPPORTED:
        return 0 if feature in (Feature.POWER_MANAGEMENT, Feature.ERROR_RECOVERY) else _CHANGEABLE
    if select > _SUPPORTED:
        raise Failure(Status.INVALID_FIELD)
    if feature == Feature.TIMESTAMP:
        send(device, command, _timestamp(device))
        return 0
    if feature == Feature.TEMPERATURE_THRESHOLD:
        feature = _threshold(command)
    vector = command.cdw11 & 0xFFFF if feature == Feature.INTERRUPT_VECTOR_CONFIG else 0
    if vector and vector >= device.vectors:
        raise Failure(Status.INVALID_FIELD)
    if select in (_DEFAULT, _SAVED):
        return known.get(feature, 0) | vector
    if vector:
        return device.settings.get(_vector_key(vector), vector)
    return device.setting(feature)


def set_features(device: Nvme, command: Command) -> int | None:
    feature, value = command.cdw10 & 0xFF, command.cdw11
    if command.cdw10 & _SAVE:
        raise Failure(Status.FEATURE_NOT_SAVEABLE)
    if feature not in device.default_settings and feature != Feature.TIMESTAMP:
        raise Failure(Status.INVALID_FIELD)
    if command.nsid not in (0, ALL_NAMESPACES):
        raise Failure(Status.FEATURE_NOT_PER_NAMESPACE)
    if value & _UNCHANGEABLE.get(feature, 0):
        raise Failure(Status.FEATURE_NOT_CHANGEABLE)
    match feature:
        case Feature.TIMESTAMP:
            _set_timestamp(device, receive(device, command, 8))
        case Feature.NUMBER_OF_QUEUES:
            return _set_queues(device, value)
        case Feature.TEMPERATURE_THRESHOLD:
            device.settings[_threshold(command)] = value & 0xFFFF
            _warn(device)
        case Feature.ASYNC_EVENT_CONFIG:
            device.settings[feature] = value
            _warn(device)
        case Feature.VOLATILE_WRITE_CACHE:
            return _set_write_cache(device, command, value & 1)
        case Feature.INTERRUPT_VECTOR_CONFIG:
            if value & 0xFFFF >= max(1, device.vectors):
                raise Failure(Status.INVALID_FIELD)
            device.settings[_vector_key(value & 0xFFFF)] = value & 0x1FFFF
        case _:
            device.settings[feature] = value
    return 0


def value_fits(device: Nvme, feature: int, value: int) -> bool:
    """Whether `set_features` can have left this in `Nvme.settings`."""
    if feature & 0xFF == Feature.INTERRUPT_VECTOR_CONFIG:
        return feature >> 8 < max(1, device.vectors) and value < 1 << 17
    bits = {Feature.TEMPERATURE_THRESHOLD: 16, UNDER_TEMPERATURE: 16, Feature.VOLATILE_WRITE_CACHE: 1}
    settable = feature in device.default_settings and feature != Feature.NUMBER_OF_QUEUES
    return settable and not value >> bits.get(feature, 32) and not value & _UNCHANGEABLE.get(feature, 0)


def critical_warning(device: Nvme) -> int:
    """The first byte of the SMART log."""
    return sum(CRITICAL_WARNING[event] for event in health_events(device))


def health_events(device: Nvme) -> list[HealthEvent]:
    """What there is to warn of: a disk that has lost something, a temperature outside of the thresholds."""
    under, over = device.setting(UNDER_TEMPERATURE), device.setting(Feature.TEMPERATURE_THRESHOLD)
    found = {
        HealthEvent.RELIABILITY: any(namespace.backing.failure for namespace in device.namespaces),
        HealthEvent.TEMPERATURE: not under < TEMPERATURE < over,
    }
    return [event for event, is_so in found.items() if is_so]


def _warn(device: Nvme) -> None:
    for event in health_events(device):
        device.event_queue.warn(event)


def _set_write_cache(device: Nvme, command: Command, enabled: int) -> int | None:
    """Turned off it is off at once, for what comes meanwhile; what it holds is on the disk when the command ends."""
    device.settings[Feature.VOLATILE_WRITE_CACHE] = enabled
    if enabled:
        return 0
    device.engine.later(command, device.sync_namespaces, partial(write_failure, device))
    return None


def _threshold(command: Command) -> int:
    """Which threshold is meant. There is one sensor, number 0."""
    sensor, which = command.cdw11 >> 16 & 0xF, command.cdw11 >> 20 & 3
    if sensor or which > 1:
        raise Failure(Status.INVALID_FIELD)
    return UNDER_TEMPERATURE if which else Feature.TEMPERATURE_THRESHOLD


def _vector_key(vector: int) -> int:
    """Vector 0 under the feature's own number, the others behind all features."""
    return Feature.INTERRUPT_VECTOR_CONFIG | vector << 8


def _set_queues(device: Nvme, value: int) -> int:
    if _ALL_ONES in (value & 0xFFFF, value >> 16):
        raise Failure(Status.INVALID_FIELD)
    if len(device.engine.completion_queues) > 1:
        raise Failure(Status.COMMAND_SEQUENCE_ERROR)
    return device.default_settings[Feature.NUMBER_OF_QUEUES]


def _timestamp(device: Nvme) -> bytes:
    offset, was_set = device.clock
    now = (time.time_ns() // 1_000_000 + offset) & (1 << 48) - 1
    return pack("<Q", now | was_set << 49)


def _set_timestamp(device: Nvme, data: bytes) -> None:
    (value,) = unpack_from("<Q", data)
    device.clock = [(value & (1 << 48) - 1) - time.time_ns() // 1_000_000, 1]
