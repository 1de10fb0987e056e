"""Archives that are put on a host once and unpacked there when their digest is right.

    python -m vfio_user.harness.hosts.archives WHERE ARCHIVE DIGEST FOLDER TARGET

does it, as a program that can be run on the host from which the SSH server is reached. FOLDER remembers which ones
are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from userdev.errors import UserError
from vfio_user.harness.hosts.ssh_connection import connected

if TYPE_CHECKING:
    import paramiko

_PUT = """
set -e
mkdir -p {folder}/stored {target}
part={folder}/stored/{digest}.$$
trap 'rm -f "$part"' EXIT
cat > "$part"
echo "{digest}  $part" | sha256sum -c --quiet
tar -x -C {target} -f "$part"
: > {folder}/stored/{digest}
"""


class Member(NamedTuple):
    """A file, folder or symbolic link of an archive, and its path in there; of a folder `whole`, or the folder only."""

    path: Path
    name: str
    whole: bool = True


@dataclass(frozen=True)
class Archive:
    """A tar file. The same content gives the same `digest` (SHA-256) anywhere."""

    path: Path
    digest: str

    @property
    def mib(self) -> int:
        """Its size in MiB."""
        return self.path.stat().st_size >> 20


def make_archive(path: Path, members: Iterable[Member], *, follow: bool = False) -> Archive:
    """Write an archive of these, each once, without what Python has compiled; `follow` has files for links."""
    seen = set()

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if entry.name in seen or "__pycache__" in entry.name.split("/"):
            return None
        seen.add(entry.name)
        entry.mtime = entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, dereference=follow) as archive:
        for member in members:
            archive.add(member.path, member.name, recursive=member.whole, filter=plain)
    with path.open("rb") as file:
        return Archive(path, hashlib.file_digest(file, "sha256").hexdigest())


def put_archive(client: paramiko.SSHClient, archive: Archive, folder: str, target: str) -> bool:
    """Have an archive unpacked in `target` there; returns whether it was sent.

    Raises:
        UserError: it did not arrive as it is, or there is no space.
    """
    there = client.exec_command(f"test -e {shlex.quote(folder)}/stored/{archive.digest}")[1]
    if there.channel.recv_exit_status() == 0:
        return False
    script = _PUT.format(folder=shlex.quote(folder), target=shlex.quote(target), digest=archive.digest)
    stdin, stdout, stderr = client.exec_command(script)
    with archive.path.open("rb") as file:
        try:
            shutil.copyfileobj(file, stdin, 1 << 18)
        except OSError as error:
            raise UserError(f"{folder} could not be written", hint=stderr.read().decode().strip()) from error
    stdin.channel.shutdown_write()
    if stdout.channel.recv_exit_status() != 0:
        raise UserError(f"{folder} could not be written", hint=stderr.read().decode().strip())
    return True


def main(where: str, path: str, digest: str, folder: str, target: str) -> None:
    """Put one, and say in JSON whether it was sent; what is wrong is said, too, with status 1."""
    try:
        sent = put_archive(connected(json.loads(where)), Archive(Path(path), digest), folder, target)
    except UserError as error:
        print(f"{error}: {error.hint}" if error.hint else str(error), flush=True)
        os._exit(1)
    print(json.dumps(sent), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
