"""A connection to the SSH server of a host, and files that are put there.

`main` puts files and folders there, as a program that can be run on the host from which the server is reached.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
import shlex
import socket
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

from userdev.errors import UserError
from vfio_user.harness.hosts.relayed import NEVER_WAS

if TYPE_CHECKING:
    import paramiko

_CONNECT_SECONDS = 20.0
_IMPORT_SECONDS = 60.0
_SILENCE = {socket.TCP_KEEPIDLE: 20, socket.TCP_KEEPINTVL: 10, socket.TCP_USER_TIMEOUT: 60_000}
"""A host whose kernel says nothing for a minute has gone; TCP by itself would wait for a quarter of an hour."""


def connected(where: Mapping[str, Any]) -> paramiko.SSHClient:
    """An SSH connection to a host.

    Raises:
        UserError: it is not reached, or refuses us, or the keys that it is known by cannot be read.
    """
    import paramiko

    for name in ("key", "known_hosts"):
        if where[name] and not Path(where[name]).exists():
            raise UserError(f"{name} of {where['host']}: there is no file {where[name]}")

    if not (told := logging.getLogger("paramiko")).handlers:  # or its threads' tracebacks are on the terminal
        told.addHandler(logging.NullHandler())
    client = paramiko.SSHClient()
    try:
        if where["known_hosts"]:
            client.load_host_keys(where["known_hosts"])
        else:
            client.load_system_host_keys()
        client.connect(
            where["host"],
            port=where["port"],
            username=where["user"] or None,
            key_filename=where["key"] or None,
            allow_agent=not where["key"],
            look_for_keys=not where["key"],
            timeout=_CONNECT_SECONDS,
        )
    except (paramiko.SSHException, OSError, ValueError) as error:  # ValueError: the key is none
        client.close()
        what = f"{NEVER_WAS}{where['host']}:{where['port']}: {why_lost(error)}"
        raise UserError(what, hint=f"does `ssh -p {where['port']} {_login(where)}` reach it?") from error
    transport = client.get_transport()
    assert transport is not None
    assert isinstance(transport.sock, socket.socket)
    transport.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _SILENCE.items():
        transport.sock.setsockopt(socket.IPPROTO_TCP, option, value)
    transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small questions, each waited for
    return client


def require_package(client: paramiko.SSHClient, where: Mapping[str, Any]) -> None:
    """See to it that the Python there has this package, by which servers, relays and interposers run there.

    Raises:
        UserError: it has not, or there is no such program.
    """
    python, host = where["python"], where["host"]
    asked = f"{shlex.quote(python)} -c 'import vfio_user.cli'"
    _, stdout, stderr = client.exec_command(asked, timeout=_IMPORT_SECONDS)
    try:
        said = stderr.read().decode(errors="replace").strip()
        status = status_of(stdout.channel)
    except OSError:  # nothing is said for so long
        said, status = "no answer", -1
    if status:
        last = said.rpartition("\n")[2]
        lacks = "is no program there" if status in (126, 127) else f"has not this package: {last}"
        hint = "`pip install '/path/to/vfio-user[harness]'` there, and say python=ITS-PYTHON behind the host"
        raise UserError(f"{host}: {python} {lacks}", hint=hint)


def require_other_files(client: paramiko.SSHClient, where: Mapping[str, Any]) -> None:
    """See to it that the host is not this machine: sockets have the same paths on both, of which it has one each.

    Raises:
        UserError: it is.
    """
    with NamedTemporaryFile(prefix="vfio-user-here-") as ours:
        _, stdout, _ = client.exec_command(f"test -e {shlex.quote(ours.name)}", timeout=_IMPORT_SECONDS)
        try:
            status = status_of(stdout.channel)
        except TimeoutError as error:
            raise UserError(f"{where['host']}: {error}", hint="does a program run there at all?") from error
        if status == 0:
            what = f"{where['host']}:{where['port']} leads to this very machine, or to one that has its files"
            raise UserError(what, hint="--hosts ssh tries SSH on one machine, in two namespaces of it")


def status_of(channel: paramiko.Channel) -> int:
    """The exit status of a program that takes a moment; paramiko by itself would wait for ever.

    Raises:
        TimeoutError: it has none in time, as one that hangs on a file system which does not answer.
    """
    if not channel.status_event.wait(_IMPORT_SECONDS):
        raise TimeoutError(f"no answer in {_IMPORT_SECONDS:g} s")
    return channel.recv_exit_status()


def why_lost(error: Exception) -> str:
    """What an error of a connection says to people: without its number, and of several addresses' that of the first."""
    each: dict[object, Exception] = getattr(error, "errors", {})  # paramiko's NoValidConnectionsError has them
    first = next(iter(each.values()), error)
    return getattr(first, "strerror", None) or str(first) or type(first).__name__


_PUT = """
set -e
mkdir -p {parent}
made=$(mktemp -d {parent}/.put.XXXXXX)
trap 'rm -rf "$made"' EXIT
mkdir "$made/new"
tar -x -f - -C "$made/new"
if test -d {path}; then mv -T {path} "$made/old"; fi
mv -T "$made/new/"{name} {path}
"""
"""What is there is replaced when all of the new has arrived: nothing of either is among the other."""


def put(client: paramiko.SSHClient, path: Path) -> bool:
    """Have a file or a folder there as it is here; returns whether it was sent.

    What is there with the names, sizes and times of here is taken for the same.

    Raises:
        UserError: it cannot be written there.
    """
    listing = f"find -H {_quoted(path)} -not -type d -printf '%s %T@ %P\\n' 2>/dev/null"
    _, there, _ = client.exec_command(listing)
    if sorted(map(_to_the_second, there.read().decode(errors="surrogateescape").splitlines())) == sorted(
        _listing(path)
    ):
        return False
    parent, name = _quoted(path.parent), shlex.quote(path.name)
    script = _PUT.format(parent=parent, name=name, path=_quoted(path))
    stdin, stdout, stderr = client.exec_command(f"sh -c {shlex.quote(script)}")  # whatever shell its user has
    try:
        with tarfile.open(fileobj=stdin, mode="w|") as archive:
            archive.add(path.resolve(), path.name)
        stdin.channel.shutdown_write()
        arrived = stdout.channel.recv_exit_status() == 0
    except OSError:  # who was to unpack it has ended, and says why
        arrived = False
    if not arrived:
        raise UserError(f"{path} could not be written there", hint=stderr.read().decode(errors="replace").strip())
    return True


def _listing(path: Path) -> list[str]:
    """Size, time and name of each file and symbolic link; these are not followed, as they are sent as what they are."""
    if path.is_file():
        return [_line(path.stat(), "")]
    found = (file for file in path.rglob("*") if file.is_symlink() or not file.is_dir())
    return [_line(file.lstat(), posixpath.relpath(file, path)) for file in found]


def _line(about: os.stat_result, name: str) -> str:
    return f"{about.st_size} {int(about.st_mtime)} {name}"


def _to_the_second(line: str) -> str:
    """A line of find's with its time as an archive is sure to have it."""
    size, when, name = line.split(" ", 2)
    return f"{size} {when.partition('.')[0]} {name}"


def _login(where: Mapping[str, Any]) -> str:
    return f"{where['user']}@{where['host']}" if where["user"] else str(where["host"])


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def main() -> None:
    """Put the files and folders that the command line names behind its first word, which is `where` in JSON."""
    try:
        connection = connected(json.loads(sys.argv[1]))
        for name in sys.argv[2:]:
            put(connection, Path(name))
    except UserError as refused:
        sys.exit("\n".join(filter(None, (str(refused), refused.hint))))
