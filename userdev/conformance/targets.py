"""A server under test, as a command line names one: by its address, or by the command that starts it.

What its protocol is, it is told by a `Greet`: how a client and a server find out that they understand each other.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from typing import Self

from userdev.conformance.runner import Crash
from userdev.errors import UserdevError, UserError
from userdev.process import Child, Deadline, ServerCommand, Watch, await_change
from userdev.transport import Address, Stream, connect

Greet = Callable[[Stream, float], None]
"""Be one client that begins a conversation, with so many seconds for each answer; the stream is closed by the caller.

Raises:
    TimeoutError: the server does not answer.
    UserdevError: it refuses, or goes.
"""

START_SECONDS = 20.0
"""Seconds that a server has to listen."""

LINGER_SECONDS = 0.5
"""Seconds that a server has to end with its client, if it does."""

LISTEN_AGAIN_SECONDS = 0.5
"""Seconds that a server has to take its next client, where it stops listening in between."""

ANSWER_SECONDS = 2.0
"""Seconds that a server has to answer its second client; one that takes longer gets no second."""

APPEAR_SECONDS = 1.0
"""Seconds that a server which somebody else has just started has to make its socket."""

BOUND_SECONDS = 0.01
"""Seconds between tries of a socket that is bound: the kernel has no event for listen(2), which follows at once."""

REFUSAL_SECONDS = 0.05
"""The same for one that ends only where it refuses a client."""

_MOST_SAID = 1 << 20
"""Bytes of what a server has printed that are kept until somebody asks."""

_LIVES_ON = "lives on and serves nobody any more"

_NUMBERS = count(1)
"""Of servers, so that several of them may share a folder."""

_POLITE = frozenset({0, -signal.SIGTERM, -signal.SIGKILL})
"""How a server ends that we ended, or that ends with its client, as the specification lets it."""


def connect_to_new(address: str, *, timeout: float, seconds: float = APPEAR_SECONDS) -> Stream:
    """Connect to a server that was perhaps started a moment ago: its socket has so many seconds to come.

    Raises:
        UserError: nobody listens there by then, or the address cannot be used.
    """
    place = Address.parse(address)
    path = Path(place.where) if isinstance(place.where, str) else None
    if path is None or not path.parent.is_dir() or (path.exists() and not path.is_socket()):
        return connect(place, timeout=timeout)
    deadline = Deadline(seconds)
    with Watch(path.parent) as arrivals:
        while True:
            try:
                return connect(place, timeout=timeout)
            except UserError:
                if deadline.passed:
                    raise
            wait = min(BOUND_SECONDS, deadline.remaining) if path.exists() else deadline.remaining
            select.select([arrivals.fd], [], [], wait)
            arrivals.drain()


class RunningServer:
    """A server that somebody else runs."""

    pid = None

    def __init__(self, address: str, greet: Greet, *, timeout: float) -> None:
        self.address = address
        self._greet = greet
        self._timeout = timeout
        self._lost: Crash | None = None
        self._connect: Callable[..., Stream] = connect_to_new

    def try_out(self) -> str:
        """Raise `UserError` where there is no server: that is no verdict."""
        self.connect().close()
        return ""

    def connect(self) -> Stream:
        """A new connection to it; for the first it may just be starting.

        Raises:
            UserError: it does not listen, or has ended.
        """
        stream = self._connect(self.address, timeout=self._timeout)
        self._connect = connect
        return stream

    def renew(self) -> None:
        """Nothing: it is not ours to end."""

    def settle(self, stays: Greet | None = None) -> None:
        """Find out whether it still serves, after what a check did to it."""
        try:
            _meet(self.address, self._greet, self._timeout, stays)
        except (UserError, TimeoutError) as error:
            self._lost = Crash(f"the server takes no client any more: {error}")
        except UserdevError:
            return  # it is there

    def said(self) -> str:
        """Nothing: what it says is not ours to read."""
        return ""

    def crashed(self) -> Crash | None:
        """Its fate since the last call; None when it is well."""
        lost, self._lost = self._lost, None
        return lost

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class CommandServer:
    """A server that is started from a command with `{socket}` in it, whenever there is none.

    One that ends with its client, or lives on and serves nobody any more, as `try_out` finds out, is started for each:
    to connect to a server that is about to end would be a race.
    """

    def __init__(
        self,
        command: str,
        folder: Path,
        greet: Greet,
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], object] = print,
    ) -> None:
        """Nothing runs yet. Sockets and logs go to `folder`; `say` is told of what is found out too late for `try_out`.

        Raises:
            UserError: the command does not say where the socket's path goes.
        """
        self._command = ServerCommand.parse(command)
        if self._command.inherits:
            raise UserError(f"no socket is inherited here: {command}", hint="put {socket} where the path belongs")
        self._greet = greet
        self._timeout = timeout
        self._folder = folder
        self._environment = environment
        self._child: Child | None = None
        self._number = next(_NUMBERS)
        self._count = 0
        self._crash: Crash | None = None
        self._clients: list[Stream] = []
        self._say = say
        self._lingers = 0.0  # seconds that it gets to end by itself, where it does that at all
        self._deaf = False  # it has stopped listening when a client had left
        self._takes_many = False  # it has served others behind clients that had left
        self._failure: UserError | None = None  # a fresh one did not come up: no other is waited for
        self._polite = _POLITE
        self._said = ""  # by those that have ended, and not told yet
        self._heard = 0  # bytes of the running one's log that were told

    def try_out(self) -> str:
        """Learn what the server does when a client leaves, before it was greeted and after; words for what is unusual.

        Raises:
            UserError: it does not come up.
        """
        habits = []
        for when, talk, lingers in (("before", False, REFUSAL_SECONDS), ("after", True, LINGER_SECONDS)):
            with closing(self.connect()) as stream:
                try:
                    if talk:
                        self._greet(stream, self._timeout)
                except TimeoutError:
                    return self._silent()
                except UserdevError:
                    pass  # the checks will see it again
            if self._takes_another():
                continue
            assert self._child is not None
            status = self._child.wait(LINGER_SECONDS)
            if status is None:
                habits.append(f"{_LIVES_ON} when a client leaves {when} it was greeted")
                self._deaf = True
            elif status >= 0:
                habits.append(f"ends with status {status} when a client leaves {when} it was greeted")
                self._polite |= {status}
                self._lingers = lingers
            self.renew()
            self._crash = None  # the checks will see it again
        self._takes_many = not habits
        return f"the server {' and '.join(habits)}: each client gets a fresh one" if habits else ""

    def _silent(self) -> str:
        """The words for a server that answers not even its first client: what it does when one leaves says nothing."""
        self.renew()
        self._crash = None
        self._deaf = False
        return f"the server listens and answers nobody: no answer within {self._timeout:g} s"

    @property
    def pid(self) -> int | None:
        """The process of the running server."""
        return self._child.pid if self._child is not None and self._child.running else None

    def connect(self) -> Stream:
        """Connect to the running server, or to a new one.

        The connection is also the sign that it listens: a connection just to see would be a client to it.
        """
        if self._failure is not None:
            raise self._failure
        if self._child is None or not self._child.running or (self._serves_one and self._is_left()):
            self._start()
        elif self._clients:
            with suppress(UserError):  # it has listened, and mostly does: to end a watch takes the kernel 15 ms
                self._clients.append(connect(str(self.path), timeout=self._timeout))
                return self._clients[-1]
        with Watch(self._folder) as arrivals:
            return self._connected(arrivals)

    def _connected(self, arrivals: Watch) -> Stream:
        assert self._child is not None
        deadline = Deadline(LISTEN_AGAIN_SECONDS if self._clients else START_SECONDS)
        while True:
            try:
                stream = connect(str(self.path), timeout=self._timeout)
            except UserError as refusal:
                await_change(self.path, self._child.end, deadline, arrivals)
                code = self._child.exit_code
                if self._clients and (code is not None or deadline.passed):
                    if code is None and not self._is_left():
                        raise UserError(f"the server takes no second client at once: {refusal}") from None
                    if code is None:
                        self._note_deaf(refusal)
                    self._start()
                    deadline = Deadline(START_SECONDS)
                elif code is not None:
                    raise UserError(
                        f"the server {self._child.fate()} before it listened:\n{self._child.last_words()}"
                    ) from None
                elif deadline.passed:
                    self._failure = UserError(
                        f"the server does not listen on {self.path} after {START_SECONDS:g} s:\n"
                        f"{self._child.last_words()}"
                    )
                    raise self._failure from None
            else:
                self._clients.append(stream)
                return stream

    def settle(self, stays: Greet | None = None) -> None:
        """Find out whether it still serves, after what a check did to it."""
        if self._child is None:
            return
        if self._serves_one:
            self.renew()
            return
        try:
            stream = _meet(str(self.path), self._greet, self._timeout, stays)
        except TimeoutError as error:
            self._crash = Crash(f"the server serves nobody any more: {error}")
            self.renew()
        except UserdevError as error:  # it has died, or is about to; or it lives on and listens no more
            if not self._takes_another() and self._child.wait(LINGER_SECONDS) is None and self._takes_many:
                self._note_deaf(error)
                self.renew()
        else:
            self._clients.append(stream)

    def renew(self) -> None:
        """End the server; the next connection starts another."""
        if self._child is not None:
            if self._is_left():
                self._child.wait(self._lingers)  # how it ends by itself is part of the verdict
            self._end(self._child)
            self._child = None
        self._clients.clear()

    def said(self) -> str:
        """What it has printed since the last call, with those that were in its place before."""
        if self._child is not None:
            self._hear(self._child)
        said, self._said = self._said, ""
        return said

    def _hear(self, child: Child) -> None:
        with child.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._heard, end - _MOST_SAID))
            new, self._heard = log.read(_MOST_SAID), end
        self._said = (self._said + new.decode(errors="replace"))[-_MOST_SAID:]

    def crashed(self) -> Crash | None:
        """Its fate since the last call; None when it is well."""
        if self._child is not None and not self._child.running:
            self.renew()
        crash, self._crash = self._crash, None
        return crash

    def _start(self) -> None:
        self.renew()
        self._count += 1
        argv = self._command.argv(socket=self.path)
        log, self._heard = self._folder / f"server{self._number}-{self._count}.log", 0
        self._child = Child("server", argv, log=log, environment=self._environment)

    def _end(self, child: Child) -> None:
        died = not child.running
        fate = child.fate()
        code = child.stop()
        self._hear(child)
        if code not in self._polite and not self._crash:
            how = fate if died else f"ended with status {code} when it was asked to end"
            self._crash = Crash(f"the server {how}:\n{child.last_words()}", by_itself=died and code >= 0)

    @property
    def _serves_one(self) -> bool:
        """Whether each client has to get a server of its own."""
        return bool(self._lingers) or self._deaf

    def _takes_another(self) -> bool:
        """Whether the server that a client has left serves the next, be it with a refusal."""
        assert self._child is not None
        deadline = Deadline(LISTEN_AGAIN_SECONDS)
        refuses = False
        while not deadline.passed and self._child.wait(0.002) is None:
            try:
                _meet(str(self.path), self._greet, min(self._timeout, ANSWER_SECONDS))
            except TimeoutError:
                return False
            except UserError:
                refuses = False
            except UserdevError:  # a refusal, or what comes of its end
                refuses = True
            else:
                return True
        return refuses and self._child.running

    def _note_deaf(self, refusal: UserdevError) -> None:
        """Take note of one that lives and listens no more: of what was done to it, where it has taken others before."""
        if self._takes_many:
            self._crash = Crash(f"the server {_LIVES_ON}: {refusal}")
        elif not self._deaf:
            self._say(f"the server {_LIVES_ON} when a client has left: each client gets a fresh one")
            self._deaf = True

    def _is_left(self) -> bool:
        """Whether it has had clients, and all have gone."""
        return bool(self._clients) and all(_has_ended(client) for client in self._clients)

    @property
    def path(self) -> Path:
        """The path of its socket."""
        return self._folder / f"{self._number}-{self._count}.sock"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.renew()


def _meet(address: str, greet: Greet, timeout: float, stays: Greet | None = None) -> Stream:
    """Be one more client, of whom the server knows nothing: it hears of one before it is done with those who left.

    One who `stays` greets by that instead, and the stream is left open.
    """
    stream = connect(address, timeout=timeout)
    with ExitStack() as leaving:
        leaving.callback(stream.close)
        (stays or greet)(stream, timeout)
        if stays is not None:
            leaving.pop_all()
    return stream


def _has_ended(stream: Stream) -> bool:
    """Whether either side has closed it."""
    if stream.fileno() < 0:
        return True
    poller = select.poll()
    poller.register(stream.fileno(), select.POLLRDHUP)
    return bool(poller.poll(0))
