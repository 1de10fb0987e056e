"""The control socket's commands for migration and the dirty log; `commands` has the others, and the list."""

from __future__ import annotations

import base64
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from userdev.counted import counted
from userdev.errors import UserError
from userdev.interposer.control.answers import Done
from userdev.interposer.control.command import ControlCommand, Number, Seconds
from userdev.memory.bitmap import IovaRange, bitmap_size, dirty_runs
from userdev.whole import write_whole
from vfio_user.interposer import own_calls
from vfio_user.interposer.control import answers
from vfio_user.interposer.control.controlled import Controlled
from vfio_user.interposer.control.values import MAX_DATA, Data, PageSize, Run, Size
from vfio_user.interposer.migration import migration_of, migration_support
from vfio_user.interposer.resending import pages_in, resend, unmapped_pages
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.unmapped import UnmappedMemory
from vfio_user.wire.constants import MigrationState


class GetMigrationSupport(ControlCommand[Controlled]):
    """What the server offers of migration v2: `supports`, empty where it cannot migrate."""

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Supports:
        """Ask the server and return the names of its flags (linux/vfio.h, VFIO_MIGRATION_STOP_COPY and others)."""
        found = await migration_support(interposer.current())
        return {"supports": [str(flag.name) for flag in type(found) if flag in found] if found is not None else []}


class GetOrSetMigrationState(ControlCommand[Controlled]):
    """The device's migration state, after taking it to `set` where that is given (STOP_COPY, RESUMING, ...)."""

    set: str | None = None
    timeout: Seconds = 30.0

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.MigrationStateTold:
        """Ask for the state, or take the device to another within `timeout`; returns its name.

        Raises:
            UserError: `set` is no state's name.
            RequestRefused: the server refuses.
        """
        migration = await migration_of(interposer.current(), timeout=min(self.timeout, own_calls.TIMEOUT_SECONDS))
        if self.set is None:
            return {"state": (await migration.state()).name}
        if self.set not in MigrationState.__members__:
            raise UserError(
                f"{reprlib.repr(self.set)} is no migration state", hint=", ".join(MigrationState.__members__)
            )
        state = MigrationState[self.set]
        await migration.set_state(state, timeout=self.timeout)
        return {"state": state.name}


class Bulk(ControlCommand[Controlled]):
    """Where bulk data goes or comes from: `file`, a descriptor sent with the command (`fd`), or the control socket, as
    base64 in the line or as it is behind the line (`raw`).
    """

    file: str | None = None
    fd: bool = False
    fds: ClassVar[bool] = True

    @contextmanager
    def opened(self, flags: int, fds: list[int]) -> Iterator[int | None]:
        """The descriptor to use; None for base64."""
        if self.fd:
            if len(fds) != 1:
                raise UserError(f"{counted(len(fds), 'descriptor')} came where one was announced")
            yield _regular(fds[0])
        elif self.file is not None:
            try:
                opened = os.open(self.file, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            except OSError as error:
                raise UserError(f"cannot open {self.file}: {error.strerror}") from None
            try:
                yield _regular(opened)
            finally:
                os.close(opened)
        else:
            yield None


class MigDataRead(Bulk):
    """The device's state until nothing more comes (or `size` bytes at most), streamed to `file`, `fd` or the answer.

    `complete` says that the server reported the end. An answer has 64 MiB at most.
    """

    size: Number | None = None
    raw: bool = False

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.StateRead:
        """Read state in messages of the negotiated size; returns bytes, messages, and whether the end was reached.

        Raises:
            UserError: the file cannot be opened or written.
            RequestRefused: the server refuses.
        """
        session = interposer.current()
        migration = await migration_of(session)
        limit = own_calls.data_limit(session)
        count, messages, complete, pieces = 0, 0, False, []
        with self.opened(os.O_WRONLY | os.O_CREAT | os.O_TRUNC, fds) as output:
            most = self.size
            if output is None:
                most = MAX_DATA if most is None else min(most, MAX_DATA)
            while most is None or count < most:
                data = await migration.read(limit if most is None else min(limit, most - count))
                messages += 1
                if not data:
                    complete = True
                    break
                count += len(data)
                if output is None:
                    pieces.append(data)
                else:
                    write_whole(output, data)
        result: answers.StateRead = {"bytes": count, "messages": messages, "complete": complete}
        if self.raw:
            result["raw"] = b"".join(pieces)
        elif not (self.fd or self.file):
            result["data"] = base64.b64encode(b"".join(pieces)).decode()
        return result


class MigDataWrite(Bulk):
    """Hand state to a device that is RESUMING: all of `file` or `fd` from where it stands, `data` (base64), or so many
    bytes behind the line (`raw`).
    """

    data: Data = b""
    raw: Size = 0

    def follow(self, data: bytes) -> None:
        """Take what came behind the line as the state to hand on."""
        self.data = data

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Written:
        """Write state in messages of the negotiated size; returns how many bytes and messages went.

        Raises:
            UserError: the file cannot be opened or read.
            RequestRefused: the server refuses.
        """
        session = interposer.current()
        migration = await migration_of(session)
        count = messages = 0
        with self.opened(os.O_RDONLY, fds) as source:
            while True:
                size = migration.piece_size
                piece = os.read(source, size) if source is not None else self.data[count : count + size]
                if not piece:
                    break
                await migration.write(piece)
                count, messages = count + len(piece), messages + 1
        return {"bytes": count, "messages": messages}


class DmaLoggingStart(ControlCommand[Controlled]):
    """Let the server log what it writes to memory, in `ranges` or everywhere that is mapped."""

    page_size: PageSize = own_calls.PAGE
    ranges: list[Run] | None = None

    async def run(self, interposer: Controlled, fds: list[int]) -> Done:
        """Begin the log with pages of `page_size` bytes; from now on what is unmapped is remembered too."""
        ranges = [run.pair for run in self.ranges] if self.ranges is not None else None
        session = interposer.current()
        await (await migration_of(session)).start_logging(self.page_size, ranges)
        session.model.unmapped = UnmappedMemory()
        return {}


class DmaLoggingReport(ControlCommand[Controlled]):
    """The ranges written since the last report, `runs`; with `bitmap` also the bitmap (base64) of each range asked for.

    Asked range by range as the client mapped them: libvfio-user refuses any other cut.
    """

    page_size: PageSize = own_calls.PAGE
    ranges: list[Run] | None = None
    bitmap: bool = False

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.DirtyReport:
        """Ask for each range's bitmap and return its dirty runs, (iova, size) in bytes.

        Raises:
            UserError: a range whose bitmap is larger than `MAX_DATA`.
            RequestRefused: the server refuses.
        """
        session = interposer.current()
        migration = await migration_of(session)
        wanted = [run.pair for run in self.ranges] if self.ranges is not None else _writable(session)
        runs: list[answers.RunShown] = []
        bitmaps: list[answers.Bitmap] = []
        for iova, size in wanted:
            if bitmap_size(size, self.page_size) > MAX_DATA:
                raise UserError(f"the bitmap of {size:#x} bytes is too large for a message", hint="ask for it in parts")
            found = await migration.report(self.page_size, (iova, size))
            dirty = dirty_runs(found, iova, size, self.page_size)
            runs += [answers.RunShown(iova=start, size=length) for start, length in dirty]
            if self.bitmap:
                bitmaps.append({"iova": iova, "size": size, "bitmap": base64.b64encode(found).decode()})
        report: answers.DirtyReport = {"runs": runs, "bytes": sum(run["size"] for run in runs)}
        if self.bitmap:
            report["bitmaps"] = bitmaps
        return report


class DmaLoggingResend(ControlCommand[Controlled]):
    """Take a report, and write back a byte of each page of the client's in it, so that QEMU marks them dirty.

    The client's have 4 KiB, whatever those of the report. What was unmapped since the log began counts as written.
    Where it is mapped nowhere any more somebody else has to write it: `unmapped` has its offsets in the guest's memory
    file, a page each. The guest must stand still: its processors could write in between.
    """

    page_size: PageSize = own_calls.PAGE

    async def run(self, interposer: Controlled, fds: list[int]) -> answers.Resent:
        """Return how many pages were written back, and the memory file's offsets of those that are mapped nowhere
        any more.

        Raises:
            UserError: more was unmapped than is kept.
            RequestRefused: the server or the client refuses.
        """
        session = interposer.current()
        migration = await migration_of(session)
        pages, unmapped = unmapped_pages(session)
        for iova, size in _writable(session):
            found = await migration.report(self.page_size, (iova, size))
            for run in dirty_runs(found, iova, size, self.page_size):
                pages.update(pages_in(*run))
        return {"pages": await resend(session, sorted(pages)), "unmapped": sorted(unmapped)}


class DmaLoggingStop(ControlCommand[Controlled]):
    """End the logging."""

    async def run(self, interposer: Controlled, fds: list[int]) -> Done:
        """End the log and forget what was unmapped."""
        session = interposer.current()
        session.model.unmapped = None
        await (await migration_of(session)).stop_logging()
        return {}


def _writable(session: ForwardedSession) -> list[IovaRange]:
    """Ranges the server can have written by itself: those mapped with a descriptor, for writing."""
    return [(mapping.iova, mapping.size) for mapping in session.model.maps if mapping.written_directly]


def _regular(fd: int) -> int:
    """`fd`, where it is a file: a pipe or a device could be waited for, and nobody would be served meanwhile."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise UserError("neither a pipe nor a device can be the file of bulk data", hint="name a file, or send a memfd")
    return fd
