"""The commands of the control socket: a model each, whose docstring is its documentation and whose `run` does it.

`docs/interposer.md` is written from these; `COMMANDS` is the whole list.
"""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from vfio_user.errors import UserError
from vfio_user.interposer import asking, dirty_bitmap, guest_memory
from vfio_user.interposer.direction import DIRECTIONS
from vfio_user.interposer.migration import migration_of, migration_support
from vfio_user.interposer.resending import resend, unmapped_pages
from vfio_user.interposer.trace.show import parse_region
from vfio_user.wire import Command
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState

if TYPE_CHECKING:
    from vfio_user.interposer.interposer import Interposer
    from vfio_user.interposer.session import Session

Result = dict[str, Any]


def _number(value: Any) -> Any:
    """Numbers may be written as "0x10"."""
    return int(value, 0) if isinstance(value, str) else value


def _bytes(value: Any) -> Any:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _region(value: Any) -> Any:
    return parse_region(value) if isinstance(value, str) else value


Number = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Data = Annotated[bytes, BeforeValidator(_bytes), PlainSerializer(lambda data: base64.b64encode(data).decode())]
Region = Annotated[int, BeforeValidator(_region), Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, le=3600)]


class Run(BaseModel):
    """A piece of guest memory."""

    model_config = ConfigDict(extra="forbid")
    iova: Number
    size: Number

    @property
    def pair(self) -> dirty_bitmap.Run:
        return self.iova, self.size


class ControlCommand(BaseModel):
    """What all commands have: `id` comes back in the answer, whatever it is."""

    model_config = ConfigDict(extra="forbid")
    command: str
    id: Any = None
    fds: ClassVar[bool] = False
    """Whether a descriptor may come with it."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        raise NotImplementedError


class Status(ControlCommand):
    """What is going on: session, server, trace, counters."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        return interposer.status()


class Picture(ControlCommand):
    """The session as it is known: DMA maps, interrupts, regions, config space writes, migration."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        picture = interposer.current().picture
        return {
            "state": picture.state,
            "migration_state": picture.migration_state.name,
            "client_migrates": picture.client_migrates,
            "resets": picture.resets,
            "maps": [
                {
                    "iova": mapping.iova,
                    "size": mapping.size,
                    "flags": mapping.flags,
                    "offset": mapping.offset,
                    "inode": os.fstat(mapping.fd).st_ino if mapping.fd >= 0 else None,
                }
                for mapping in picture.maps.values()
            ],
            "irqs": {index: sorted(irqs.eventfds) for index, irqs in picture.irqs.items()},
            "regions": [
                {"index": region.index, "size": region.size, "flags": region.flags}
                for region in picture.regions.values()
            ],
            "config_writes": [
                {"offset": offset, "data": data.hex()} for (offset, _), data in picture.config_writes.items()
            ],
        }


class Request(ControlCommand):
    """Any request, to the server or the client: `name` and `payload` (base64). An error reply is a good answer here."""

    name: str
    payload: Data = b""
    towards: Literal["to-server", "to-client"] = "to-server"
    timeout: Seconds = asking.TIMEOUT
    fds: ClassVar[bool] = True

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        from vfio_user.wire import Message

        session = interposer.current()
        known = {command.value: command for command in Command} | {command.name: command for command in Command}
        if self.name not in known or known[self.name] not in session.dialect:
            raise UserError(f"{self.name!r} is no command of dialect {session.dialect.name}")
        message = Message(0, session.dialect.number(known[self.name]), payload=self.payload, fds=fds)
        reply = await session.ask(DIRECTIONS[self.towards], message, timeout=self.timeout)
        return {
            "flags": reply.flags,
            "errno": reply.errno if reply.failed else 0,
            "payload": base64.b64encode(reply.payload).decode(),
        }


class DeviceFeature(ControlCommand):
    """DEVICE_FEATURE: `feature` by name or number, `operation` get, set or probe, `data` its structure."""

    feature: str | int
    operation: Literal["get", "set", "probe"]
    data: Data = b""
    room: Number = 64
    """Bytes that the answer to a get may have beyond `data`."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        if isinstance(self.feature, str) and self.feature not in Feature.__members__:
            raise UserError(f"{self.feature!r} is no feature", hint=", ".join(Feature.__members__))
        number = Feature[self.feature].value if isinstance(self.feature, str) else self.feature
        room = self.room if self.operation == "get" else 0
        operation = FeatureFlags[self.operation.upper()]
        data = await asking.feature(interposer.current(), number, operation, self.data, room=room)
        return {"data": base64.b64encode(data).decode()}


class MigrationSupport(ControlCommand):
    """What the server offers of migration v2: `supports`, empty where it cannot migrate."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        found = await migration_support(interposer.current())
        return {"supports": [flag.name for flag in type(found) if flag in found] if found is not None else []}


class GetOrSetMigrationState(ControlCommand):
    """The device's migration state, after taking it to `set` where that is given (STOP_COPY, RESUMING, ...)."""

    set: str | None = None
    timeout: Seconds = 30.0

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        migration = await migration_of(interposer.current(), timeout=min(self.timeout, asking.TIMEOUT))
        if self.set is None:
            return {"state": (await migration.state()).name}
        if self.set not in MigrationState.__members__:
            raise UserError(f"{self.set!r} is no migration state", hint=", ".join(MigrationState.__members__))
        state = MigrationState[self.set]
        await migration.set_state(state, timeout=self.timeout)
        return {"state": state.name}


class Bulk(ControlCommand):
    """Where bulk data goes or comes from: `file`, a descriptor sent with the command (`fd`), or base64 in the line."""

    file: str | None = None
    fd: bool = False
    fds: ClassVar[bool] = True

    @contextmanager
    def opened(self, flags: int, fds: list[int]) -> Iterator[int | None]:
        """The descriptor to use; None for base64."""
        if self.fd:
            if len(fds) != 1:
                raise UserError(f"{len(fds)} descriptors came where one was announced")
            yield fds[0]
        elif self.file is not None:
            try:
                opened = os.open(self.file, flags | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise UserError(f"cannot open {self.file}: {error.strerror}") from None
            try:
                yield opened
            finally:
                os.close(opened)
        else:
            yield None


class MigDataRead(Bulk):
    """The device's state until nothing more comes (or `size` bytes at most), streamed to `file`, `fd` or the answer.

    `complete` says that the server reported the end.
    """

    size: Number | None = None

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        session = interposer.current()
        migration = await migration_of(session)
        limit = asking.data_limit(session)
        count, messages, complete, pieces = 0, 0, False, []
        with self.opened(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, fds) as output:
            while self.size is None or count < self.size:
                data = await migration.read(min(limit, self.size - count) if self.size else limit)
                messages += 1
                if not data:
                    complete = True
                    break
                count += len(data)
                if output is None:
                    pieces.append(data)
                else:
                    _write_all(output, data)
        result: Result = {"bytes": count, "messages": messages, "complete": complete}
        if not (self.fd or self.file):
            result["data"] = base64.b64encode(b"".join(pieces)).decode()
        return result


class MigDataWrite(Bulk):
    """Hand state to a device that is RESUMING: all of `file` or `fd` from where it stands, or `data` (base64)."""

    data: Data = b""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        session = interposer.current()
        migration = await migration_of(session)
        limit = asking.data_limit(session)
        count = messages = 0
        with self.opened(os.O_RDONLY, fds) as source:
            rest = self.data
            while True:
                piece = os.read(source, limit) if source is not None else rest[:limit]
                if not piece:
                    break
                rest = rest[limit:]
                await migration.write(piece)
                count, messages = count + len(piece), messages + 1
        return {"bytes": count, "messages": messages}


class DmaLoggingStart(ControlCommand):
    """Let the server log what it writes to memory, in `ranges` or everywhere that is mapped."""

    page_size: Number = asking.PAGE
    ranges: list[Run] | None = None

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        ranges = [run.pair for run in self.ranges] if self.ranges is not None else None
        session = interposer.current()
        await (await migration_of(session)).start_logging(self.page_size, ranges)
        session.picture.unmapped = set()
        return {}


class DmaLoggingReport(ControlCommand):
    """The ranges written since the last report, `runs`; with `bitmap` also the bitmap (base64) of each range asked for.

    Asked range by range as the client mapped them: libvfio-user refuses any other cut.
    """

    page_size: Number = asking.PAGE
    ranges: list[Run] | None = None
    bitmap: bool = False

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        session = interposer.current()
        migration = await migration_of(session)
        wanted = [run.pair for run in self.ranges] if self.ranges is not None else _writable(session)
        runs: list[dict[str, int]] = []
        bitmaps: list[Result] = []
        for iova, size in wanted:
            found = await migration.report(self.page_size, (iova, size))
            dirty = dirty_bitmap.dirty_runs(found, iova, size, self.page_size)
            runs += [{"iova": start, "size": length} for start, length in dirty]
            if self.bitmap:
                bitmaps.append({"iova": iova, "size": size, "bitmap": base64.b64encode(found).decode()})
        result: Result = {"runs": runs, "bytes": sum(run["size"] for run in runs)}
        return {**result, "bitmaps": bitmaps} if self.bitmap else result


class DmaLoggingResend(ControlCommand):
    """Take a report, and write a byte of each of its pages back to the client, so that QEMU marks them dirty.

    What was unmapped since the log began counts as written. Where it is mapped nowhere any more somebody else has to
    write it: `unmapped` has its offsets in the guest's memory file, a page each. The guest must stand still: its
    processors could write in between.
    """

    page_size: Number = asking.PAGE

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        session = interposer.current()
        migration = await migration_of(session)
        pages, unmapped = unmapped_pages(session, self.page_size)
        for iova, size in _writable(session):
            found = await migration.report(self.page_size, (iova, size))
            places = (iova + page * self.page_size for page in dirty_bitmap.dirty_pages(found))
            pages.update(place for place in places if place < iova + size)
        return {"pages": await resend(session, sorted(pages)), "unmapped": sorted(unmapped)}


class DmaLoggingStop(ControlCommand):
    """End the logging."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        session = interposer.current()
        session.picture.unmapped = None
        await (await migration_of(session)).stop_logging()
        return {}


class RegionRead(ControlCommand):
    """Read `size` bytes of a region in one access."""

    region: Region
    offset: Number
    size: Number

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        data = await asking.region_read(interposer.current(), self.region, self.offset, self.size)
        return {"data": base64.b64encode(data).decode()}


class RegionWrite(ControlCommand):
    """Write `data` (base64) to a region in one access."""

    region: Region
    offset: Number
    data: Data

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        await asking.region_write(interposer.current(), self.region, self.offset, self.data)
        return {}


class DmaWrite(ControlCommand):
    """DMA_WRITE to the client: `runs` of memory get their own content again, so that QEMU marks them dirty.

    With `data` (base64) that is written, at the one run's IOVA. The guest must stand still, or may lose what it writes.
    """

    runs: list[Run]
    data: Data | None = None

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
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
    size: Annotated[int, BeforeValidator(_number), Field(ge=0, le=64 << 20)]

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        data = guest_memory.read_memory(interposer.current(), self.iova, self.size)
        return {"data": base64.b64encode(data).decode()}


class Hold(ControlCommand):
    """Keep the client's requests back until `resume`. Holds count."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        interposer.current().hold()
        return {}


class Resume(ControlCommand):
    """Let the client's requests go on; `released` says how many had been waiting."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        session = interposer.current()
        waiting = len(session.held)
        session.resume()
        return {"released": waiting - len(session.held)}


class Restart(ControlCommand):
    """Replace the server on purpose; needs --keep-alive or --reconnect.

    With `hand_over` a server that can migrate gives its state to the next (a live upgrade); `seconds` is how long the
    client's requests were held.
    """

    hand_over: bool = True

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        interposer.current()
        if interposer.survival is None:
            raise UserError("this interposer does not keep sessions alive", hint="start it with --keep-alive")
        return await interposer.survival.restart(hand_over=self.hand_over)


class SetFaults(ControlCommand):
    """Let a fault scenario happen from now on: its text, or a file; neither ends it."""

    scenario: str | None = None
    file: str | None = None

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        from vfio_user.interposer.faults.scenario import load_scenario, parse_scenario

        scenario = None
        if self.file is not None:
            scenario = load_scenario(self.file)
        elif self.scenario is not None:
            scenario = parse_scenario(self.scenario, "scenario")
        interposer.set_faults(scenario)
        return {"rules": len(scenario.rules) if scenario is not None else 0}


class Signal(ControlCommand):
    """Send a signal to the server: SIGSTOP, SIGCONT, SIGKILL, SIGTERM."""

    signal: Literal["SIGSTOP", "SIGCONT", "SIGKILL", "SIGTERM"]

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        return {"pid": interposer.signal_server(signal.Signals[self.signal])}


class Stop(ControlCommand):
    """End the interposer."""

    async def run(self, interposer: Interposer, fds: list[int]) -> Result:
        interposer.loop.after(0, interposer.loop.stop)
        return {}


COMMANDS: dict[str, type[ControlCommand]] = {
    "status": Status,
    "picture": Picture,
    "request": Request,
    "device_feature": DeviceFeature,
    "migration_support": MigrationSupport,
    "migration_state": GetOrSetMigrationState,
    "mig_data_read": MigDataRead,
    "mig_data_write": MigDataWrite,
    "dma_logging_start": DmaLoggingStart,
    "dma_logging_report": DmaLoggingReport,
    "dma_logging_resend": DmaLoggingResend,
    "dma_logging_stop": DmaLoggingStop,
    "region_read": RegionRead,
    "region_write": RegionWrite,
    "dma_write": DmaWrite,
    "memory_read": MemoryRead,
    "hold": Hold,
    "resume": Resume,
    "restart": Restart,
    "faults": SetFaults,
    "signal": Signal,
    "stop": Stop,
}


def _writable(session: Session) -> list[dirty_bitmap.Run]:
    """Ranges the server can have written by itself: those mapped with a descriptor, for writing."""
    return [(mapping.iova, mapping.size) for mapping in session.picture.maps.values() if mapping.written_directly]


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
