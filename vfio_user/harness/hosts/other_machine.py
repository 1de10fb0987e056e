"""A host as another machine is: a user, a home, a Python and temporary files of its own, and nothing where ours is.

The namespaces of `ssh_namespaces` have this machine's user and paths, so that whatever of ours is looked for over there
is found there. Here it is not: what a host has to be told, or to be given, is missed at once.
"""

from __future__ import annotations

import os
import shlex
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import vfio_user
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.hosts.namespace import joined_namespaces
from vfio_user.harness.hosts.sshd import PORT, Login, ensure_sshd, serve

_USER, _NUMBER = "lab", 4242
_HOME = Path("/home") / _USER
_SHARED = Path("/mnt")
"""A folder that either may write, as two machines have one: of each it is its own."""
_KVM = Path("/dev/kvm")

_MOUNTS = """
echo '{user}:*:{number}:{group}::{home}:/bin/sh' >> /etc/passwd
echo {machine_id} > /run/{name}/machine-id
test ! -e /etc/machine-id || mount --bind /run/{name}/machine-id /etc/machine-id
number=0
for kept in {kept} {project} {packages}; do
    number=$((number + 1))
    mkdir -p /run/{name}/kept/$number
    mount --rbind "$kept" /run/{name}/kept/$number
done
for hidden in {hidden}; do mount -t tmpfs -o mode=755 tmpfs "$hidden"; done
chmod 1777 /tmp {shared}
mkdir -m 755 {shared}/private
number=0
for kept in {kept} {home}/project {home}/packages; do
    number=$((number + 1))
    mkdir -p "$kept"
    mount --move /run/{name}/kept/$number "$kept"
done
mkdir -p {site} {python_folder}
echo 'home = {base}/bin' > {home}/venv/pyvenv.cfg
printf '%s\\n' {home}/project {home}/project/servers {home}/packages > {site}/here.pth
ln -s {executable} {python}
chown {number}:{group} {home}
"""

_OURS = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {shared}
mkdir {cache}
mount --rbind {ours} {cache}
exec "$@"
"""


@dataclass(frozen=True)
class OtherMachine:
    """`hosts` is what `--hosts` takes of this machine and the other; `here` runs a command where it is reached."""

    hosts: str
    here: tuple[str, ...]
    cache: Path
    """What VFIO_USER_CACHE has to be where both are to write it."""
    shared: Path = _SHARED
    """Where either has a folder `private` that the user of the other may not write."""


@contextmanager
def another_machine() -> Iterator[OtherMachine]:
    """Have one, at the other end of a cable from a namespace that is this machine for whoever runs there."""
    root = ensure_sshd()
    with ExitStack() as stack:
        local, other, _ = stack.enter_context(joined_namespaces(("local", _USER)))
        base = Path(stack.enter_context(TemporaryDirectory(prefix="vfu-ssh-")))
        python = _HOME / "venv/bin/python"
        login = Login(_USER, other.address, _mounts(root, python))
        host = serve(stack, root, other, base, login)
        cache = _SHARED / "cache"
        script = _OURS.format(shared=_SHARED, cache=cache, ours=shlex.quote(str(cache_dir())))
        here = local.command(["unshare", "--mount", "sh", "-c", script, "sh"])
        options = f"key={host.key}&known_hosts={host.known_hosts}&python={python}"
        yield OtherMachine(f"local,ssh://{_USER}@{other.address}:{PORT}?{options}", tuple(here), cache)


def _mounts(root: Path, python: Path) -> str:
    """The script that makes it look so, but for `folder` and `name`."""
    checkout = Path(vfio_user.__file__).resolve().parent.parent
    base = Path(sys.base_prefix).resolve()
    hidden = _outermost({Path("/tmp"), Path("/home"), _SHARED, Path.home().resolve(), checkout, cache_dir().resolve()})
    kept = [path for path in (base, root) if any(path.is_relative_to(folder) for folder in hidden)]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    names = {
        "user": _USER,
        "number": _NUMBER,
        "group": _KVM.stat().st_gid if _KVM.exists() else _NUMBER,
        "home": _HOME,
        "machine_id": os.urandom(16).hex(),
        "kept": shlex.join(map(str, kept)),
        "project": shlex.quote(str(checkout)),
        "packages": shlex.quote(sysconfig.get_path("purelib")),
        "hidden": shlex.join(map(str, hidden)),
        "shared": _SHARED,
        "site": _HOME / "venv/lib" / version / "site-packages",
        "python_folder": python.parent,
        "python": python,
        "base": shlex.quote(str(base)),
        "executable": shlex.quote(str(Path(sys.executable).resolve())),
    }
    return _MOUNTS.format(**names, folder="{folder}", name="{name}")


def _outermost(folders: set[Path]) -> list[Path]:
    """Those of them that are in none of the others."""
    return sorted(path for path in folders if not any(other in path.parents for other in folders))
