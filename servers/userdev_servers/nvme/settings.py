"""Features as the guest has set them, or as they are by default."""

from __future__ import annotations

from userdev_servers.nvme.feature_table import defaults, vector_key
from userdev_servers.nvme.model import Model
from userdev_servers.nvme.state import ControllerState


class Settings:
    """The features of one controller, by identifier; what was set is declared state."""

    def __init__(self, state: ControllerState, model: Model) -> None:
        self._state = state
        self.defaults = defaults(model)
        """Of the features that there are, but for the timestamp."""

    def __getitem__(self, feature: int) -> int:
        """What was set, or the default."""
        value = self._state.settings.get(feature)
        return self.defaults[feature] if value is None else value

    def __setitem__(self, feature: int, value: int) -> None:
        self._state.settings[feature] = value

    def __contains__(self, feature: int) -> bool:
        return feature in self.defaults

    def vector(self, vector: int) -> int:
        """The configuration of an interrupt vector."""
        return self._state.settings.get(vector_key(vector), vector)

    def set_vector(self, vector: int, value: int) -> None:
        """Note the configuration of an interrupt vector: bit 16 disables coalescing."""
        self._state.settings[vector_key(vector)] = value
