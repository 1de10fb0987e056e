"""What the harness has to know of a host: how a program is run there, and at which address other hosts reach it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from userdev.errors import UserdevError, UserError
from userdev.process import Child, Deadline, await_listening


class HostFailure(UserError):
    """A host cannot do its part: nothing is known by that of a guest, or of a device."""


class Host(Protocol):
    """A place for QEMU, its servers and their interposers."""

    @property
    def name(self) -> str:
        """The host's name in results and errors; hosts of a pair have different ones."""

    @property
    def address(self) -> str:
        """The IP address at which the other hosts reach it."""

    @property
    def python(self) -> str:
        """The Python there that has this package."""

    @property
    def shares_memory(self) -> bool:
        """Whether descriptors can be handed to its programs."""

    @property
    def kill_signal(self) -> signal.Signals:
        """What ends a program there as a crash would, before the child that stands for it here ends."""

    @property
    def pause_signal(self) -> signal.Signals:
        """What has a program there stand still, and then the child that stands for it here."""

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        """The command that runs `argv` there. `socket` is where the program will listen, if it sees to that itself."""

    def await_start(self, child: Child) -> None:
        """Wait until a program that was started listens where it was to listen."""

    def await_listening(self, child: Child, socket: Path, deadline: Deadline) -> bool:
        """Wait until a program listens there that sees to that itself; False when it ends before, or the time."""

    def provide(self, *paths: Path) -> None:
        """Have files and folders of this machine there, at the same paths."""

    def unanswered(self) -> str:
        """Why it is not reached now, be there a connection or not; "" where it answers."""


class OnThisMachine:
    """The part that all hosts on this machine have in common."""

    python = sys.executable
    shares_memory = True
    kill_signal = signal.SIGKILL
    pause_signal = signal.SIGSTOP

    def await_start(self, child: Child) -> None:
        """Its sockets exist before it does."""

    def await_listening(self, child: Child, socket: Path, deadline: Deadline) -> bool:
        """Wait for the program to listen at `socket`, by the kernel's events; False when it or the time ends before."""
        return await_listening(socket, child.end, deadline)

    def provide(self, *paths: Path) -> None:
        """They are there."""

    def unanswered(self) -> str:
        """Nothing."""
        return ""


@dataclass(frozen=True)
class LocalHost(OnThisMachine):
    """This machine. Two of them differ by their loopback address alone."""

    name: str = "local"
    address: str = "127.0.0.1"

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        """The command as it is: nothing has to be put before it here."""
        return list(argv)


LOCAL = LocalHost()
"""This machine, where nothing else is said."""


class Programs(Protocol):
    """Whoever has started programs on hosts: `Lab`."""

    @property
    def lost_connection(self) -> str:
        """Why a program on another host is heard of no more, where its connection has ended; else nothing."""


def lost_host(programs: Programs, *hosts: Host) -> str:
    """Why one of these hosts could not do its part, where it has gone: its connection has ended, or it is silent.

    A connection to a machine that is paused, or whose cable was pulled, is there for a minute longer.
    """
    return programs.lost_connection or next(filter(None, (host.unanswered() for host in hosts)), "")


@contextmanager
def blamed_if_lost(programs: Programs, *hosts: Host) -> Iterator[None]:
    """A block whose errors are a `HostFailure` where one of these hosts has gone, which is told once.

    Raises:
        HostFailure: it has, and something failed.
    """
    try:
        yield
    except HostFailure:
        raise
    except UserdevError as error:
        if lost := lost_host(programs, *hosts):
            said = str(error)
            raise (HostFailure(said) if lost in said else HostFailure(lost, evidence=said)) from error
        raise
