"""Whether two hosts reach each other, and can be given files, tried before anything is begun: each by what it takes.

QEMU's migration goes to the address of the host that the guest comes to, at a port that the kernel there chooses. So
for each way one host listens at its address, and the other connects.
"""

from __future__ import annotations

import inspect
import shlex
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.hosts.host import Host
from vfio_user.harness.hosts.ssh_connection import status_of

if TYPE_CHECKING:
    import paramiko

_PATIENCE = 10.0
"""Seconds for a connection to be there; a firewall that says nothing is known after them."""


def listener_at(address: str) -> socket.socket:
    """A socket that listens at an address, at a port that the kernel chooses."""
    family, kind, _, _, where = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    try:
        listener.bind(where)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


class End(Protocol):
    """A host of a trial."""

    @property
    def name(self) -> str:
        """Its name for people."""

    def listening(self, address: str) -> Any:
        """Listen at an address, in a context manager that yields the port.

        Raises:
            OSError: that is not possible.
        """

    def connect(self, address: str, port: int) -> None:
        """Connect to somebody who listens.

        Raises:
            OSError: that is not possible.
        """


class Here:
    """This machine."""

    name = "local"

    @contextmanager
    def listening(self, address: str) -> Iterator[int]:
        """See `End.listening`."""
        with listener_at(address) as listener:
            yield listener.getsockname()[1]

    def connect(self, address: str, port: int) -> None:
        """See `End.connect`."""
        socket.create_connection((address, port), _PATIENCE).close()


_LISTEN = f"""
import socket, sys
{inspect.getsource(listener_at)}
try:
    listener = listener_at(sys.argv[1])
except OSError as error:
    sys.exit(error.strerror or str(error))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
_CONNECT = f"""
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), {_PATIENCE}).close()
except OSError as error:
    sys.exit(error.strerror or str(error))
"""


@dataclass(frozen=True)
class There:
    """A host that is reached by SSH; `where` as `connected` takes it."""

    client: paramiko.SSHClient
    where: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name for people."""
        return str(self.where["host"])

    @contextmanager
    def listening(self, address: str) -> Iterator[int]:
        """See `End.listening`: until its connection is closed."""
        stdin, stdout, stderr = self._run(_LISTEN, address)
        try:
            if not (port := stdout.readline().strip()):
                raise OSError(stderr.read().decode(errors="replace").strip())
            yield int(port)
        finally:
            stdin.channel.close()

    def connect(self, address: str, port: int) -> None:
        """See `End.connect`."""
        _, stdout, stderr = self._run(_CONNECT, address, str(port))
        if status_of(stdout.channel):
            raise OSError(stderr.read().decode(errors="replace").strip())

    def _run(self, program: str, *arguments: str) -> tuple[Any, Any, Any]:
        argv = [self.where["python"], "-I", "-S", "-c", program, *arguments]
        return self.client.exec_command(shlex.join(argv))


def try_address(host: Host, end: End, other: End) -> None:
    """Have `end`, which is `host`, listen at its address, and the other connect to it.

    Raises:
        UserError: it cannot, or is not reached there.
    """
    how = f"`address=` behind {end.name} says at which address of its own the other host reaches it"
    connecting = False
    try:
        with end.listening(host.address) as port:
            connecting = True
            other.connect(host.address, port)
    except OSError as error:
        why = error.strerror or str(error)
        if connecting:
            what = f"{other.name} does not reach {end.name} at {host.address}, where QEMU would send the guest: {why}"
            how += "; QEMU's migration needs a port there that the kernel chooses"
        else:
            what = f"{end.name} cannot listen at {host.address}, where the guest would come to it: {why}"
        raise UserError(what, hint=how) from error


_WRITABLE = """
path={path}
while ! test -e "$path"; do path=$(dirname "$path"); done
test "$path" = {path} || test -w "$path" || { echo "$path"; exit 1; }
"""


def require_place(client: paramiko.SSHClient, where: Mapping[str, Any]) -> None:
    """See to it that the user there can make the cache's folder, in which QEMUs, images and checkpoints are put.

    One that is there may have it all already; what cannot be written into it is told by `put`.

    Raises:
        UserError: it is not there, and nobody can make it.
    """
    cache = cache_dir()
    script = _WRITABLE.replace("{path}", shlex.quote(str(cache)))
    _, stdout, _ = client.exec_command(f"sh -c {shlex.quote(script)}")
    nearest = stdout.read().decode(errors="replace").strip()
    if status_of(stdout.channel):
        user = where["user"] or "its user"
        what = f"{where['host']}: {cache}, where QEMU and images are put as they are here, cannot be made there"
        raise UserError(f"{what}: {user} may not write {nearest}", hint=WRITE_BOTH)


WRITE_BOTH = "VFIO_USER_CACHE=FOLDER has them in one that both may write, at the same path: made there once, by `mkdir`"


def ends_of(client: paramiko.SSHClient) -> tuple[str, str]:
    """The addresses of the two ends of a connection: this machine's, and the host's."""
    transport = client.get_transport()
    assert transport is not None
    assert isinstance(transport.sock, socket.socket)
    return str(transport.sock.getsockname()[0]), str(transport.sock.getpeername()[0])
