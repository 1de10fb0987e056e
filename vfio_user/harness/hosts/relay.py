"""The near end of a program on another host: it stands for that program here, as a child process of the harness.

    python -m vfio_user.harness.hosts.relay WHERE [--socket PATH] -- PROGRAM ARGUMENT...

The sockets that it inherits are those that the program there is to inherit: their bytes travel over the SSH
connection (remote_agent.py has the other side). What it writes into a file that it inherits is written into that file
here, as it comes. PATH is where the program makes a socket itself, for others over there.
It ends as the program ends, which is ended where nothing is heard of this one, or it is stopped, for 90 s. SIGTERM,
SIGINT and SIGHUP are handed on, and SIGUSR1 as SIGKILL: after a SIGKILL of its own nobody would know when the program
there has ended. SIGUSR2 is handed on as SIGSTOP, and this one stops when the program there has; SIGCONT is for both.
"""

from __future__ import annotations

import errno
import fcntl
import inspect
import json
import os
import shlex
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from userdev.errors import UserError
from userdev.process import is_listening
from userdev.whole import write_whole
from vfio_user.harness.hosts import remote_agent
from vfio_user.harness.hosts.relayed import CONNECTION_ENDED, ENDED, LISTENING_LINE, STARTED_LINE
from vfio_user.harness.hosts.remote_agent import (
    ALIVE,
    CLOSE,
    DATA,
    EXIT,
    LISTENING,
    LOG,
    SIGNAL,
    SPAWN,
    STARTED,
    STOPPED,
    Frames,
    Streams,
)
from vfio_user.harness.hosts.ssh_connection import connected

_HANDED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGUSR1: signal.SIGKILL,
    signal.SIGUSR2: signal.SIGSTOP,
    signal.SIGCONT: signal.SIGCONT,
}
ALIVE_SECONDS, SILENCE_SECONDS = 20.0, 90.0
"""How often the far side is told that this one is there, and after how long without a word it takes it for gone."""
GRACE_SECONDS = 5.0
"""That a program has to end by itself, and an interposer its server before that, when nobody is there any more."""
_FIRST_OPENED = 1000
_SHUT = frozenset({errno.EBADF, errno.EINVAL})  # what `accept` says of a listener that was shut or closed
_ROOM_SECONDS = 0.1  # seconds between two tries while there is no room for another connection
_LAST_WORDS_SECONDS = 5.0  # seconds


def main(arguments: list[str]) -> int:
    """Run a program on another host and stand for it here; returns its exit status, or 255 when the connection ends
    first.
    """
    [where_text, *options], argv = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    where: dict[str, Any] = json.loads(where_text)
    streams, listeners = inherited_sockets()
    files = inherited_files()
    try:
        frames = AgentConnection(where)
    except UserError as error:
        print(error, flush=True)
        return CONNECTION_ENDED
    relay = Streams(frames)
    wanted = {
        "argv": argv,
        "streams": [*streams, *files],
        "listeners": {number: listener.getsockname() for number, listener in listeners.items()},
        "socket": options[1] if options else "",
        "silence": SILENCE_SECONDS,
        "grace": GRACE_SECONDS,
        "environment": {name: value for name, value in os.environ.items() if name.startswith("VFIO_USER_")},
    }
    with suppress(OSError):  # it has ended already: what is received says so
        frames.send(SPAWN, data=json.dumps(wanted).encode())
    threading.Thread(target=say_alive, args=(frames,), daemon=True).start()
    hand_on_signals(frames)
    for number, end in streams.items():
        relay.add(number, end)
    for number, file in files.items():
        relay.keep(number, file)
    numbers = count(_FIRST_OPENED)
    for listener in listeners.values():
        threading.Thread(target=accept, args=(listener, relay, numbers), daemon=True).start()
    return serve(frames, relay, where["name"])


def serve(frames: AgentConnection, relay: Streams, name: str) -> int:
    """Serve frames until the program there has ended; returns its exit status."""
    while True:
        try:
            kind, stream, data = frames.receive()
        except EOFError:
            print(f"{ENDED}{name} has ended{frames.why_ended()}", flush=True)
            return CONNECTION_ENDED
        if kind == DATA:
            relay.arrived(stream, data)
        elif kind == CLOSE:
            relay.closed(stream)
        elif kind == LOG:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        elif kind == STARTED:
            print(f"{STARTED_LINE.decode()}{name} as process {data.decode()}", flush=True)
        elif kind == LISTENING:
            print(f"{LISTENING_LINE.decode()}{name} at {data.decode()}", flush=True)
        elif kind == STOPPED:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == EXIT:
            relay.flush(_LAST_WORDS_SECONDS)
            return int(data)


def hand_on_signals(frames: Frames) -> None:
    """Have signals be handed on from now on, by a thread: one may interrupt who is sending, and holds the lock."""
    came = SimpleQueue[int]()

    def hand_all_on() -> None:
        while True:
            hand_on(frames, came.get())

    threading.Thread(target=hand_all_on, daemon=True).start()
    for near, far in _HANDED_ON.items():
        signal.signal(near, lambda *_, number=far: came.put(number))


def hand_on(frames: Frames, number: int) -> None:
    """Send a signal to the program there; where the connection has ended, `serve` says so."""
    with suppress(OSError):
        frames.send(SIGNAL, number)


def inherited_sockets() -> tuple[dict[int, socket.socket], dict[int, socket.socket]]:
    """Those that are connected, and those that listen, by their numbers."""
    streams: dict[int, socket.socket] = {}
    listeners: dict[int, socket.socket] = {}
    for entry in sorted(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            if (number := int(entry.name)) > 2 and str(entry.readlink()).startswith("socket:"):
                found = socket.socket(fileno=number)
                listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                (listeners if listens else streams)[number] = found
    return streams, listeners


class WrittenFile:
    """A file that a program on another host writes to its end, as if it were a socket."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def sendall(self, data: bytes) -> None:
        """Write all of it; what comes behind something that cannot be written is dropped, which is said once."""
        if self._fd < 0:
            return
        try:
            write_whole(self._fd, data)
        except OSError as error:
            print(f"what the program writes is kept no longer: {error.strerror}", flush=True)
            self._fd = -1

    def shutdown(self, how: int) -> None:
        """Nothing more comes."""
        self._fd = -1


def inherited_files() -> dict[int, WrittenFile]:
    """Regular files that are open for writing, by their numbers."""
    files: dict[int, WrittenFile] = {}
    for entry in sorted(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):
            number = int(entry.name)
            written = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if number > 2 and written and os.get_inheritable(number) and stat.S_ISREG(os.fstat(number).st_mode):
                files[number] = WrittenFile(number)
    return files


class AgentConnection(Frames):
    """The frames of an agent that is started there, by the Python there, and ends with the connection."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self._client = connected(where)  # the connection lives as long as somebody holds it
        self._python = where["python"]
        transport = self._client.get_transport()
        assert transport is not None
        self._channel = transport.open_session()
        self._channel.set_combine_stderr(False)
        self._channel.exec_command(f"{shlex.quote(self._python)} -u -c {shlex.quote(agent_source())}")
        self._complaints = threading.Thread(target=self._hand_on_complaints, daemon=True)
        self._complaints.start()
        super().__init__(self._channel.recv, self._channel.sendall)

    def why_ended(self) -> str:
        """What can be said of it, after a colon, once the agent is silent for ever; "" where nobody knows."""
        self._complaints.join(_LAST_WORDS_SECONDS)
        if (
            not self._channel.status_event.wait(_LAST_WORDS_SECONDS)
            or (status := self._channel.recv_exit_status()) == -1
        ):
            return ""
        if status in (126, 127):
            return f": {self._python} cannot be run there"
        return f": the remote agent ended with status {status}"

    def _hand_on_complaints(self) -> None:
        """What the agent itself says of its troubles, and the shell that was to start it."""
        while data := self._channel.recv_stderr(4096):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def agent_source() -> str:
    """The program that is sent to the host: `remote_agent`, which is complete without this package there."""
    needed = "from userdev.process.listening import is_listening\n"
    return inspect.getsource(remote_agent).replace(needed, inspect.getsource(is_listening))


def say_alive(frames: Frames) -> None:
    """Say that this side is there, as long as there is another one."""
    with suppress(OSError):
        while True:
            time.sleep(ALIVE_SECONDS)
            frames.send(ALIVE)


def accept(listener: socket.socket, relay: Streams, numbers: Iterator[int]) -> None:
    """Carry every connection that comes to a socket that the program there inherits, until the listener is shut."""
    path = listener.getsockname()
    while True:
        try:
            end, _ = listener.accept()
        except OSError as error:
            if error.errno in _SHUT:
                return
            time.sleep(_ROOM_SECONDS)  # this process has too many descriptors: who comes waits in the backlog
        else:
            relay.add(next(numbers), end, path)


def _end_as(code: int) -> None:
    """With the exit status, or by the signal that ended the program there."""
    sys.stdout.flush()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


if __name__ == "__main__":
    _end_as(main(sys.argv[1:]))
