"""A person's terminal on a guest's serial console."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from vfio_user.harness.machine import Machine

LEAVE = b"\x1d"  # Ctrl-]


def attach(machine: Machine) -> bool:
    """Connect stdin and stdout to the console until the person leaves with Ctrl-] or the machine ends.

    On a terminal every other key goes to the guest, Ctrl-C too. Input that is no terminal is typed in as it comes;
    after its end the console is still shown. Returns whether the machine still runs.
    """
    machine.console.listen(lambda data: _write(sys.stdout.fileno(), data))
    ended = os.pidfd_open(machine.child.pid)
    try:
        with _raw(sys.stdin.fileno()) as interactive:
            machine.console.send(b"\n")  # the shell was started before anybody looked: ask for its prompt
            _type_until_left(machine, sys.stdin.fileno(), ended, interactive=interactive)
    finally:
        os.close(ended)
    return machine.child.running


def _type_until_left(machine: Machine, keyboard: int, ended: int, *, interactive: bool) -> None:
    sources = [keyboard, ended]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if ended in ready:
            return
        typed = os.read(keyboard, 4096)
        if interactive and LEAVE in typed:
            return
        if typed:
            machine.console.send(typed)
        else:
            sources.remove(keyboard)


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


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
