"""Two hosts to migrate between, as they are chosen on a command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType

from userdev.errors import UserError, meant
from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.hosts.namespace import Cable, NamespaceHost, can_make_namespaces, joined_namespaces
from vfio_user.harness.hosts.ssh import SshHost, options_of
from vfio_user.harness.hosts.trial import End, Here, There, ends_of, try_address

_HERE = "local"
"""This machine, of two hosts that are named."""
_OPTIONS_HERE = ("address",)


@dataclass(frozen=True)
class Pair:
    """`note` says what a reader of results has to know about these hosts; `cable` joins them where it is virtual.

    `ways` says of hosts that were named at which address each is reached from the other.
    """

    a: Host
    b: Host
    note: str = ""
    cable: Cable | None = None
    ways: str = ""

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
    """Hosts that are there, as `_host` takes them: reached before anything is begun, and tried from each other."""
    with ExitStack() as stack:
        hosts = [_host("a", first), _host("b", second)]
        ends: list[End] = [stack.enter_context(_reached(host)) for host in hosts]
        a, b = (_with_address(host, ends) for host in hosts)
        for host, end, other in ((b, ends[1], ends[0]), (a, ends[0], ends[1])):
            try_address(host, end, other)
    yield Pair(a, b, ways=f"{ends[0].name}, reached at {a.address}, and {ends[1].name}, reached at {b.address}")


def _reached(host: SshHost | LocalHost) -> AbstractContextManager[End]:
    return host.reached() if isinstance(host, SshHost) else nullcontext(Here())


def _with_address(host: SshHost | LocalHost, ends: Sequence[End]) -> Host:
    """The host with the address that its SSH connection shows, where none is given: a name may mean another there."""
    there = [end for end in ends if isinstance(end, There)]
    if isinstance(host, SshHost):
        own = next((ends_of(end.client)[1] for end in there if end.where["host"] == host.host), host.address)
        return replace(host, address=own) if host.address == host.host else host
    if host.address or not there:
        return replace(host, address=host.address or LocalHost.address)
    return replace(host, address=ends_of(there[0].client)[0])


KINDS: Mapping[str, Callable[[], AbstractContextManager[Pair]]] = MappingProxyType(
    {"auto": best, "namespaces": namespaces, "local": loopback, "ssh": by_ssh}
)


def require_hosts(kind: str) -> None:
    """Look at the name of two hosts, and at nothing else.

    Raises:
        UserError: an unknown kind, or what is no address.
    """
    if _names(kind) is None and kind not in KINDS:
        hint = (
            f"{meant(kind, KINDS)}there are: {', '.join(KINDS)}; or two are named as A,B: local,ssh://lab@host.example"
        )
        raise UserError(f"there are no hosts called {kind!r}", hint=hint)
    for text in _names(kind) or ():
        _host("", text)


def hosts_in_words(kind: str) -> str:
    """What hosts these would be; those that are named are reached.

    Raises:
        UserError: as `require_hosts`, or one is not reached, or cannot be made.
    """
    require_hosts(kind)
    if names := _names(kind):
        with named(*names) as pair:
            return pair.ways
    if kind not in ("auto", "local"):
        NamespaceHost("probe", "").close()
    kind = _chosen(kind)
    what = (KINDS[kind].__doc__ or "").rstrip(".")
    return f"{what[:1].lower()}{what[1:]} (--hosts {kind})"


def joined_by_cable(kind: str) -> bool:
    """Whether these hosts would have a `Pair.cable`; nothing is made to know it."""
    return _names(kind) is None and _chosen(kind) != "local"


def _chosen(kind: str) -> str:
    """What "auto" is on this machine; any other kind itself."""
    return ("namespaces" if can_make_namespaces() else "local") if kind == "auto" else kind


def two_hosts(kind: str = "auto") -> AbstractContextManager[Pair]:
    """The hosts called `kind`, or two named as A,B; a context manager.

    Raises:
        UserError: as `require_hosts`; in its block, a host that is named and not reached.
    """
    require_hosts(kind)
    names = _names(kind)
    return named(*names) if names else KINDS[kind]()


def _names(kind: str) -> tuple[str, str] | None:
    """Both of A,B; None where it is a kind's name."""
    first, comma, second = kind.partition(",")
    return (first, second) if comma and "," not in second else None


def _host(name: str, text: str) -> SshHost | LocalHost:
    """This machine, as "local" or "local?address=IP", or what `SshHost.parse` takes."""
    here, _, query = text.partition("?")
    if here != _HERE:
        return SshHost.parse(name, text)
    return LocalHost(name, options_of(text, query, _OPTIONS_HERE).get("address", ""))
