"""Saved state of a device: a dictionary of plain values."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any

from userdev.declare.returned import written_at
from userdev.errors import ProtocolError

Saved = dict[str, Any]
"""version: `PciDevice.state_version`. values: declared state by name. config: the variable bits of configuration space,
bytes. interrupts: see `Interrupts.save`. extra: the author's own, bytes. Declared memory is not in it; it is large, and
saved in place."""

KEYS = frozenset({"config", "extra", "interrupts", "values", "version"})


def extra_of(save_extra: Callable[[], bytes]) -> bytes:
    """The bytes that an author's `save_extra` returns.

    Raises:
        ProtocolError: EIO, they are no bytes, which mypy cannot always see.
    """
    extra = save_extra()
    if type(extra) is not bytes:
        raise ProtocolError(f"{written_at(save_extra)} has returned {type(extra).__name__}, not bytes", errno.EIO)
    return extra


def check_saved(saved: Mapping[str, Any], version: int, config_size: int) -> None:
    """Compare a state's version and shape with those of the device.

    Raises:
        ProtocolError: EINVAL, they are others.
    """
    if saved.keys() != KEYS:
        raise ProtocolError(f"saved state has {sorted(saved)}, not {sorted(KEYS)}", errno.EINVAL)
    if saved["version"] != version:
        raise ProtocolError(f"saved state has version {saved['version']}, not {version}", errno.EINVAL)
    if type(saved["extra"]) is not bytes:
        raise ProtocolError(f"saved state has no bytes as its extra, but {type(saved['extra']).__name__}", errno.EINVAL)
    if not isinstance(saved["config"], bytes) or len(saved["config"]) != config_size:
        raise ProtocolError(f"saved state has not the {config_size} bytes of configuration space", errno.EINVAL)
