"""A person's terminal on a guest's serial console."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.machine import Machine
from vfio_user.harness.mishaps import GuestCrash, Kind

LEAVE = b"\x1d"  # Ctrl-]
_END = b"\x04"  # Ctrl-D
_ASKS = b"\x1b[6n"  # Device Status Report, which a terminal answers with the place of its cursor
_TURN_SECONDS = 0.5  # seconds until the end of the input is told again


def attach(guest: BootedGuest) -> bool:
    """Connect stdin and stdout to the console until the person leaves with Ctrl-] or the machine ends.

    On a terminal every other key goes to the guest, Ctrl-C too. Input that is no terminal is typed in as it comes, and
    its end is the end when all that was typed is done. Returns whether the machine still runs.
    """
    machine = guest.machine
    session = guest.call(_session)
    machine.console.listen(_shown_on(sys.stdout.fileno()))
    ended = os.pidfd_open(machine.child.pid)
    try:
        with _raw(sys.stdin.fileno()) as interactive:
            machine.console.send(b"\n")  # the shell was started before anybody looked: ask for its prompt
            _type_until_left(machine, sys.stdin.fileno(), ended, interactive=interactive)
        if not interactive:
            _let_finish(guest, session)
    finally:
        os.close(ended)
    return machine.child.running


def _type_until_left(machine: Machine, keyboard: int, ended: int, *, interactive: bool) -> None:
    while True:
        ready, _, _ = select.select([keyboard, ended], [], [])
        if ended in ready:
            return
        typed = os.read(keyboard, 4096)
        if interactive and LEAVE in typed:
            return
        if not typed:
            return
        machine.console.send(typed)


def _let_finish(guest: BootedGuest, session: list[int]) -> None:
    """Tell whoever reads the console that no more will come, until the shell there has read that too and has ended."""
    ending = b"\n" + _END  # at the beginning of a line, or it would not be an end
    try:
        while not guest.call(_ends, session, _TURN_SECONDS):
            guest.machine.console.send(ending)
            ending = _END
    except GuestCrash:
        if Kind.PANIC in guest.machine.mishaps or Kind.OOPS in guest.machine.mishaps:
            raise
        # what was typed has ended it


def _session() -> list[int]:
    """In the guest: the session of the serial console, as its leader's number and when that began."""
    import time
    from pathlib import Path

    serial_line = 4 << 8 | 64  # ttyS0, as proc_pid_stat(5) has it
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                number, rest = stat.read_text(errors="replace").split(" ", 1)
            except OSError:  # it has ended
                continue
            fields = rest.rpartition(") ")[2].split()
            if int(fields[4]) == serial_line and fields[3] == number:
                return [int(number), int(fields[19])]
        time.sleep(0.05)  # it is being started
    raise RuntimeError("nobody sits at the serial console")


def _ends(session: list[int], seconds: float) -> bool:
    """In the guest: whether a session has ended, or does within so many seconds."""
    import os
    import select
    from pathlib import Path

    try:
        leader = os.pidfd_open(session[0])
    except OSError:
        return True
    try:
        began = int(Path(f"/proc/{session[0]}/stat").read_bytes().rpartition(b") ")[2].split()[19])
        poller = select.poll()
        poller.register(leader, select.POLLIN)
        return began != session[1] or bool(poller.poll(seconds * 1000))
    except OSError:
        return True
    finally:
        os.close(leader)


@contextmanager
def _raw(terminal: int) -> Iterator[bool]:
    """Every key at once and untouched, for the time of the block; False when it is not a terminal."""
    if not os.isatty(terminal):
        yield False
        return
    before = termios.tcgetattr(terminal)
    tty.setraw(terminal)
    try:
        yield True
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _shown_on(descriptor: int) -> Callable[[bytes], None]:
    """What shows a console there; what is no terminal is not asked where its cursor is, as the guest's shell asks."""
    if os.isatty(descriptor):
        return lambda data: _write(descriptor, data)
    begun = b""

    def show(data: bytes) -> None:
        nonlocal begun
        data = (begun + data).replace(_ASKS, b"")
        begun = next((_ASKS[:size] for size in (3, 2, 1) if data.endswith(_ASKS[:size])), b"")
        _write(descriptor, data.removesuffix(begun))

    return show


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
