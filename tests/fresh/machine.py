"""A copy of a root file system in which a command runs as on a machine of its own: its processes, files and devices.

The kernel, the network and the devices are this machine's. Nothing of its disk is there but the checkout, and what
leads to package archives: proxies, certificates, apt's and pip's settings.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from userdev.errors import UserError

USER = "someone"
_CHECKOUT = "vfio-user"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NETWORK_VARIABLES = {
    *("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_PROXY", "PIP_DEFAULT_TIMEOUT"),
    *("SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "CI"),
}
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")

# What a running system has: its own processes and shared memory, and the kernel's devices. In a root that was entered
# by chroot no user may make a namespace (user_namespaces(7)).
_START = """
set -e
mount --make-rprivate /
mount --bind {root} {root}
cd {root}
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
pivot_root . mnt
umount --lazy /mnt
exec {command}
"""


@dataclass(frozen=True)
class Machine:
    """`root` is the top of its files, `user` who works there: root or `USER`."""

    root: Path
    user: str

    @property
    def home(self) -> Path:
        """As seen from within."""
        return Path("/root") if self.user == "root" else Path("/home") / self.user

    def run(self, command: Sequence[str]) -> int:
        """Run a command in the checkout, with this process's output; its exit status. What it leaves is ended."""
        environment = {
            "HOME": str(self.home),
            "USER": self.user,
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            **network_environment(os.environ),
        }
        within = f"cd {shlex.quote(str(self.home / _CHECKOUT))} && exec {shlex.join(command)}"
        inside = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        if self.user != "root":
            inside = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--init-groups", "--", *inside]
        script = _START.format(root=shlex.quote(str(self.root)), command=shlex.join([*inside, "sh", "-c", within]))
        apart = [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=KILL",
            "--ipc",
            "--uts",
        ]
        return subprocess.run([*apart, "sh", "-c", script], stdin=subprocess.DEVNULL).returncode

    def keep_results(self, folder: Path) -> Path | None:
        """Move the evidence of runs out of it, before it goes; where it is now."""
        made = self.root / self.home.relative_to("/") / _CHECKOUT / "results"
        if not made.is_dir():
            return None
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, folder)
        return folder


def network_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of `variables` that lead to package archives, and CI."""
    return {name: value for name, value in variables.items() if name in _NETWORK_VARIABLES}


@contextmanager
def fresh_machine(base: Path, checkout: Path, *, user: str, keep: bool = False) -> Iterator[Machine]:
    """A machine made from the root file system `base`, with the files of `checkout` that git has or does not ignore.

    It is removed at the end, unless it is to be kept. Raises `UserError` for who may not make one.
    """
    if os.getuid() != 0:
        raise UserError("a machine of its own can be had by root only", hint="run scripts/fresh as root")
    folder = Path(mkdtemp(prefix="vfio-user-fresh-", dir=os.environ.get("VFIO_USER_SCRATCH")))
    machine = Machine(folder / "root", user)
    try:
        folder.chmod(0o755)
        subprocess.run(["cp", "--archive", "--reflink=auto", base, machine.root], check=True)
        for name in _NETWORK_FILES:
            _copy_in(Path(name), machine.root)
        if user != "root":
            add = ["chroot", str(machine.root), "useradd", "--create-home", "--shell", "/bin/sh", user]
            subprocess.run(add, check=True)
        _copy_checkout(checkout, machine)
        yield machine
    finally:
        if keep:
            print(f"kept: {machine.root}", file=sys.stderr)
        else:
            subprocess.run(["rm", "--recursive", "--force", "--one-file-system", folder], check=False)


def _copy_in(file: Path, root: Path) -> None:
    with suppress(FileNotFoundError):
        target = root / file.relative_to("/")
        content = file.read_bytes()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_bytes(content)


def _copy_checkout(checkout: Path, machine: Machine) -> None:
    listing = ["git", "-C", str(checkout), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    named = subprocess.run(listing, check=True, capture_output=True).stdout.split(b"\0")
    there = b"\0".join(name for name in named if name and os.path.lexists(os.fsencode(checkout) + b"/" + name))
    inside = machine.home / _CHECKOUT
    target = machine.root / inside.relative_to("/")
    target.mkdir(parents=True)
    pack = ["tar", "-C", str(checkout), "--create", "--null", "--files-from=-", "--file=-"]
    archive = subprocess.run(pack, input=there, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-C", target, "--extract", "--no-same-owner"], input=archive, check=True)
    if machine.user != "root":
        subprocess.run(["chroot", machine.root, "chown", "-R", f"{machine.user}:", str(inside)], check=True)
