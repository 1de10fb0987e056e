"""What a server can do: as it answers when it is asked, or as its entry says; the others with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from userdev.errors import ProtocolError, UserError
from userdev.process import Child, OwnedFolder, await_listening
from vfio_user.client import Client, NoAnswer, RemoteError
from vfio_user.client.description import describe
from vfio_user.harness.device import Device, server_command
from vfio_user.nightly.servers import ABILITIES, Server
from vfio_user.wire import DIALECTS
from vhost_user.frontend import BackEndError, FrontEnd
from vhost_user.frontend.description import describe as describe_back_end

START_SECONDS = 20.0
"""Seconds that a server has to listen."""

ANSWER_SECONDS = 5.0
"""Seconds that it has for each answer."""

Abilities = Mapping[str, str]
"""By name, why a server lacks it; "" for what it has."""


def declared(server: Server) -> Abilities:
    """What its entry says."""
    supports = server.supports or ()
    return {name: "" if name in supports else "its entry does not name it" for name in ABILITIES[server.protocol]}


def probed(server: Server, device: Device) -> Abilities:
    """Start a server, and ask.

    Raises:
        UserError: it does not start, or does not answer as a server of its protocol.
    """
    with OwnedFolder("vfu-") as scratch:
        path = scratch.path / "socket"
        child = Child("server", server_command(device, path), log=scratch.path / "log")
        try:
            if not await_listening(path, child.end, START_SECONDS):
                raise UserError(f"it does not listen on its socket: {child.last_words(1) or 'and says nothing'}")
            return _ASK[server.protocol](server, path)
        except (RemoteError, ProtocolError, NoAnswer, BackEndError, OSError) as error:
            raise UserError(f"it does not answer: {error}") from None
        finally:
            child.stop()


def _ask_device(server: Server, path: Path) -> Abilities:
    with Client.connect(str(path), dialect=DIALECTS[server.dialect], timeout=ANSWER_SECONDS) as client:
        found = describe(client)
    return {
        "reset": "" if found.can_reset else "it does not say that it can be reset",
        "interrupts": "" if any(irq.vectors for irq in found.irqs[:3]) else "it has no interrupt",
        "migration": "" if found.migration.how != "none" else "it offers neither messages nor a region for migration",
    }


def _ask_back_end(server: Server, path: Path) -> Abilities:
    with FrontEnd(str(path), timeout=ANSWER_SECONDS) as front_end:
        found = describe_back_end(front_end)
    logs = "LOG_ALL" in found.features and "LOG_SHMFD" in found.protocol_features
    several = (found.queues or 1) > 1
    return {
        "config": "" if found.config is not None else "it has no CONFIG",
        "multiqueue": "" if several else f"it has {'no MQ' if found.queues is None else 'one queue'}",
        "migration": "" if logs else "it lacks LOG_ALL or LOG_SHMFD",
    }


_ASK: Mapping[str, Callable[[Server, Path], Abilities]] = {"vfio-user": _ask_device, "vhost-user": _ask_back_end}
