"""A server that the interposer starts itself: own process group, dies with us, and is there when it listens."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from userdev.errors import UserError
from userdev.process import OwnedFolder, ServerCommand, Watch, spawn
from userdev.relay.loop import Future, Loop
from userdev.transport import Stream

STDERR = 2
_FLAGS_AT, _PF_EXITING = 6, 0x4
"""Where a process's flags are behind its name (proc(5)), and the one of do_exit (linux/sched.h)."""
ENDING_SECONDS = 10.0
"""Seconds that the kernel has to end a process that it is about to: on a busy machine it may be kept waiting."""
STOP_SECONDS = 2.0
"""Seconds between SIGTERM and SIGKILL."""


class ServerProcess:
    """Starts `command` whenever asked to, in which `{socket}` stands for the path to listen on.

    `{fd}` instead is a listening socket that the server inherits: then it can be connected to before it has started.
    """

    def __init__(self, loop: Loop, command: str, socket_path: str | None = None, *, output: int = STDERR) -> None:
        """Nothing is started yet. What the server prints goes to `output`: our stdout has one line, for whoever waits
        until we listen.

        Raises:
            UserError: the command has neither placeholder, or cannot be split into words.
        """
        self.command = ServerCommand.parse(command)
        self.starts = 0
        self._output = output
        self._loop = loop
        self._process: subprocess.Popen[bytes] | None = None
        self._is_told = False  # of the end of this one, or it was ended by us
        self._folder: OwnedFolder | None = None
        if socket_path is None:
            self._folder = OwnedFolder("vfu-")
            socket_path = str(self._folder.path / "server")
        self.path = socket_path

    @property
    def pid(self) -> int | None:
        """The process id of the running server."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def fate(self) -> str:
        """The end of the last one, for a sentence."""
        code = self._process.poll() if self._process is not None else None
        if code is None:
            return "is running" if self._process is not None else "was never started"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"

    async def start(self, timeout: float) -> Stream:
        """Start a server and connect to it.

        Raises:
            UserError: it cannot be started, ends before it listens, or does not listen within `timeout` seconds.
        """
        self.starts += 1
        Path(self.path).unlink(missing_ok=True)
        if self.command.inherits:
            return self._start_inheriting()
        arrivals = Watch(Path(self.path).parent)
        try:
            self._spawn(())
            return await self._connected(arrivals, time.monotonic() + timeout)
        finally:
            arrivals.close()

    def signal(self, number: int) -> None:
        """Send the server a signal; nothing where it does not run."""
        if (pid := self.pid) is not None:
            os.kill(pid, number)

    async def ended(self, timeout: float) -> bool:
        """Whether it has ended, or does so within `timeout` seconds."""
        if self._process is None or self._process.poll() is not None:
            return True
        await process_ended(self._loop, self._process.pid, timeout)
        return self._process.poll() is not None

    async def failure(self, timeout: float) -> str:
        """The bad end of the one that is there now, for a sentence, once: where it ends by itself within `timeout`
        seconds, not with 0, and before another one is started; else "".
        """
        process = self._process
        if process is None or not await self.ended(timeout) or process is not self._process:
            return ""
        if self._is_told or process.poll() == 0:
            return ""
        self._is_told = True
        return f"the server {self.fate}: {self.command.text}"

    async def stop(self, timeout: float = STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL to the whole group where that does not help in time."""
        process, self._is_told = self._process, True
        if process is None:
            return
        if process.poll() is None:
            self._signal_group(signal.SIGCONT)
            self._signal_group(signal.SIGTERM)
            await self.ended(timeout)
        self._signal_group(signal.SIGKILL)
        process.wait()

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            self._is_told = True
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """Kill the server, and remove its socket and the folder that was made for it."""
        self.kill()
        if self.starts:
            Path(self.path).unlink(missing_ok=True)
        if self._folder is not None:
            self._folder.close()

    def _start_inheriting(self) -> Stream:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(self.path)
            listening.listen(8)
            self._spawn((listening.fileno(),))
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(self.path)
        except OSError:  # nobody has the other socket any more
            client.close()
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
            raise UserError(f"the server {self.fate} before it took a connection: {self.command.text}") from None
        return Stream(client)

    def _spawn(self, fds: tuple[int, ...]) -> None:
        if self._process is not None:
            self.kill()
        argv = self.command.argv(socket=self.path, fd=fds[0] if fds else "")
        self._process = spawn(argv, output=self._output, pass_fds=fds)
        self._is_told = False

    async def _connected(self, arrivals: Watch, deadline: float) -> Stream:
        """Connect as soon as somebody listens. The path appears with bind, and listen follows at once."""
        with contextlib.ExitStack() as unless_connected:
            client = unless_connected.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)  # where its backlog is full, connect(2) would hold up everybody
            while (missing := client.connect_ex(self.path)) != 0:
                left = deadline - time.monotonic()
                if missing not in (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN) or left <= 0 or self.pid is None:
                    why = "does not listen" if self.pid is not None else self.fate
                    raise UserError(f"the server {why}: {self.command.text}")
                if missing == errno.ENOENT:
                    await self._changed(arrivals, left)
                else:
                    await self._loop.sleep(0.001)
            client.setblocking(True)
            unless_connected.pop_all()
            return Stream(client)

    async def _changed(self, arrivals: Watch, timeout: float) -> None:
        """Wait until a file appears beside the socket, the server ends, or time is up."""
        assert self._process is not None
        changed: Future[None] = Future()
        pidfd = os.pidfd_open(self._process.pid)
        timer = self._loop.after(timeout, lambda: changed.resolve(None))
        self._loop.watch(pidfd, lambda _: changed.resolve(None))
        self._loop.watch(arrivals.fd, lambda _: changed.resolve(None))
        try:
            await changed
        finally:
            timer.cancel()
            self._loop.forget(arrivals.fd)
            self._loop.forget(pidfd)
            os.close(pidfd)
            arrivals.drain()

    def _signal_group(self, number: int) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return


async def process_ended(loop: Loop, pid: int, timeout: float) -> bool:
    """Whether a process has ended, or does so within `timeout` seconds; one that is about to is waited for."""
    over: Future[bool] = Future()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    if is_ending(pid):
        timeout = max(timeout, ENDING_SECONDS)
    timer = loop.after(timeout, lambda: over.resolve(False))
    loop.watch(pidfd, lambda _: over.resolve(True))
    try:
        return await over
    finally:
        timer.cancel()
        loop.forget(pidfd)
        os.close(pidfd)


def is_ending(pid: int) -> bool:
    """Whether a process ends just now: the kernel closes its files a while before anybody is told of its end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()  # its name may end within a character
    except OSError:  # it has ended
        return False
    return bool(int(stat.rpartition(b") ")[2].split()[_FLAGS_AT]) & _PF_EXITING)


def peer_pid(stream: Stream) -> int | None:
    """The process that listens at the other end of a UNIX connection, as of when it began to.

    None for one that has started us: it began to listen for a server that has inherited the socket, and to signal it
    instead would hit the harness.
    """
    if not stream.carries_fds:
        return None
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid if pid and pid not in _ourselves() else None


def _ourselves() -> Iterator[int]:
    """This process, its parent, the parent's parent, and so on."""
    pid = os.getpid()
    while pid > 1:
        yield pid
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        pid = int(stat.rpartition(b")")[2].split()[1])
