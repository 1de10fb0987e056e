"""Two hosts to migrate between, as they are chosen on a command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from userdev.errors import UserError, meant
from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.hosts.namespace import Cable, can_make_namespaces, joined_namespaces
from vfio_user.harness.hosts.ssh import SshHost


@dataclass(frozen=True)
class Pair:
    """`note` says what a reader of results has to know about these hosts; `cable` joins them where it is virtual."""

    a: Host
    b: Host
    note: str = ""
    cable: Cable | None = None

    def other(self, host: Host) -> Host:
        """The host at the other end from `host`, which is told by its name."""
        return self.b if host.name == self.a.name else self.a


@contextmanager
def namespaces() -> Iterator[Pair]:
    """Two network namespaces of this machine, joined by a virtual cable."""
    with joined_namespaces() as (a, b, cable):
        yield Pair(a, b, cable=cable)


@contextmanager
def loopback() -> Iterator[Pair]:
    """Two loopback addresses of this machine."""
    yield Pair(LocalHost("a", "127.0.0.1"), LocalHost("b", "127.0.0.2"))


@contextmanager
def best() -> Iterator[Pair]:
    """Namespaces where they can be made, else loopback addresses, and a note that says so."""
    if can_make_namespaces():
        with namespaces() as pair:
            yield pair
    else:
        with loopback() as pair:
            yield Pair(pair.a, pair.b, "both hosts are this machine's loopback: network namespaces need root")


@contextmanager
def by_ssh() -> Iterator[Pair]:
    """Two network namespaces of this machine, each reached through an SSH server of its own."""
    from vfio_user.harness.hosts.sshd import ssh_namespaces

    with ssh_namespaces() as (a, b, cable):
        yield Pair(a, b, cable=cable)


@contextmanager
def named(first: str, second: str) -> Iterator[Pair]:
    """Hosts that are there: "local", or what `SshHost.parse` takes, which is reached before anything is begun."""
    a, b = (LocalHost(n) if text == "local" else SshHost.parse(n, text) for n, text in (("a", first), ("b", second)))
    for host in (a, b):
        if isinstance(host, SshHost):
            host.reach()
    yield Pair(a, b)


KINDS: Mapping[str, Callable[[], AbstractContextManager[Pair]]] = MappingProxyType(
    {"auto": best, "namespaces": namespaces, "local": loopback, "ssh": by_ssh}
)


def two_hosts(kind: str = "auto") -> AbstractContextManager[Pair]:
    """The hosts called `kind`, or two named as A,B; a context manager.

    Raises:
        UserError: an unknown kind; in its block, a host that is named and not reached.
    """
    if kind.count(",") == 1:
        return named(*kind.split(","))
    if kind not in KINDS:
        hint = (
            f"{meant(kind, KINDS)}there are: {', '.join(KINDS)}; or two are named as A,B: local,ssh://lab@host.example"
        )
        raise UserError(f"there are no hosts called {kind!r}", hint=hint)
    return KINDS[kind]()
