"""Faults that did not happen: rules of a scenario that no message before any server has matched."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from userdev.errors import UserdevError
from userdev.interposer.faults.use import RuleShown, together, untried
from vfio_user.harness.server import DeviceServer


def untried_faults(servers: Iterable[DeviceServer]) -> list[str]:
    """Rules that have not acted before any of these servers that has their scenario, as sentences.

    An interposer that does not answer any more says nothing of its rules.
    """
    asked: dict[tuple[str, ...], list[list[RuleShown]]] = {}
    for server in servers:
        if server.has_faults:
            with suppress(UserdevError):
                rules: list[RuleShown] = server.control.call("status")["rules"]
                asked.setdefault(tuple(rule["name"] for rule in rules), []).append(rules)
    return [why for alike in asked.values() for why in untried(together(alike))]
