"""Device servers as a guest's QEMU reaches them: a process that somebody owns, and perhaps an interposer before it."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from userdev.errors import UserError, VerdictError
from userdev.process import Child, Deadline, tail
from vfio_user.harness.device import Device, server_command
from vfio_user.harness.interposition import InterposerProcess, Interposition
from vfio_user.harness.last_words import end_of, fate_of, reason
from vfio_user.harness.scratch import listen
from vfio_user.harness.site import Site
from vfio_user.interposer.control.client import InterposerControl

_COULD_NOT_BE_DONE = 2
"""What a server of ours ends with that was asked for what it cannot do (docs/reference/exit-statuses.md)."""
_MOST_OF_A_COMMAND = 100
"""Characters of a command line that a headline has whole."""
_FOR_HELP = re.compile(r"^Try '.*--help' for help", re.MULTILINE)
"""What click says of a mistake in a command line, between how it is used and what is wrong."""


class ServerError(UserError):
    """A device server did not come up. The evidence is the end of its log."""

    @classmethod
    def of(cls, what: str, child: Child, *, hint: str) -> ServerError:
        """That the program `child` did not come up, and what to do about it, with its last lines."""
        return cls(what, hint=hint, evidence=_last_lines(child))


class ServerFailure(VerdictError):
    """A device server that had come up died, or QEMU refused what it served. The evidence is the end of its log."""

    @classmethod
    def of(cls, what: str, child: Child) -> ServerFailure:
        """What went wrong with the program `child`, with its last lines."""
        return cls(what, evidence=_last_lines(child))


class Owner(Protocol):
    """Whoever has the process of a server, and can end it."""

    @property
    def child(self) -> Child:
        """The process of ours that stands for the server."""

    def server_pid(self) -> int:
        """The server's own process."""

    def kill(self) -> None:
        """End the server as a crash would."""

    def pause(self) -> None:
        """Have the server stand still: SIGSTOP."""

    def go_on(self) -> None:
        """Let the server run after a `pause`."""

    def stop(self) -> None:
        """End the server, softly first; a second call does nothing."""


class OwnProcess:
    """A server that is our child: one of our devices, or anybody's command.

    A device of ours inherits a socket that listens, unless its family has it listen by itself as a command does.
    """

    def __init__(self, device: Device, site: Site, name: str, path: Path, limit: float) -> None:
        """Start it and wait until it listens, without connecting: many servers take only one client.

        Raises:
            ServerError: it does not come up within `limit` seconds.
        """
        self._kill_signal, self._pause_signal = site.host.kill_signal, site.host.pause_signal
        listens = bool(device.command) or device.family.listens_itself
        with ExitStack() as inherited:
            fds = [] if listens else [inherited.enter_context(listen(path)).fileno()]
            argv = server_command(device, path, fds, site.host)
            log = site.folder / f"{name}.server.log"
            self.child = site.start(name, argv, log, fds, path if listens else None)
        try:
            self._await_start(device, site, name, path if listens else None, Deadline(limit))
        except BaseException:
            self.child.stop()
            raise

    def server_pid(self) -> int:
        """The number of the child."""
        return self.child.pid

    def kill(self) -> None:
        """End the server by SIGKILL and wait up to 5 s for its end."""
        self.child.kill(self._kill_signal)
        self.child.wait(5)

    def pause(self) -> None:
        """Have the server stand still: SIGSTOP, and none of its threads runs on return."""
        self.child.pause(self._pause_signal)

    def go_on(self) -> None:
        """Let the server run after a `pause`: SIGCONT."""
        self.child.signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the server: SIGTERM first, SIGKILL where that does not help; a second call does nothing."""
        self.child.stop()

    def _await_start(self, device: Device, site: Site, name: str, path: Path | None, deadline: Deadline) -> None:
        try:
            site.host.await_start(self.child)
        except UserError as error:
            raise ServerError.of(
                f"the device server {name!r} did not start on {site.host.name}: {self.child.last_words(1)}",
                self.child,
                hint="its program has to be on that host already" if device.command else "",
            ) from error
        if path is not None and not site.host.await_listening(self.child, path, deadline):
            if not self.child.running:
                raise _not_up(device, self.child)
            late = f"the device server {name!r} does not listen on {path} after {deadline.seconds:g} s"
            raise ServerError.of(late, self.child, hint=_alone(device))


class KeptAlive:
    """A server that its interposer starts, and another whenever it is gone: the process of ours is the interposer."""

    def __init__(self, interposer: InterposerProcess) -> None:
        self._interposer = interposer
        self.child = interposer.child

    def server_pid(self) -> int:
        """The number of the process that the interposer has started.

        Raises:
            ControlError: there is none at the moment, or the interposer is gone.
        """
        return self._interposer.control.server_pid()

    def kill(self) -> None:
        """Have the interposer send SIGKILL to its server, as a crash; it starts another.

        Raises:
            ControlError: the interposer refuses, or is gone.
        """
        self._interposer.control.call("signal", signal="SIGKILL")

    def pause(self) -> None:
        """Have the interposer send SIGSTOP to its server.

        Raises:
            ControlError: the interposer refuses, or is gone.
        """
        self._interposer.control.call("signal", signal="SIGSTOP")

    def go_on(self) -> None:
        """Have the interposer send SIGCONT to its server.

        Raises:
            ControlError: the interposer refuses, or is gone.
        """
        self._interposer.control.call("signal", signal="SIGCONT")

    def stop(self) -> None:
        """It ends with its interposer."""


class DeviceServer:
    """A device's server; at `path` a client may connect at once.

    With an `interposition` the interposer listens there, and the server at `server_path`; with `trace` the
    interposer records every message. `started` is told of each process of ours, those of a `restart` too.

    Raises:
        ServerError: server or interposer do not come up.
    """

    def __init__(
        self,
        device: Device,
        site: Site,
        name: str,
        *,
        limit: float = 30.0,
        interposition: Interposition | None = None,
        trace: bool = False,
        started: Callable[[Child], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.device = device
        self.shares_memory = site.host.shares_memory
        self._site, self._limit, self._starts = site, limit, 0
        self._interposition, self._traced = interposition, trace
        self._started = started
        self.server_path = site.scratch.socket_path(f"{name}.sock")
        self.path = self.server_path
        self._interposer: InterposerProcess | None = None
        with ExitStack() as undone:
            self.owner: Owner
            if interposition is None or not interposition.keep_alive:
                self.owner = OwnProcess(device, site, name, self.server_path, limit)
                undone.callback(self.owner.stop)
            if interposition is not None:
                self._interposer = self._start_interposer(interposition)
                self.path = self._interposer.path
                if interposition.keep_alive:
                    self.owner = KeptAlive(self._interposer)
            undone.pop_all()
        for child in self.children:
            started(child)

    @property
    def child(self) -> Child:
        """The process of ours that stands for the server."""
        return self.owner.child

    @property
    def log(self) -> Path:
        """The file of what the server's process writes to stdout and stderr."""
        return self.child.log

    @property
    def children(self) -> list[Child]:
        """All processes of ours: the server's, and the interposer's where that is another."""
        interposers = [self._interposer.child] if self._interposer is not None else []
        return list(dict.fromkeys([self.child, *interposers]))

    @property
    def is_interposed(self) -> bool:
        """Whether an interposer stands before it."""
        return self._interposer is not None

    @property
    def interposer(self) -> InterposerProcess:
        """The interposer before it.

        Raises:
            UserError: there is none.
        """
        if self._interposer is None:
            raise UserError(
                f"there is no interposer before the server {self.name!r}", hint="ask for one: interpose=True"
            )
        return self._interposer

    @property
    def control(self) -> InterposerControl:
        """The commands of its interposer (docs/interposer.md; docs/vhost-user-interposer.md has those of its own).

        Raises:
            UserError: there is none.
        """
        return self.interposer.control

    @property
    def interposed_there(self) -> Interposition | None:
        """What interposes a server of the same device on another host: as here, without the faults."""
        return replace(self._interposition, faults=None) if self._interposition is not None else None

    @property
    def has_faults(self) -> bool:
        """Whether its interposer was given a scenario at its start."""
        return self._interposition is not None and self._interposition.faults is not None

    @property
    def captures_dma(self) -> bool:
        """Whether its interposer writes guest memory in its place, which nobody marks as dirty then."""
        return self._interposition is not None and self._interposition.capture_dma

    @property
    def trace(self) -> Path | None:
        """The file with all messages, where they are recorded."""
        return self._interposer.trace if self._interposer is not None else None

    @property
    def saves_alike(self) -> bool:
        """Whether its saved state is the same bytes whenever it is the same: that of a device of this project's."""
        return bool(self.device.served)

    def check(self, wait: float = 0.0) -> None:
        """Raise `ServerFailure` with its last words when it has ended, or ends within `wait` seconds.

        Raises:
            ServerError: instead, where it is one of ours that says that it cannot be had so.
        """
        if self.child.wait(wait) is None:
            return
        if self.device.served and self.child.exit_code == _COULD_NOT_BE_DONE:
            raise _not_up(self.device, self.child)
        raise ServerFailure.of(_told_end(self.child), self.child)

    def refused(self, reason: str) -> ServerFailure:
        """The failure of a server whose device QEMU does not take, for this reason."""
        return ServerFailure.of(f"QEMU refuses the device of the server {self.name!r}: {reason}", self.child)

    def last_words(self) -> str:
        """The last lines of the server's log, for an error's hint."""
        return self.child.last_words()

    def kill(self) -> None:
        """End the server as a crash would."""
        self.owner.kill()

    def restart(self) -> None:
        """Start it anew where it was, once it has ended; for a device whose QEMU goes on with another server.

        Raises:
            ServerError: it does not come up.
        """
        self.owner.stop()  # what is left of it here is a descriptor, which a night of restarts would run out of
        self._starts += 1
        name = f"{self.name}.{self._starts}"
        self.server_path.unlink(missing_ok=True)
        self.owner = OwnProcess(self.device, self._site, name, self.server_path, self._limit)
        self._started(self.owner.child)

    def kill_interposer(self) -> None:
        """End its interposer as a crash would.

        Raises:
            UserError: there is none.
        """
        self.interposer.child.kill(self._site.host.kill_signal)

    def restart_interposer(self) -> None:
        """Start another interposer where one has ended; for a device whose QEMU connects again.

        Raises:
            UserError: it does not start, or there was none.
        """
        self.interposer.stop()
        self._interposer = self._start_interposer(self._interposition or Interposition())
        self._started(self._interposer.child)

    def stop(self) -> None:
        """End it with its interposer, softly first; a second call does nothing."""
        if self._interposer is not None:
            self._interposer.stop()
        self.owner.stop()
        if self._interposer is not None:
            self.server_path.unlink(missing_ok=True)

    def _start_interposer(self, interposition: Interposition) -> InterposerProcess:
        upstream = self._kept_alive(self._site) if interposition.keep_alive else self._connected()
        family = self.device.family
        names = self.device.register_names
        return InterposerProcess(
            self._site, self.name, family, upstream, interposition, trace=self._traced, registers=names
        )

    def _connected(self) -> list[str]:
        """How an interposer is told of a server that runs."""
        ours = ["--server-pid", str(self.child.pid)] if self.shares_memory else []  # its processes are this machine's
        return ["--connect", str(self.server_path), *ours]

    def _kept_alive(self, site: Site) -> list[str]:
        """How an interposer is told of a server to start; one of ours inherits its socket as {fd}."""
        keeping = ["--keep-alive", "--connect", str(self.server_path), "--server-command"]
        served = server_command(self.device, self.server_path, ("{fd}",), site.host) if self.device.served else []
        return [*keeping, self.device.command or shlex.join(served)]


def _told_end(child: Child) -> str:
    return f"the device server {end_of(child.name, fate_of(child), tail(child.log))}"


def _not_up(device: Device, child: Child) -> ServerError:
    """The error for a server that ended at its start; where the command line of one of ours was wrong, what helps.

    It is named as whoever gave it knows it.
    """
    who = device.name if device.served or len(device.command) > _MOST_OF_A_COMMAND else f"`{device.command}`"
    ended = f"the server {end_of(who, fate_of(child), tail(child.log))}"
    if device.served and _FOR_HELP.search(tail(child.log)):
        return ServerError(ended, hint=f"{_serving(device, '--help')} shows its options")
    said = tail(child.log).splitlines()
    why = reason("\n".join(said))
    told = [line for line in said if line.strip() != why]  # that one is in the sentence already
    hints = [line.strip() for line in told if line[:1].isspace()] if device.is_ours else []  # as our commands have them
    if hints and child.exit_code == _COULD_NOT_BE_DONE:
        return ServerError(ended, hint="\n".join(hints))
    nothing = "" if why else "it printed nothing; "
    return ServerError(ended, hint=f"{nothing}{_alone(device)}", evidence=_last_lines(child) if told else "")


def _alone(device: Device) -> str:
    """How to see what a server does without a guest."""
    return f"start it alone: {_serving(device) if device.served else 'its command, with a path in place of {socket}'}"


def _serving(device: Device, *options: str) -> str:
    """The command by which a person serves a device of a class."""
    name = device.served.removeprefix(f"{device.family.name}-").removeprefix(f"{device.family.name}:")
    return f"`{shlex.join([device.family.name, 'serve', name, *(options or device.options)])}`"


def _last_lines(child: Child) -> str:
    return f"{child.name}, last lines:\n{child.last_words()}"
