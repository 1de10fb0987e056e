"""Real SSH servers inside the network namespaces, for tests of hosts that are reached by SSH.

OpenSSH's server is taken from the distribution's archive into the cache, as QEMU is; nothing is installed. Run by root
it wants a user and a folder of its own: it gets them in a mount namespace, where /tmp is its own as well, so that what
is on one host is not by itself on the other.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import vfio_user
from userdev.errors import UserError
from userdev.process import Child, answer_of, await_text
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, own_suite, quiet
from vfio_user.harness.hosts.namespace import Cable, NamespaceHost, joined_namespaces
from vfio_user.harness.hosts.ssh import SshHost

PORT = 2222
_PROGRAM = "usr/sbin/sshd"
_START_SECONDS = 20.0
_HIDDEN = ("images", "qemu", "checkpoints", "libvfio-user")
"""Folders of the cache that these hosts do not have: what is missing there is to be put there."""

_USERS = """
set -e
mount --make-rprivate /
cp /etc/passwd {folder}/passwd
grep -q ^sshd: {folder}/passwd || echo 'sshd:x:65533:65534::/nonexistent:/usr/sbin/nologin' >> {folder}/passwd
mount --bind {folder}/passwd /etc/passwd
mkdir -p /run/sshd
cp -r {folder} /run/{name}
"""

_MOUNTS = """
number=0
for kept in {kept}; do
    number=$((number + 1))
    mkdir -p /run/{name}/kept/$number
    mount --rbind "$kept" /run/{name}/kept/$number
done
mount -t tmpfs -o mode=1777 tmpfs /tmp
number=0
for kept in {kept}; do
    number=$((number + 1))
    mkdir -p "$kept"
    mount --move /run/{name}/kept/$number "$kept"
done
for hidden in {hidden}; do mount -t tmpfs -o mode=1777 tmpfs "$hidden"; done
"""

_START = """
LD_LIBRARY_PATH={libraries} exec {sshd} -D -e -f /run/{name}/sshd_config
"""

_HELPERS = {"SshdSessionPath": "usr/lib/openssh/sshd-session", "SshdAuthPath": "usr/lib/openssh/sshd-auth"}
"""Programs of its own that sshd starts, by what its configuration calls them (sshd_config(5), OpenSSH 9.8 and 10.0)."""

_CONFIG = """
Port {port}
ListenAddress {address}
HostKey /run/{name}/host_key
AuthorizedKeysFile /run/{name}/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
MaxStartups 100
"""


def ensure_sshd(progress: Progress = quiet) -> Path:
    """The folder that the server is unpacked in, in the cache; fetched when it is not there.

    Raises:
        UserError: it cannot be fetched.
    """
    root = cache_dir() / "openssh-server"
    with locked("openssh-server"):
        if not (root / _PROGRAM).exists():
            # That of this very release, as the C library under it is the machine's.
            archive = DebianArchive((own_suite(),))
            debs = archive.fetch(("openssh-server",), progress=progress)
            with publish(root) as making:
                archive.unpack(debs, making)
    return root


@contextmanager
def ssh_namespaces(names: tuple[str, str] = ("a", "b")) -> Iterator[tuple[SshHost, SshHost, Cable]]:
    """Two network namespaces with an SSH server in each, the hosts that are reached by them, and the cable in between.

    On neither of them are there QEMUs, images and checkpoints: a guest has to bring its own. SSH does not need the
    cable: it goes over the loopback interface of each.
    """
    root = ensure_sshd()
    with ExitStack() as stack:
        one, other, cable = stack.enter_context(joined_namespaces(names))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="vfu-ssh-")))
        login = Login("root", "127.0.0.1", _same_paths())
        hosts = [serve(stack, root, namespace, folder, login) for namespace in (one, other)]
        yield hosts[0], hosts[1], cable


def kept_folders(hidden: Path = Path("/tmp")) -> list[Path]:
    """Folders below `hidden` without which no program of ours runs: the package's, its Python's, the cache."""
    checkout = Path(vfio_user.__file__).resolve().parent.parent
    pythons = (Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))
    needed = sorted(path for path in {checkout, *pythons, cache_dir().resolve()} if path.is_relative_to(hidden))
    return [path for path in needed if not any(other in path.parents for other in needed)]


@dataclass(frozen=True)
class Login:
    """The user of an SSH server and the address that it listens at; `mounts` is a shell's text that hides and shows.

    It may say {folder} for what the server has of its own, and {name} for what that is called below /run.
    """

    user: str
    address: str
    mounts: str


def serve(stack: ExitStack, root: Path, namespace: NamespaceHost, base: Path, login: Login) -> SshHost:
    """Start an SSH server in a namespace, from the folder of `ensure_sshd`; `stack` ends it.

    Raises:
        UserError: it does not come up.
    """
    name = f"vfu-sshd-{base.name}-{namespace.name}"
    folder = base / namespace.name
    folder.mkdir()
    libraries = ":".join(str(folder) for folder in (*root.glob("usr/lib/*-linux-gnu"), *root.glob("lib/*-linux-gnu")))
    for key in ("host_key", "user_key"):
        generate = [str(root / "usr/bin/ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        answer_of("ssh-keygen", generate, _START_SECONDS, env={**os.environ, "LD_LIBRARY_PATH": libraries})
    helpers = [(keyword, root / path) for keyword, path in _HELPERS.items() if (root / path).exists()]
    config = _CONFIG.format(port=PORT, name=name, address=login.address)
    (folder / "sshd_config").write_text(config + "".join(f"{keyword} {path}\n" for keyword, path in helpers))
    public = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[{login.address}]:{PORT} {public[0]} {public[1]}\n")
    script = (_USERS + login.mounts + _START).format(
        folder=shlex.quote(str(folder)),
        name=name,
        sshd=shlex.quote(str(root / _PROGRAM)),
        libraries=shlex.quote(libraries),
    )
    child = Child(
        f"sshd {namespace.name}",
        namespace.command(["unshare", "--mount", "sh", "-c", script]),
        log=base / f"{namespace.name}.log",
    )
    stack.callback(child.stop)
    if not await_text(child, b"Server listening", _START_SECONDS):
        raise UserError(f"the SSH server of {namespace.name} does not come up", evidence=child.last_words())
    return SshHost(
        namespace.name,
        login.address,
        namespace.address,
        port=PORT,
        user=login.user,
        key=str(folder / "user_key"),
        known_hosts=str(folder / "known_hosts"),
        through=namespace,
    )


def _same_paths() -> str:
    """What hides of this machine what has to be put on a host, and leaves all else where it is."""
    hidden = [cache_dir() / name for name in _HIDDEN]
    return _MOUNTS.format(
        name="{name}",
        kept=shlex.join(str(path) for path in kept_folders()),
        hidden=shlex.join(str(path) for path in hidden if path.exists()),
    )
