"""Network namespaces as hosts, joined by a veth pair.

They have no names: a namespace is the thread that made it, our descriptor of it, and the processes in it. When those
are gone, also by a SIGKILL, the kernel removes namespace and cable, and nothing is left that somebody has to find.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from userdev.errors import UserError
from vfio_user.harness.hosts.host import OnThisMachine

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Addresses for documentation (RFC 5737): no real network has them, and nothing but the two ends is on this one.
_ADDRESSES = ("192.0.2.1", "192.0.2.2")
_PREFIX_LENGTH = 30
_INTERFACE = "migration"


class NamespaceHost(OnThisMachine):
    """A network namespace of this machine."""

    def __init__(self, name: str, address: str) -> None:
        """Make it, with its loopback interface up.

        Raises:
            UserError: the kernel does not let us.
        """
        self.name = name
        self.address = address
        self._thread = ThreadPoolExecutor(1, f"host-{name}")
        try:
            self.descriptor = self._thread.submit(_enter_new_namespace).result()
        except OSError as error:
            self._thread.shutdown()
            raise UserError(
                f"no network namespace can be made: {error.strerror}", hint="run as root, or use local hosts"
            ) from None
        try:
            self.configure(lambda ip: _bring_up(ip, "lo"))
        except BaseException:
            self.close()
            raise

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        """The command behind nsenter(1), which takes the namespace by our descriptor of it."""
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.descriptor}", *argv]

    def configure(self, work: Callable[[Any], T]) -> T:
        """Have `work` done in the namespace, with a `pyroute2.IPRoute` of it."""
        return self.do(lambda: _with_routes(work))

    def do(self, work: Callable[[], T]) -> T:
        """Have `work` done by a thread that is in the namespace: sockets that it makes belong there."""
        return self._thread.submit(work).result()

    def close(self) -> None:
        """Give it up; a second call does nothing."""
        if self.descriptor >= 0:
            self._thread.shutdown()
            os.close(self.descriptor)
            self.descriptor = -1


class Cable:
    """The veth pair between two namespaces; `cut` and `mend` are what a link that fails does."""

    def __init__(self, one: NamespaceHost, other: NamespaceHost) -> None:
        self._ends = (one, other)
        peer = {"ifname": _INTERFACE, "net_ns_fd": other.descriptor}
        one.configure(lambda ip: ip.link("add", ifname=_INTERFACE, kind="veth", peer=peer))
        for end in self._ends:
            end.configure(partial(_give_address, address=end.address))

    def cut(self) -> None:
        """Take the link down at one end: packets are lost in both directions from now on, and connections stay."""
        self._set("down")

    def mend(self) -> None:
        """Take the link up again: what TCP has kept is sent once more."""
        self._set("up")

    def _set(self, state: str) -> None:
        self._ends[0].configure(lambda ip: ip.link("set", index=_index(ip, _INTERFACE), state=state))


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces: root, in most cases."""
    with suppress(UserError):
        NamespaceHost("probe", "").close()
        return True
    return False


@contextmanager
def joined_namespaces(names: Sequence[str] = ("a", "b")) -> Iterator[tuple[NamespaceHost, NamespaceHost, Cable]]:
    """Two hosts and the cable between them; gone after the block, with the last process inside."""
    with ExitStack() as made:
        one, other = (
            made.enter_context(closing(NamespaceHost(name, address)))
            for name, address in zip(names, _ADDRESSES, strict=True)
        )
        yield one, other, Cable(one, other)


def _enter_new_namespace() -> int:
    """Move the calling thread into a new network namespace; a descriptor of it."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _with_routes(work: Callable[[Any], T]) -> T:
    from pyroute2 import IPRoute  # 0.2 s: only who makes namespaces waits for it

    with IPRoute() as ip:
        return work(ip)


def _index(ip: Any, interface: str) -> int:
    index: int = ip.link_lookup(ifname=interface)[0]
    return index


def _bring_up(ip: Any, interface: str) -> None:
    ip.link("set", index=_index(ip, interface), state="up")


def _give_address(ip: Any, *, address: str) -> None:
    ip.addr("add", index=_index(ip, _INTERFACE), address=address, prefixlen=_PREFIX_LENGTH)
    _bring_up(ip, _INTERFACE)
