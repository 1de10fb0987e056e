"""The ordinary way into a guest: SSH over the forwarded port, with the image's own keys and no others."""

from __future__ import annotations

import io
import logging
import os
import secrets
import shlex
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paramiko

from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.guest import OUTPUT_LIMIT, Command, Guest, GuestLost, Job, Result, as_line, encode, outcome_of
from vfio_user.harness.hosts.ssh_connection import why_lost
from vfio_user.harness.troubles import Look, Wait, nothing_wrong

logging.getLogger("paramiko").addHandler(logging.NullHandler())

_AGENT = "/opt/vfio-user/agent.py"
_USER = "root"
_FAILURES = (paramiko.SSHException, OSError, EOFError)
_NO_STATUS = -1  # paramiko's for a command that a signal ended, and for one of which nothing more was heard
_AT_ONCE = 64  # pieces of output that are taken before anything else is looked at
_CAUSE_SECONDS = 1.0  # seconds between the end of a connection and that of its process


class SshGuest(Guest):
    """A guest behind its SSH server.

    `host_key` is the line of an OpenSSH public key (type and base64): another one is refused. `connection` replaces
    the TCP connection to `port`, as for a guest in another network namespace. `check` is asked again and again while
    a command runs, and when the connection ends, with the seconds that the cause may take to show: it raises that if
    it knows one.

    Raises:
        GuestLost: it is not reached.
    """

    def __init__(
        self,
        port: int,
        key: Path,
        host_key: str,
        *,
        address: str = "127.0.0.1",
        connection: socket.socket | None = None,
        patience: float = 1.0,
        console: Callable[[], str] = str,
        check: Callable[[float], None] = lambda _seconds: None,
        look: Look = nothing_wrong,
        limit: float = 30.0,
    ) -> None:
        super().__init__(patience=patience, console=console, look=look)
        self.check = check
        kind, blob = host_key.split()[:2]
        self._client = paramiko.SSHClient()
        name = address if port == 22 else f"[{address}]:{port}"
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"{name} {kind} {blob}")
        if entry is None or entry.key is None:
            raise GuestLost(f"the guest image's host key is of no known kind: {kind}")
        self._client.get_host_keys().add(name, kind, entry.key)
        self._client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            self._client.connect(
                address,
                port,
                username=_USER,
                pkey=paramiko.PKey.from_path(key),
                sock=connection,
                timeout=limit * patience,
                banner_timeout=limit * patience,
                auth_timeout=limit * patience,
                allow_agent=False,
                look_for_keys=False,
            )
        except _FAILURES as error:
            self._client.close()
            check(_CAUSE_SECONDS)
            raise GuestLost(
                f"no SSH connection to the guest at {address}:{port}: {why_lost(error)}", evidence=console()
            ) from error

    def start(self, command: Command, timeout: float = 60.0) -> Job:
        """Start a command in a session of its own (setsid), whose process group `Job.kill` reaches.

        Raises:
            UserError: there is a zero byte in it.
            GuestLost: the connection is closed, or fails now.
        """
        line = as_line(command)
        if "\0" in line:
            raise UserError(f"the command {line!r} cannot be run: it has a zero byte, where it would end")
        transport = self._client.get_transport()
        self.check(0.0 if self.is_connected else _CAUSE_SECONDS)
        if transport is None or not self.is_connected:
            raise GuestLost("the SSH connection to the guest is closed", evidence=self._console())
        with self._reached():
            channel = transport.open_session(timeout=30 * self.patience)
            # The shell tells its process number, which is also its group's, on the first line of stderr.
            whole = f"setsid sh -c 'echo $$ >&2; exec \"$@\"' - sh -c {shlex.quote(line)}"
            channel.exec_command(os.fsencode(whole))  # a file's name may be no UTF-8
        return _SshJob(self, command, channel, self.waiting(timeout))

    def put(self, source: Path | bytes, target: str, mode: int = 0o644) -> None:
        """Write a file of the guest by SFTP.

        Raises:
            OSError: `source` cannot be read, or the guest refuses.
            GuestLost: the connection fails.
        """
        data = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        with data, self._reached(), self._client.open_sftp() as sftp:
            sftp.putfo(data, target)
            sftp.chmod(target, mode)

    def get(self, source: str) -> bytes:
        """Read a file of the guest by SFTP, whole.

        Raises:
            OSError: the guest refuses.
            GuestLost: the connection fails.
        """
        data = io.BytesIO()
        with self._reached(), self._client.open_sftp() as sftp:
            sftp.getfo(source, data)
        return data.getvalue()

    def invoke(self, request: Mapping[str, object], timeout: float) -> dict[str, Any]:
        """Do one `call` (see `shipped`) by the agent's program, with files for request and answer.

        Raises:
            GuestFailure: the function's process ended without a result.
            GuestLost: the connection fails.
        """
        base = f"/tmp/call-{secrets.token_hex(6)}"
        self.put(encode(request).encode(), f"{base}.request")
        try:
            result = self.run(["python3", _AGENT, "--call", f"{base}.request", f"{base}.answer"], timeout)
            if not result.ok:
                raise self._failure(f"in the guest, {request['function']}() ended without a result", result)
            answer = outcome_of(request["function"], self.get(f"{base}.answer"))
        finally:
            self.run(f"rm -f {base}.*")
        return answer

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """A block that needs the connection.

        Raises:
            GuestLost: the connection ended, where nothing knows the cause.
        """
        try:
            yield
        except _FAILURES as error:
            if isinstance(error, OSError) and self.is_connected:
                raise  # about a file
            self.check(_CAUSE_SECONDS)
            raise GuestLost(f"the SSH connection to the guest failed: {error}", evidence=self._console()) from error

    @property
    def is_connected(self) -> bool:
        """Whether the SSH transport is up, as far as this end knows."""
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def close(self) -> None:
        """Close the connection and wait up to 5 s for its thread."""
        transport = self._client.get_transport()
        self._client.close()
        if transport is not None:
            transport.join(5)


class _SshJob(Job):
    def __init__(self, guest: SshGuest, command: Command, channel: paramiko.Channel, own: Wait) -> None:
        self._guest = guest
        self._command = command
        self._channel = channel
        self._began = time.monotonic()
        self._own = own
        self._group = 0
        self._stdout = bytearray()
        self._stderr = bytearray()

    def wait(self, limit: float | Deadline | None = None) -> Result:
        wait = self._own if limit is None else self._guest.waiting_until(limit)
        self._collect(wait)
        if not self._channel.exit_status_ready():
            if not self._own.has_passed:
                raise GuestLost.after(wait, f"{as_line(self._command)!r} did not end")
            self.kill(signal.SIGKILL)
            return self._result(-signal.SIGKILL, timed_out=True)
        code = self._channel.recv_exit_status()
        self._drain()
        self._channel.close()
        if code == _NO_STATUS and not self._guest.is_connected:
            self._guest.check(_CAUSE_SECONDS)
            raise GuestLost(f"the SSH connection to the guest ended while it was at {as_line(self._command)!r}")
        return self._result(_exit_code(code))

    def kill(self, number: int = 15) -> None:
        self._collect(self._guest.waiting(5.0), until_group=True)
        if self._group:
            self._guest.start(f"kill -{int(number)} -{self._group}", 10).wait()

    def _collect(self, wait: Wait, *, until_group: bool = False) -> None:
        """Take output until the command ends, or its process group is known."""
        while (left := wait.remaining) and not self._channel.exit_status_ready():
            self._guest.check(0.0)
            self._channel.settimeout(min(0.05, left))
            self._drain()
            if until_group and self._group:
                return
            self._channel.status_event.wait(min(0.02, left))
        self._drain()

    def _drain(self) -> None:
        """Take what is there, as far as it is kept: more may come for ever."""
        for _ in range(_AT_ONCE):
            if self._channel.recv_ready():
                self._stdout += self._channel.recv(1 << 16)[: max(0, OUTPUT_LIMIT - len(self._stdout))]
            elif self._channel.recv_stderr_ready():
                self._stderr += self._channel.recv_stderr(1 << 16)[: max(0, OUTPUT_LIMIT - len(self._stderr))]
            else:
                break
        if not self._group and b"\n" in self._stderr:
            first, _, rest = self._stderr.partition(b"\n")
            if first.isdigit():
                self._group, self._stderr = int(first), bytearray(rest)

    def _result(self, code: int, *, timed_out: bool = False) -> Result:
        return Result(
            command=self._command,
            exit_code=code,
            stdout=self._stdout.decode(errors="replace"),
            stderr=self._stderr.decode(errors="replace"),
            seconds=time.monotonic() - self._began,
            timed_out=timed_out,
            raw=(bytes(self._stdout), bytes(self._stderr)),
        )


def _exit_code(status: int) -> int:
    """A command's exit code, negative for a signal: a shell says 128 + n for signal n.

    Dropbear says -1, and sends the signal's name, which paramiko drops.
    """
    return 128 - status if 128 < status < 128 + signal.NSIG else status
