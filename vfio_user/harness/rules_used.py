"""Faults that were put in on purpose: which rules of scenarios acted before servers, and which never did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from userdev.errors import UserdevError
from userdev.interposer.faults.use import RuleShown, acted, together, untried
from vfio_user.harness.server import DeviceServer


def untried_faults(servers: Iterable[DeviceServer]) -> list[str]:
    """Rules that have not acted before any of these servers that has their scenario, as sentences."""
    return [why for rules in _used(servers) for why in untried(rules)]


def acted_faults(servers: Iterable[DeviceServer]) -> list[str]:
    """Rules that have acted before any of these servers, with how often, as sentences."""
    return [what for rules in _used(servers) for what in acted(rules)]


def _used(servers: Iterable[DeviceServer]) -> Iterator[list[RuleShown]]:
    """The rules of each scenario, over all servers that have it.

    An interposer that does not answer any more says nothing of its rules.
    """
    asked: dict[tuple[str, ...], list[list[RuleShown]]] = {}
    for server in servers:
        if server.has_faults:
            with suppress(UserdevError):
                rules: list[RuleShown] = server.control.call("status")["rules"]
                asked.setdefault(tuple(rule["name"] for rule in rules), []).append(rules)
    return map(together, asked.values())
