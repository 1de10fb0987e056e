"""One device of the guest that migrates: its two servers, spoken to through the control sockets of their interposers.

Only the protocol is used, so that the server may be anybody's. Sources: linux/vfio.h (migration v2); the arcs between
states are the server's business, see vfio_user/migration/machine.py.
"""

from __future__ import annotations

import base64
import hashlib
import mmap
import os
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from io import BufferedReader

from userdev.control import ControlError, PendingAnswer
from userdev.errors import UserError
from userdev.whole import write_whole
from vfio_user.harness.command_line import Place
from vfio_user.harness.migration.pci_state import PciState
from vfio_user.harness.server import DeviceServer
from vfio_user.interposer.control.answers import SessionShown
from vfio_user.interposer.control.client import InterposerControl
from vfio_user.migration.stream import differing, digests_in

PRE_COPY_TURN = 64 << 20
"""Bytes of state read at most before somebody looks at QEMU again."""
PAGE_SIZE = 4096
_INLINE = 4 << 20  # bytes of state at once, to a host where descriptors cannot be sent; each costs a round trip
_AHEAD = 4  # of these that are sent before the first is confirmed
_CONFIG_REGION = 7  # linux/vfio.h


class StateSpool:
    """Saved state on its way from one server to the other: written at its end, read from where reading stopped."""

    def __init__(self) -> None:
        self._write = os.memfd_create("vfio-user-state", os.MFD_CLOEXEC)
        self._read = os.open(f"/proc/self/fd/{self._write}", os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size(self) -> int:
        """Bytes of state that were taken so far."""
        return os.fstat(self._write).st_size

    def fill(self, server: DeviceServer, limit: int | None = None) -> int:
        """Take what the server has, up to `limit` bytes; returns how many."""
        if server.shares_memory:
            taken: int = self.begin_to_fill(server, limit).result()["bytes"]
            return taken
        left = limit if limit is not None else sys.maxsize
        taken = 0
        while taken < left:
            answer = server.control.call("mig_data_read", size=min(left - taken, _INLINE), raw=True)
            write_whole(self._write, answer["raw"])
            taken += answer["bytes"]
            if answer["complete"]:
                break
        return taken

    def begin_to_fill(self, server: DeviceServer, limit: int | None = None) -> PendingAnswer:
        """Begin to `fill` from a server that shares memory with us, without waiting for the end."""
        return server.control.post("mig_data_read", fd=True, fds=[self._write], size=limit)

    def begin_to_drain(self, server: DeviceServer) -> PendingAnswer | None:
        """Hand on what was taken. It may go on while more is taken; None where it has been done already."""
        if server.shares_memory:
            return server.control.post("mig_data_write", fd=True, fds=[self._read])
        under_way: deque[PendingAnswer] = deque()
        while data := os.read(self._read, _INLINE):
            under_way.append(server.control.post("mig_data_write", behind=data))
            if len(under_way) > _AHEAD:
                under_way.popleft().result()
        for answer in under_way:
            answer.result()
        return None

    def forget_handed_on(self) -> None:
        """Give back the memory of what was read: an image that goes along may be larger than that."""
        if done := os.lseek(self._read, 0, os.SEEK_CUR) & -PAGE_SIZE:
            with mmap.mmap(self._write, done) as read:
                read.madvise(mmap.MADV_REMOVE)

    def digest(self) -> str:
        """SHA-256 of everything that was put in, where none of it was forgotten."""
        with self._whole() as whole:
            return hashlib.file_digest(whole, "sha256").hexdigest()

    def parts(self) -> Mapping[str, str]:
        """Digests of the state's parts by name, where the servers are of this package; else nothing."""
        with self._whole() as whole:
            return digests_in(whole)

    def _whole(self) -> BufferedReader:
        return open(f"/proc/self/fd/{self._write}", "rb")

    def close(self) -> None:
        """Close the memory file; a server that was handed its descriptor keeps its own."""
        os.close(self._write)
        os.close(self._read)


class SavedAgain:
    """The state of a device that stands still, saved once more while nobody waits; it stays in STOP_COPY."""

    def __init__(self, server: DeviceServer, patience: float) -> None:
        self._server = server
        self._spool = StateSpool()
        post = server.control.post
        with ExitStack() as failing:
            failing.callback(self._spool.close)
            self._steps = [post("migration_state", set=state, timeout=patience) for state in ("STOP", "STOP_COPY")]
            if server.shares_memory:
                self._steps.append(self._spool.begin_to_fill(server))
            failing.pop_all()

    def digest(self) -> str:
        """SHA-256 of the state, when all of it is there.

        Raises:
            ControlError: the server refuses, or is gone.
        """
        for step in self._steps:
            step.result()
        if not self._server.shares_memory:
            self._spool.fill(self._server)
        return self._spool.digest()

    def differences(self, other: SavedAgain) -> list[str]:
        """Names of the parts in which two states differ, once their digests were asked for."""
        return differing(self._spool.parts(), other._spool.parts())

    def close(self) -> None:
        """Give the saved state up."""
        self._spool.close()


@dataclass
class DeviceLink:
    """A device on its way. `place` is where it is on both sides."""

    name: str
    place: Place
    source: DeviceServer
    destination: DeviceServer
    known: bytes = b""
    """Config space as the source's server has it; empty where it does not show all of it at once."""
    pci: PciState | None = None
    """As it was on the source when the guest stood still."""
    resets: int = 0
    pre_copies: bool = False
    logs: bool = False
    patience: float = 10.0
    """Seconds that a server has for going from one state to another."""
    spool: StateSpool = field(default_factory=StateSpool)
    _handing_on: PendingAnswer | None = None

    def close(self) -> None:
        """Give up the state that is under way; both servers stay as they are."""
        self.spool.close()

    # -- the source ---------------------------------------------------------------------------------------------------

    @property
    def client_migrates(self) -> bool:
        """Whether QEMU asked the server for its migration by itself."""
        return bool(self._session()["client_migrates"])

    def prepare(self) -> None:
        """Ask what the server can do, which can migrate, and begin to log what it writes."""
        supports = self.source.control.call("migration_support")["supports"]
        self.resets = self._session()["resets"]
        with suppress(ControlError):
            answer = self.source.control.call("region_read", region=_CONFIG_REGION, offset=0, size=256)
            self.known = base64.b64decode(answer["data"])
        self.logs = True  # also where the answer does not come
        try:
            self.source.control.call("dma_logging_start", page_size=PAGE_SIZE)
        except ControlError:
            self.logs = False
            raise
        if "PRE_COPY" in supports:
            self._go(self.source.control, "PRE_COPY")
            self.pre_copies = True

    def pre_copy(self) -> int:
        """Move a piece of the state while the device runs; 0 when there is nothing more for now."""
        moved = self.spool.fill(self.source, PRE_COPY_TURN) if self.pre_copies else 0
        if moved:
            self._hand_on()
        return moved

    def stop(self) -> PendingAnswer:
        """Stop the device, in the state that it was confirmed to be in."""
        return self.source.control.post("migration_state", set="STOP_COPY", timeout=self.patience)

    def copy_rest(self) -> int:
        """Move what is left of the state of a device that has stopped; its bytes."""
        moved = self.spool.fill(self.source)
        self._hand_on()
        self._await_handed_on()
        return moved

    def resend_dirty(self) -> PendingAnswer:
        """Write a byte of each page that the device wrote since logging began back over the client, so that QEMU sends
        them again; `pages` of the answer is how many there were. Those in its `unmapped` have to be written otherwise.
        """
        return self.source.control.post("dma_logging_resend", page_size=PAGE_SIZE)

    def return_to_source(self) -> None:
        """Let the device run on where it was."""
        self._go(self.source.control, "RUNNING")
        if self.logs:
            self.source.control.call("dma_logging_stop")

    # -- the destination ----------------------------------------------------------------------------------------------

    def _hand_on(self) -> None:
        """Let the destination take what was copied, while the source gives more."""
        self._await_handed_on()
        self._handing_on = self.spool.begin_to_drain(self.destination)

    def _await_handed_on(self) -> None:
        handing_on, self._handing_on = self._handing_on, None
        if handing_on is not None:
            handing_on.result()
            self.spool.forget_handed_on()

    def await_state(self) -> None:
        """Make the destination's server ready to take the state."""
        self._go(self.destination.control, "RESUMING")

    def load(self) -> PendingAnswer:
        """Have the state that was handed over take effect. The server may refuse it."""
        return self.destination.control.post("migration_state", set="STOP", timeout=self.patience)

    def run(self) -> None:
        """Take the destination's server to RUNNING.

        Raises:
            ControlError: it refuses.
        """
        self._go(self.destination.control, "RUNNING")

    def confirm_source(self) -> None:
        """Hear that the device runs, and that its state is being copied where that is so.

        Raises:
            UserError: it does not, or is gone.
        """
        self.confirm(self.source, "PRE_COPY" if self.pre_copies else "RUNNING")

    def confirm(self, side: DeviceServer, expected: str) -> None:
        """Hear from a server that it is there, and in the state that it should be in.

        Raises:
            UserError: it is not, or is gone.
        """
        state = side.control.call("migration_state")["state"]
        if state != expected:
            why = "; the guest has reset it, migrate again" if state == "RUNNING" and side is self.source else ""
            raise UserError(f"{self.name} is in state {state}, not {expected}{why}")

    def _go(self, control: InterposerControl, state: str) -> None:
        control.call("migration_state", set=state, timeout=self.patience)

    def _session(self) -> SessionShown:
        return self.source.control.call("session")
