"""The values of features (section 5.21): what they are by default, and what they can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev_servers.nvme.spec import Feature

if TYPE_CHECKING:
    from userdev_servers.nvme.model import Model

_THRESHOLD = 0x157
"""Kelvin, of the warning."""
UNDER_TEMPERATURE = Feature.TEMPERATURE_THRESHOLD | 1 << 20
"""The lower threshold is kept beside the upper one, under this number: that of the bit that means it."""
UNCHANGEABLE: dict[int, int] = {Feature.ERROR_RECOVERY: 0xFFFF0000, Feature.POWER_MANAGEMENT: 0xFFFFFFFF}
"""Bits that cannot be set: errors are not limited in time for a single namespace, and there is one power state."""


def defaults(model: Model) -> dict[int, int]:
    """The features that there are, but for the timestamp."""
    return {
        Feature.ARBITRATION: 0,
        Feature.POWER_MANAGEMENT: 0,
        Feature.TEMPERATURE_THRESHOLD: _THRESHOLD,
        UNDER_TEMPERATURE: 0,
        Feature.ERROR_RECOVERY: 0,
        Feature.VOLATILE_WRITE_CACHE: 1,
        Feature.NUMBER_OF_QUEUES: (model.queues - 1) * 0x10001,
        Feature.INTERRUPT_COALESCING: 0,
        Feature.INTERRUPT_VECTOR_CONFIG: 0,
        Feature.WRITE_ATOMICITY: 0,
        Feature.ASYNC_EVENT_CONFIG: 0,
    }


def vector_key(vector: int) -> int:
    """Vector 0 under the feature's own number, the others behind all features."""
    return Feature.INTERRUPT_VECTOR_CONFIG | vector << 8


def value_fits(model: Model, feature: int, value: int) -> bool:
    """Whether Set Features can have left this."""
    if feature & 0xFF == Feature.INTERRUPT_VECTOR_CONFIG:
        return feature >> 8 < max(1, model.vectors) and value < 1 << 17
    bits = {Feature.TEMPERATURE_THRESHOLD: 16, UNDER_TEMPERATURE: 16, Feature.VOLATILE_WRITE_CACHE: 1}
    settable = feature in defaults(model) and feature != Feature.NUMBER_OF_QUEUES
    return settable and not value >> bits.get(feature, 32) and not value & UNCHANGEABLE.get(feature, 0)
