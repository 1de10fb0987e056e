"""Runs on another host, at the other end of an SSH connection: starts one program and carries its sockets.

Its source is sent there, and the one function of ours that it imports within it (`relay.agent_source`). On stdin and
stdout it speaks in frames with its near end, relay.py. The program finds the descriptors that it was to inherit under
their numbers; what listens, listens here, at the same path. A program that makes its socket itself is watched until it
listens. When the connection ends the program is ended, with its process group: it is asked to, as an interposer has
made a folder that nobody else knows of, and killed after as many seconds as SPAWN has said (`grace`). So it is when the
near end, which says ALIVE now and then, is silent for `silence` seconds: no kernel tells of a cable that is cut.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from userdev.process.listening import is_listening

HEADER = struct.Struct("<BHI")  # kind, stream, bytes that follow
SPAWN, DATA, CLOSE, OPEN, SIGNAL, EXIT, LOG, STARTED, LISTENING, ALIVE, STOPPED = range(11)
CHUNK = 1 << 16
MOST_WAITING = 64 << 20
"""Bytes for one socket that wait until it takes them, before whatever else comes has to wait as well."""
_HIGH = 256  # own descriptors go above those that the program inherits


class Frames:
    """Frames on a pair of byte streams; any thread may send."""

    def __init__(self, read: Callable[[int], bytes], write: Callable[[bytes], None]) -> None:
        self._read = read
        self._write = write
        self._lock = threading.Lock()

    def send(self, kind: int, stream: int = 0, data: bytes = b"") -> None:
        """Write one frame whole: `kind` is one of SPAWN to STOPPED, `stream` the number that it is about."""
        with self._lock:
            self._write(HEADER.pack(kind, stream, len(data)) + data)

    def receive(self) -> tuple[int, int, bytes]:
        """The next frame.

        Raises:
            EOFError: the connection has ended.
        """
        kind, stream, length = HEADER.unpack(self._exactly(HEADER.size))
        return kind, stream, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = self._read(count - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found


class Sink(Protocol):
    """Where the bytes of a stream go: a socket, or what stands for one."""

    def sendall(self, data: bytes, /) -> None:
        """Take all of it."""

    def shutdown(self, how: int, /) -> None:
        """Nothing more comes."""


class Outgoing:
    """The way to a socket. What that does not take at once a thread of its own writes: who reads nothing, as a program
    that was stopped, keeps neither the signal that is to end it from it nor others from what is theirs.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        """Nothing stands for the end."""
        self._size = 0
        self._writes = False
        """Whether the thread is there."""

    def sendall(self, data: bytes) -> None:
        """Have all of it be written, sooner or later.

        Raises:
            OSError: the socket has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._size < MOST_WAITING)
            if not self._writes:
                with contextlib.suppress(BlockingIOError):
                    data = data[self._end.send(data, socket.MSG_DONTWAIT) :]
            if data:
                self._wait_with(data)

    def shutdown(self, how: int) -> None:
        """End it behind what waits."""
        with self._changed:
            if self._writes:
                self._wait_with(b"")
            else:
                self._end.shutdown(how)

    def flush(self, seconds: float) -> None:
        """Wait until nothing waits, or so long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def _wait_with(self, data: bytes) -> None:
        self._waiting.append(data)
        self._size += len(data)
        if not self._writes:
            self._writes = True
            threading.Thread(target=self._write, daemon=True).start()

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._writes = False
                    return
                data = self._waiting[0]
            with contextlib.suppress(OSError):  # it has ended, and what is for it is dropped
                self._end.sendall(data) if data else self._end.shutdown(socket.SHUT_RDWR)
            with self._changed:
                self._waiting.popleft()
                self._size -= len(data)
                self._changed.notify_all()


class Streams:
    """Sockets whose bytes travel as frames under their number."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._sockets: dict[int, Sink] = {}
        self._pumps: list[threading.Thread] = []
        self._outgoing: list[Outgoing] = []
        """Of the sockets that have a pump."""
        self._lock = threading.Lock()

    def add(self, number: int, end: socket.socket, path: str = "") -> None:
        """Carry what comes from the socket `end` as frames of `number`, by a thread of its own, until it ends.

        With a `path` the other side is told first to connect to it. Its answer may be here at once.
        """
        self._sockets[number] = outgoing = Outgoing(end)
        pump = threading.Thread(target=self._pump, args=(number, end, outgoing, path), daemon=True)
        with self._lock:
            self._pumps.append(pump)
            self._outgoing.append(outgoing)
        pump.start()

    def keep(self, number: int, sink: Sink) -> None:
        """Have frames of `number` go there; nothing comes from it."""
        self._sockets[number] = sink

    def arrived(self, number: int, data: bytes) -> None:
        """Write the bytes of a frame to the socket of that number; bytes for one that has ended are dropped."""
        if (end := self._sockets.get(number)) is not None:
            with contextlib.suppress(OSError):
                end.sendall(data)

    def closed(self, number: int) -> None:
        """The other side's socket has ended."""
        if (end := self._sockets.pop(number, None)) is not None:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def drain(self, seconds: float) -> None:
        """Have what was written last travel before the end does."""
        with self._lock:
            pumps = list(self._pumps)
        for pump in pumps:
            pump.join(seconds)

    def flush(self, seconds: float) -> None:
        """Have what has arrived be with those that it is for, as far as they take it within so many seconds."""
        with self._lock:
            outgoing = list(self._outgoing)
        for way in outgoing:
            way.flush(seconds)

    def _pump(self, number: int, end: socket.socket, outgoing: Outgoing, path: str) -> None:
        with contextlib.suppress(OSError):
            if path:
                self._frames.send(OPEN, number, path.encode())
            while data := end.recv(CHUNK):
                self._frames.send(DATA, number, data)
        with contextlib.suppress(OSError):
            self._frames.send(CLOSE, number)
        end.close()
        with self._lock:  # a socket for each connection that was ever made would be too many
            self._pumps.remove(threading.current_thread())
            self._outgoing.remove(outgoing)


class Folder:
    """A folder of sockets, those of other programs of the same harness as well: the last who holds it removes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                self._descriptor = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _HIGH)
                os.close(opened)
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(self._descriptor), path.stat()):
                        return
                os.close(self._descriptor)  # it was removed before it was held

    def release(self) -> None:
        """Let go of the folder, and remove it if nobody else holds it and nothing is left in it."""
        with contextlib.suppress(OSError):  # somebody else holds it, or has left something in it
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.rmdir()
        os.close(self._descriptor)


class RemoteAgent:
    """One program. `read` and `write` are descriptors."""

    def __init__(self, read: int, write: int) -> None:
        def send(data: bytes) -> None:
            view = memoryview(data)
            while view:
                view = view[os.write(write, view) :]

        def receive(count: int) -> bytes:
            there, _, _ = select.select([read], [], [], self._silence)
            return os.read(read, count) if there else b""

        self._silence: float | None = None
        self._frames = Frames(receive, send)
        self._streams = Streams(self._frames)
        self._sockets: dict[Path, tuple[int, ...]] = {}
        """What was there before the program's own, by place."""
        self._folders: dict[Path, Folder] = {}

    def run(self) -> None:
        """Start the program that the SPAWN frame names, and serve frames until the connection or the program ends."""
        kind, _, data = self._frames.receive()
        assert kind == SPAWN
        wanted = json.loads(data)
        self._silence = wanted.get("silence")
        try:
            program = self._spawn(wanted)
        except OSError as error:
            self._clean_up()
            self._frames.send(LOG, data=f"cannot start {wanted['argv'][0]}: {error.strerror}\n".encode())
            self._frames.send(EXIT, data=b"127")
            return
        self._frames.send(STARTED, data=str(program.pid).encode())
        threading.Thread(target=self._wait, args=(program,), daemon=True).start()
        if wanted.get("socket"):
            threading.Thread(target=self._watch, args=(program, wanted["socket"]), daemon=True).start()
        try:
            self._serve(program)
        except EOFError:
            pass
        finally:
            self._end(program, wanted.get("grace", 0.0))
            self._clean_up()

    def _spawn(self, wanted: dict[str, Any]) -> subprocess.Popen[bytes]:
        inherited = []
        for number in wanted["streams"]:
            ours, theirs = socket.socketpair()
            self._streams.add(number, _high(ours))
            inherited.append((number, _high(theirs)))
        for text, path in wanted["listeners"].items():
            self._will_be_at(Path(path))
            listener = socket.socket(socket.AF_UNIX)
            try:
                listener.bind(path)
            except OSError as error:
                raise OSError(error.errno, f"{path}: {error.strerror}") from None
            listener.listen(8)
            inherited.append((int(text), _high(listener)))
        if path := wanted.get("socket"):
            self._will_be_at(Path(path))
        for number, end in inherited:
            os.dup2(end.fileno(), number, inheritable=True)
            end.close()
        numbers = [number for number, _ in inherited]
        program = subprocess.Popen(
            wanted["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=numbers,
            env={**os.environ, **wanted["environment"]},
            process_group=0,
        )
        for number in numbers:
            os.close(number)
        return program

    def _serve(self, program: subprocess.Popen[bytes]) -> None:
        while True:
            kind, stream, data = self._frames.receive()
            if kind == DATA:
                self._streams.arrived(stream, data)
            elif kind == CLOSE:
                self._streams.closed(stream)
            elif kind == OPEN:
                self._open(stream, data.decode())
            elif kind == SIGNAL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, stream)
                if stream == signal.SIGSTOP and _has_stopped(program.pid):
                    self._frames.send(STOPPED)

    def _end(self, program: subprocess.Popen[bytes], grace: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(grace)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()

    def _open(self, stream: int, path: str) -> None:
        end = socket.socket(socket.AF_UNIX)
        try:
            end.connect(path)
        except OSError:
            end.close()
            self._frames.send(CLOSE, stream)
        else:
            self._streams.add(stream, end)

    def _wait(self, program: subprocess.Popen[bytes]) -> None:
        """Tell when it has ended, behind what it said: what it has started itself may hold its output open for ever."""
        speaker = threading.Thread(target=self._hand_on_output, args=(program,), daemon=True)
        speaker.start()
        code = program.wait()
        speaker.join(1.0)
        self._streams.drain(1.0)
        self._frames.send(EXIT, data=str(code).encode())

    def _hand_on_output(self, program: subprocess.Popen[bytes]) -> None:
        assert program.stdout is not None
        with contextlib.suppress(OSError):  # the connection has ended
            while data := os.read(program.stdout.fileno(), CHUNK):
                self._frames.send(LOG, data=data)

    def _watch(self, program: subprocess.Popen[bytes], path: str) -> None:
        """Tell when the program listens at `path`. The kernel has no event for listen(2)."""
        while program.poll() is None:
            if is_listening(path, program.pid):
                self._frames.send(LISTENING, data=path.encode())
                return
            time.sleep(0.01)

    def _will_be_at(self, path: Path) -> None:
        """There will be a socket, which is to be removed in the end, unless it is one that was there before."""
        if path.parent not in self._folders:
            self._folders[path.parent] = Folder(path.parent)
        self._sockets[path] = _identity(path)

    def _clean_up(self) -> None:
        for path, before in self._sockets.items():
            with contextlib.suppress(OSError):
                if _identity(path) != before:
                    path.unlink()
        for folder in self._folders.values():
            folder.release()


def _has_stopped(program: int) -> bool:
    """Whether it has stopped, and not ended, once it has done either: after the signal alone some threads still run."""
    with contextlib.suppress(ChildProcessError):  # it has ended, and somebody has asked how
        found = os.waitid(os.P_PID, program, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return found is not None and found.si_code == os.CLD_STOPPED
    return False


def _identity(path: Path) -> tuple[int, ...]:
    """What tells a file from another that has its place later; () where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_ctime_ns  # an inode's number may be given again


def _high(end: socket.socket) -> socket.socket:
    """The same socket with a number above those that are inherited."""
    moved = socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH))
    end.close()
    return moved


if __name__ == "__main__":
    RemoteAgent(0, 1).run()
