"""The commands of the control socket: a model each, whose docstring is its documentation and whose `run` does it.

`docs/interposer.md` is written from these; `COMMANDS` is the whole list, with those that every interposer has.
"""

from __future__ import annotations

import base64
import os
import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from userdev.errors import UserError
from userdev.interposer.control import commands
from userdev.interposer.control.answers import Done
from userdev.interposer.control.command import ControlCommand, Number, Seconds
from userdev.relay.direction import DIRECTIONS
from vfio_user.interposer import guest_memory, own_calls
from vfio_user.interposer.control import answers, migration
from vfio_user.interposer.control.controlled import Controlled
from vfio_user.interposer.control.values import Data, Region, Run, Size
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import FEATURE_MASK, Feature, FeatureFlags


class ShowSession(ControlCommand[Controlled]):
    """The session as it is known: DMA maps, interrupts, regions, config space writes, migration."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.SessionShown:
        """Return the session's model as plain values, addresses and sizes in bytes.

        Raises:
            PeerLost: without a session.
        """
        model = interposer.current().model
        return {
            "state": model.state,
            "migration_state": model.migration_state.name,
            "client_migrates": model.client_migrates,
            "resets": model.resets,
            "maps": [
                {
                    "iova": mapping.iova,
                    "size": mapping.size,
                    "flags": mapping.flags,
                    "offset": mapping.offset,
                    "inode": os.fstat(mapping.fd).st_ino if mapping.fd >= 0 else None,
                }
                for mapping in model.maps
            ],
            "irqs": {index: sorted(irqs.eventfds) for index, irqs in model.irqs.items()},
            "regions": [
                {"index": region.index, "size": region.size, "flags": region.flags} for region in model.regions.values()
            ],
            "config_writes": [
                {"offset": offset, "data": data.hex()} for (offset, _), data in model.config_writes.items()
            ],
        }


class Request(ControlCommand[Controlled]):
    """Any request, to the server or the client: `name` and `payload` (base64). An error reply is a good answer here.

    With `force` it is sent though it is larger than its side takes: to see what that makes of it.
    """

    name: str
    payload: Data = b""
    towards: Literal["to-server", "to-client"] = "to-server"
    timeout: Seconds = own_calls.TIMEOUT_SECONDS
    force: bool = False
    fds: ClassVar[bool] = True

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Replied:
        """Send the request and return the reply, whatever its errno.

        Raises:
            UserError: a name the dialect has not got.
        """
        session = interposer.current()
        known = {command.value: command for command in Command} | {command.name: command for command in Command}
        if self.name not in known or known[self.name] not in session.dialect:
            raise UserError(f"{reprlib.repr(self.name)} is no command of dialect {session.dialect.name}")
        message = Message(0, session.dialect.number(known[self.name]), payload=self.payload, fds=fds)
        towards = DIRECTIONS[self.towards]
        reply = await own_calls.exchange(session, towards, message, timeout=self.timeout, force=self.force)
        return {
            "flags": reply.flags,
            "errno": reply.errno if reply.failed else 0,
            "payload": base64.b64encode(reply.payload).decode(),
        }


class DeviceFeature(ControlCommand[Controlled]):
    """DEVICE_FEATURE: `feature` by name or number, `operation` get, set or probe, `data` its structure."""

    feature: str | Annotated[int, Field(ge=0, le=FEATURE_MASK)]
    operation: Literal["get", "set", "probe"]
    data: Data = b""
    room: Size = 64
    """Bytes that the answer to a get may have beyond `data`."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Data:
        """Ask for the feature and return its structure (base64).

        Raises:
            UserError: a name that is no feature's.
        """
        if isinstance(self.feature, str) and self.feature not in Feature.__members__:
            raise UserError(f"{reprlib.repr(self.feature)} is no feature", hint=", ".join(Feature.__members__))
        number = Feature[self.feature].value if isinstance(self.feature, str) else self.feature
        room = self.room if self.operation == "get" else 0
        operation = FeatureFlags[self.operation.upper()]
        data = await own_calls.feature(interposer.current(), number, operation, self.data, room=room)
        return {"data": base64.b64encode(data).decode()}


class RegionRead(ControlCommand[Controlled]):
    """Read `size` bytes of a region in one access."""

    region: Region
    offset: Number
    size: Size

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Data:
        """Send one REGION_READ; returns its data (base64).

        Raises:
            RequestRefused: the server refuses.
        """
        data = await own_calls.region_read(interposer.current(), self.region, self.offset, self.size)
        return {"data": base64.b64encode(data).decode()}


class RegionWrite(ControlCommand[Controlled]):
    """Write `data` (base64) to a region in one access."""

    region: Region
    offset: Number
    data: Data

    async def run(self, interposer: Controlled, fds: list[int]) -> Done:
        """Send one REGION_WRITE and wait for its reply.

        Raises:
            RequestRefused: the server refuses.
        """
        await own_calls.region_write(interposer.current(), self.region, self.offset, self.data)
        return {}


class DmaWrite(ControlCommand[Controlled]):
    """DMA_WRITE to the client: `runs` of memory get their own content again, so that QEMU marks them dirty.

    With `data` (base64) that is written, at the one run's IOVA. The guest must stand still, or may lose what it writes.
    """

    runs: list[Run]
    data: Data | None = None

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Written:
        """Send DMA_WRITEs; returns how many there were, and their bytes.

        Raises:
            UserError: `data` with more than one run, or of another size.
            RequestRefused: the client refuses, or memory to be written back cannot be read.
        """
        session = interposer.current()
        if self.data is not None:
            if len(self.runs) != 1 or self.runs[0].size != len(self.data):
                raise UserError("data needs exactly one run of its size")
            await guest_memory.dma_write(session, self.runs[0].iova, self.data)
            return {"messages": 1, "bytes": len(self.data)}
        messages, written = await guest_memory.write_back(session, [run.pair for run in self.runs])
        return {"messages": messages, "bytes": written}


class MemoryRead(ControlCommand[Controlled]):
    """Guest memory as it is now, through the client's descriptors; nobody is asked."""

    iova: Number
    size: Size

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Data:
        """Read through the client's descriptors; returns the bytes (base64).

        Raises:
            RequestRefused: memory that is not mapped with one (EFAULT).
        """
        data = guest_memory.read_memory(interposer.current(), self.iova, self.size)
        return {"data": base64.b64encode(data).decode()}


class Restart(ControlCommand[Controlled]):
    """Replace the server on purpose; needs --keep-alive or --reconnect.

    With `hand_over` a server that can migrate gives its state to the next (a live upgrade); `seconds` is how long the
    client's requests were held.
    """

    hand_over: bool = True

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Restarted:
        """Replace the session's server.

        Raises:
            UserError: sessions are not kept alive, or the server is being replaced already.
            RequestRefused, PeerLost, TimeoutError: the old server does not take part; it goes on as before.
        """
        interposer.current()
        if interposer.survival is None:
            raise UserError("this interposer does not keep sessions alive", hint="start it with --keep-alive")
        return await interposer.survival.restart(hand_over=self.hand_over)


COMMANDS: Mapping[str, type[ControlCommand[Any]]] = MappingProxyType(
    {
        **commands.COMMANDS,
        "session": ShowSession,
        "request": Request,
        "device_feature": DeviceFeature,
        "migration_support": migration.GetMigrationSupport,
        "migration_state": migration.GetOrSetMigrationState,
        "mig_data_read": migration.MigDataRead,
        "mig_data_write": migration.MigDataWrite,
        "dma_logging_start": migration.DmaLoggingStart,
        "dma_logging_report": migration.DmaLoggingReport,
        "dma_logging_resend": migration.DmaLoggingResend,
        "dma_logging_stop": migration.DmaLoggingStop,
        "region_read": RegionRead,
        "region_write": RegionWrite,
        "dma_write": DmaWrite,
        "memory_read": MemoryRead,
        "restart": Restart,
    }
)
