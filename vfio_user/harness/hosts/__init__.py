"""Where machines run: this machine, or network namespaces of it that only a virtual cable joins."""

from vfio_user.harness.hosts.host import Host, LocalHost
from vfio_user.harness.hosts.namespace import Cable, NamespaceHost, can_make_namespaces, joined_namespaces
from vfio_user.harness.hosts.pair import KINDS, Pair, two_hosts
from vfio_user.harness.hosts.ssh import SshHost

__all__ = [
    "KINDS",
    "Cable",
    "Host",
    "LocalHost",
    "NamespaceHost",
    "Pair",
    "SshHost",
    "can_make_namespaces",
    "joined_namespaces",
    "two_hosts",
]
