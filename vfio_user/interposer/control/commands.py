"""The commands of the control socket: a model each, whose docstring is its documentation and whose `run` does it.

`docs/interposer.md` is written from these; `COMMANDS` is the whole list.
"""

from __future__ import annotations

import base64
import os
import reprlib
import signal
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from userdev.errors import UserError
from userdev.relay.direction import DIRECTIONS
from vfio_user.interposer import guest_memory, own_calls
from vfio_user.interposer.control import answers, migration
from vfio_user.interposer.control.command import ControlCommand, Data, Number, Region, Run, Seconds, Size
from vfio_user.interposer.control.controlled import Controlled
from vfio_user.wire import Command, Message
from vfio_user.wire.constants import FEATURE_MASK, Feature, FeatureFlags

if TYPE_CHECKING:  # it takes long to load, while no message is forwarded: only where somebody has one
    from vfio_user.interposer.faults.scenario import Scenario

MAX_SCENARIO = 64 << 10
"""Bytes of a scenario: it is read (about 100 KB/s) while nobody else is served."""


class GetStatus(ControlCommand):
    """What is going on: session, server, trace, counters."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.InterposerStatus:
        """Return what the interposer counts; it needs no session."""
        return interposer.status()


class ShowSession(ControlCommand):
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


class Request(ControlCommand):
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


class DeviceFeature(ControlCommand):
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


class RegionRead(ControlCommand):
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


class RegionWrite(ControlCommand):
    """Write `data` (base64) to a region in one access."""

    region: Region
    offset: Number
    data: Data

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Send one REGION_WRITE and wait for its reply.

        Raises:
            RequestRefused: the server refuses.
        """
        await own_calls.region_write(interposer.current(), self.region, self.offset, self.data)
        return {}


class DmaWrite(ControlCommand):
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


class MemoryRead(ControlCommand):
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


class HoldRequests(ControlCommand):
    """Keep the client's requests back until `resume`. Holds count."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Take a hold of the session's requests.

        Raises:
            PeerLost: without a session.
        """
        interposer.current().holding.hold()
        return {}


class Resume(ControlCommand):
    """Let the client's requests go on; `released` says how many had been waiting."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Released:
        """Give one hold back; returns how many requests went on, none while another hold is left."""
        holding = interposer.current().holding
        waiting = len(holding)
        holding.resume()
        return {"released": waiting - len(holding)}


class Restart(ControlCommand):
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


class SetFaults(ControlCommand):
    """Let a fault scenario happen from now on: its text, or a file; neither ends it."""

    scenario: Annotated[str, Field(max_length=MAX_SCENARIO)] | None = None
    file: str | None = None

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Rules:
        """Replace the scenario, or end it; returns how many rules the new one has.

        Raises:
            UserError: a bad scenario.
        """
        from vfio_user.interposer.faults.scenario import parse_scenario

        scenario = None
        if self.file is not None:
            scenario = _scenario_in(self.file)
        elif self.scenario is not None:
            scenario = parse_scenario(self.scenario, "scenario")
        interposer.set_faults(scenario)
        return {"rules": len(scenario.rules) if scenario is not None else 0}


def _scenario_in(file: str) -> Scenario:
    """The scenario in a file. What is wrong in it is not told: a controller may not be one who may read it."""
    from vfio_user.documents import read_regular_file
    from vfio_user.interposer.faults.scenario import parse_scenario

    try:
        return parse_scenario(read_regular_file(file, MAX_SCENARIO).decode(), file)
    except OSError as error:
        raise UserError(f"cannot read the scenario {file}: {error.strerror}") from None
    except (UserError, UnicodeDecodeError):
        raise UserError(
            f"{file} is no scenario", hint="vfio-user interpose --faults FILE says what is wrong in it, and where"
        ) from None


class SendSignal(ControlCommand):
    """Send a signal to the server: SIGSTOP, SIGCONT, SIGKILL, SIGTERM."""

    signal: Literal["SIGSTOP", "SIGCONT", "SIGKILL", "SIGTERM"]

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Signalled:
        """Send the signal and return the server's process id.

        Raises:
            UserError: that process is not known, or has ended.
        """
        return {"pid": interposer.signal_server(signal.Signals[self.signal])}


class Stop(ControlCommand):
    """End the interposer."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Done:
        """Stop the loop after this answer has been queued; sessions are closed then."""
        interposer.loop.after(0, interposer.loop.stop)
        return {}


COMMANDS: dict[str, type[ControlCommand]] = {
    "status": GetStatus,
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
    "hold": HoldRequests,
    "resume": Resume,
    "restart": Restart,
    "faults": SetFaults,
    "signal": SendSignal,
    "stop": Stop,
}
