"""The commands of vhost-user's control socket, beside those of `userdev.interposer.control.commands`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from userdev.interposer.control import commands, controlled
from userdev.interposer.control.command import ControlCommand
from vhost_user.interposer.control import answers
from vhost_user.interposer.conversation import FrontEndSession
from vhost_user.interposer.decode import names
from vhost_user.wire import DeviceStatus, ProtocolFeature, VirtioFeature


class Controlled(controlled.Controlled, Protocol):
    """An interposer, as the commands of its control socket see it."""

    def current(self) -> FrontEndSession:
        """The session under way; raises `PeerLost` where there is none."""


class ShowSession(ControlCommand[Controlled]):
    """The session as it is known: what was agreed on, rings, memory."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.SessionShown:
        """Return the session's model as plain values, addresses and sizes in bytes.

        Raises:
            PeerLost: without a session.
        """
        model = interposer.current().model
        return {
            "state": model.state,
            "features": names(VirtioFeature, model.negotiated.features),
            "protocol_features": names(ProtocolFeature, model.negotiated.protocol_features),
            "status": names(DeviceStatus, model.status),
            "rings": {
                index: {"size": ring.size, "base": ring.base, "started": ring.started, "enabled": ring.enabled}
                for index, ring in sorted(model.rings.items())
            },
            "regions": [
                {
                    "guest_address": region.guest_address,
                    "size": region.size,
                    "user_address": region.user_address,
                }
                for region in model.regions.values()
            ],
        }


COMMANDS: Mapping[str, type[ControlCommand[Any]]] = MappingProxyType({**commands.COMMANDS, "session": ShowSession})
