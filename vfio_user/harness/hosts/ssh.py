"""A host that is reached by SSH: QEMU, servers and interposers run there, their sockets come here.

There has to be an SSH server, and a Python with this package. QEMU and images are put where they are here when they are
missing there; nothing else is installed.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from userdev.errors import UserError, meant
from userdev.process import Child, Deadline, await_text
from vfio_user.harness.hosts.host import Host, HostFailure, LocalHost
from vfio_user.harness.hosts.relayed import LISTENING_LINE, STARTED_LINE
from vfio_user.harness.hosts.ssh_connection import connected, require_other_files, require_package
from vfio_user.harness.hosts.trial import WRITE_BOTH, There, require_place

_START_SECONDS = 60.0
_PROVIDE_SECONDS = 3600.0
OPTIONS = ("address", "key", "known_hosts", "python")
_FILES = frozenset({"key", "known_hosts"})


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
    pause_signal = signal.SIGUSR2

    @classmethod
    def parse(cls, name: str, url: str) -> SshHost:
        """Parse ssh://user@host:port?address=...&key=...&known_hosts=...&python=...

        Raises:
            UserError: it is no such address, or has something else in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _no_host(url, str(error)) from None
        if parts.scheme != "ssh" or not parts.hostname or parts.path.strip("/"):
            raise _no_host(url)
        if parts.password is not None:
            raise _no_host(url.replace(f":{parts.password}@", ":...@"), "it has a password, and keys are what is used")
        options: dict[str, Any] = options_of(url, parts.query, OPTIONS)
        for option in _FILES & options.keys():
            options[option] = str(Path(options[option]).expanduser())
        options.setdefault("address", parts.hostname)
        return cls(name, parts.hostname, port=port or 22, user=parts.username or "", **options)

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        """The command of a relay here (relay.py) that starts `argv` there and stands for it."""
        options = ("--socket", str(socket)) if socket else ()
        where = json.dumps(self.where())
        return self.through.command(
            [sys.executable, "-P", "-m", "vfio_user.harness.hosts.relay", where, *options, "--", *argv]
        )

    def where(self) -> dict[str, Any]:
        """The facts that `connected` and the relay need, as plain values."""
        return {
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "key": self.key,
            "known_hosts": self.known_hosts,
            "python": self.python,
        }

    @contextmanager
    def reached(self) -> Iterator[There]:
        """Connect to its SSH server once, from here, and see that it is another machine, whose Python has this package
        and whose user can be given files; the connection is there in the block.

        Raises:
            UserError: that does not work, and why.
        """
        with closing(connected(self.where())) as client:
            require_package(client, self.where())
            require_other_files(client, self.where())
            require_place(client, self.where())
            yield There(client, self.where())

    def await_start(self, child: Child) -> None:
        """Wait until the program runs there: its sockets listen then.

        Raises:
            UserError: it ends before, or the host is not reached in time.
        """
        if not await_text(child, STARTED_LINE, _START_SECONDS):
            raise UserError(f"{child.name} did not start on {self.name}", evidence=child.last_words())

    def await_listening(self, child: Child, socket: Path, deadline: Deadline) -> bool:
        """Wait for the line with which the relay tells that; False when it ends before, or the time."""
        return await_text(child, LISTENING_LINE, deadline)

    def provide(self, *paths: Path) -> None:
        """Have files and folders there, at the same paths. Those that are there in the same size stay as they are.

        Raises:
            HostFailure: they cannot be written there, or it is not reached any more.
        """
        if why := self._refusal(_PROVIDE_SECONDS, *paths):
            raise HostFailure(f"files could not be put on {self.name}: {why}", hint=WRITE_BOTH)

    def unanswered(self) -> str:
        """Why it is not reached now, by another connection than there are; "" where it answers. Takes `connected`'s
        time where nobody says anything.
        """
        return self._refusal(_START_SECONDS)

    def _refusal(self, seconds: float, *paths: Path) -> str:
        """Why no connection is made by which files are put there within so many seconds; "" where it was, and they."""
        command = [
            sys.executable,
            "-P",
            "-c",  # -m would warn in the log that it was imported before
            "from vfio_user.harness.hosts.ssh_connection import main; main()",
            json.dumps(self.where()),
            *map(str, paths),
        ]
        with NamedTemporaryFile(prefix="vfio-user-provide-", suffix=".log") as log:
            child = Child(f"provide {self.name}", self.through.command(command), log=Path(log.name))
            try:
                if child.wait(seconds) == 0:
                    return ""
                return ": ".join(line.strip() for line in child.last_words().splitlines())
            finally:
                child.stop()


def options_of(text: str, query: str, known: Sequence[str]) -> dict[str, str]:
    """The options behind the ? of a host.

    Raises:
        UserError: one that there is not, or without a value.
    """
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option, value in options.items():
        if option not in known:
            raise _no_host(text, f"there is no option {option!r}", meant(option, known), known)
        if not value:
            raise _no_host(text, f"{option} has no value", known=known)
    return options


def _no_host(url: str, why: str = "", meant: str = "", known: Sequence[str] = OPTIONS) -> UserError:
    what = f"{url!r} is no host" + (f": {why}" if why else "")
    form = "ssh://USER@HOST:PORT" if known is OPTIONS else url.partition("?")[0]
    return UserError(what, hint=f"{meant}{form}?OPTION=VALUE; options: {', '.join(known)}")
