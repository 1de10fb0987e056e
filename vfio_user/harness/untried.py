"""Faults that did not happen: rules of a scenario that no message before any server has matched."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from userdev.errors import UserdevError
from userdev.interposer.faults.use import RuleShown, together, untried
from vfio_user.harness.server import DeviceServer


def untried_faults(servers: Iterable[DeviceServer]) -> list[str]:
    """Rules that have not acted before any of these servers, which have one scenario, as sentences.

    An interposer that does not answer any more says nothing of its rules.
    """
    asked: list[list[RuleShown]] = []
    for server in servers:
        if server.is_interposed:
            with suppress(UserdevError):
                asked.append(server.control.call("status")["rules"])
    return [*untried(together(filter(None, asked)))]
