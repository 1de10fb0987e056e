"""A host that is reached by SSH: QEMU, servers and interposers run there, their sockets come here.

There has to be an SSH server, and a Python with this package. QEMU and images are put where they are here when they are
missing there; nothing else is installed.
"""

from __future__ import annotations

import json
import posixpath
import signal
import socket
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from userdev.errors import UserError
from vfio_user.harness.deadline import Deadline
from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.process import Child

if TYPE_CHECKING:
    import paramiko

_CONNECTING = 20.0
_STARTING = 60.0
_PROVIDING = 3600.0


@dataclass(frozen=True)
class SshHost:
    """`host`, `port` and `user` are those of its SSH server, `address` is where the other host's QEMU reaches this one.

    `key` is a private key, `known_hosts` a file with the server's public one; without them the user's own are used.
    `python` runs this package there. `through` is the host from which the SSH server is reached.
    """

    name: str
    host: str
    address: str
    port: int = 22
    user: str = ""
    key: str = ""
    known_hosts: str = ""
    python: str = sys.executable
    through: Host = field(default_factory=LocalHost)

    shares_memory = False
    kill_signal = signal.SIGUSR1

    @classmethod
    def parse(cls, name: str, url: str) -> SshHost:
        """From ssh://user@host:port?address=...&key=...&known_hosts=...&python=... Raises `UserError`."""
        parts = urlsplit(url)
        options: dict[str, Any] = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        known = {"address", "key", "known_hosts", "python"}
        if parts.scheme != "ssh" or not parts.hostname or options.keys() - known:
            raise UserError(f"{url!r} is no host", hint=f"ssh://USER@HOST:PORT?OPTION=VALUE; options: {sorted(known)}")
        options.setdefault("address", parts.hostname)
        return cls(name, parts.hostname, port=parts.port or 22, user=parts.username or "", **options)

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        options = ("--socket", str(socket)) if socket else ()
        where = json.dumps(self.where())
        return self.through.command(
            [sys.executable, "-m", "vfio_user.harness.hosts.relay", where, *options, "--", *argv]
        )

    def where(self) -> dict[str, Any]:
        """What `connected` and the relay need to know."""
        return {
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "key": self.key,
            "known_hosts": self.known_hosts,
            "python": self.python,
        }

    def await_start(self, child: Child) -> None:
        """Wait until the program runs there: its sockets listen then. Raises `UserError`."""
        from vfio_user.harness.hosts.relay import STARTED_LINE

        deadline = Deadline(_STARTING)
        while STARTED_LINE not in child.log.read_bytes():
            if child.wait(0.02) is not None or deadline.passed:
                raise UserError(f"{child.name} did not start on {self.name}", hint=child.last_words())

    def listens(self, child: Child, socket: Path) -> bool:
        from vfio_user.harness.hosts.relay import LISTENING_LINE

        return LISTENING_LINE in child.log.read_bytes()

    def provide(self, *paths: Path) -> None:
        """Have files and folders there, at the same paths. Those that are there in the same size stay as they are."""
        command = [sys.executable, "-m", "vfio_user.harness.hosts.ssh", json.dumps(self.where()), *map(str, paths)]
        with NamedTemporaryFile(prefix="vfio-user-provide-", suffix=".log") as log:
            child = Child(f"provide {self.name}", self.through.command(command), log=Path(log.name))
            if child.wait(_PROVIDING) != 0:
                raise UserError(f"files could not be put on {self.name}", hint=child.last_words())
            child.stop()


def connected(where: Mapping[str, Any]) -> paramiko.SSHClient:
    """A connection. Raises `UserError`."""
    import paramiko

    client = paramiko.SSHClient()
    if where["known_hosts"]:
        client.load_host_keys(where["known_hosts"])
    else:
        client.load_system_host_keys()
    try:
        client.connect(
            where["host"],
            port=where["port"],
            username=where["user"] or None,
            key_filename=where["key"] or None,
            allow_agent=not where["key"],
            look_for_keys=not where["key"],
            timeout=_CONNECTING,
        )
    except (paramiko.SSHException, OSError) as error:
        raise UserError(f"no SSH connection to {where['host']}:{where['port']}: {error}") from error
    transport = client.get_transport()
    assert transport is not None
    assert isinstance(transport.sock, socket.socket)
    transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small questions, each waited for
    return client


def put(client: paramiko.SSHClient, path: Path) -> bool:
    """Have a file or a folder there as it is here; returns whether it was sent."""
    listing = f"find -H {_quoted(path)} -not -type d -printf '%s %P\\n' 2>/dev/null"
    _, there, _ = client.exec_command(listing)
    if sorted(there.read().decode().splitlines()) == sorted(_listing(path)):
        return False
    stdin, stdout, stderr = client.exec_command(
        f"mkdir -p {_quoted(path.parent)} && tar -x -f - -C {_quoted(path.parent)}"
    )
    with tarfile.open(fileobj=stdin, mode="w|") as archive:
        archive.add(path.resolve(), path.name)
    stdin.channel.shutdown_write()
    if stdout.channel.recv_exit_status() != 0:
        raise UserError(f"{path} could not be written there", hint=stderr.read().decode().strip())
    return True


def _listing(path: Path) -> list[str]:
    """Size and name of each file and symbolic link; these are not followed, as they are sent as what they are."""
    if path.is_file():
        return [f"{path.stat().st_size} "]
    found = (file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
    return [f"{file.lstat().st_size} {posixpath.relpath(file, path)}" for file in found]


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))


if __name__ == "__main__":
    connection = connected(json.loads(sys.argv[1]))
    for name in sys.argv[2:]:
        put(connection, Path(name))
