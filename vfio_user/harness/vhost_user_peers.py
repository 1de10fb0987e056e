"""Real vhost-user programs, to try ours on: Debian's packages of them, unpacked into the cache and never installed.

Each is called through its own dynamic loader, as a QEMU in the cache is, so that it runs beside the machine's older C
library. A script that takes a socket's path starts it as the table says, so that it goes wherever a command with
{socket} does. The programs run as root and as an ordinary user alike.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from debian.debian_support import Version

from userdev.errors import UserError
from userdev.process import answer_of
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, quiet

STABLE = ("trixie", "trixie-backports")
"""The suites of the QEMU that guests run in, whose index is there already."""

_ANSWER_SECONDS = 30.0
"""Seconds that a program may take to say what it is; it takes a hundredth of one."""


@dataclass(frozen=True)
class Peer:
    """A program, and how it is started.

    In `arguments`, a shell's, and in `prepare`, a command of it, $socket is the socket's path and $files a folder
    beside it, SOCKET.d. `answers` is the argument that it answers at once. `plugins` are DPDK's drivers, which it
    loads by their names: it takes none from a folder below one that everybody may write to.
    """

    about: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    program: str
    arguments: str
    prepare: str = ":"
    answers: str = "--version"
    plugins: tuple[str, ...] = ()


def _testpmd(about: str, device: str, memory: int, *drivers: str) -> Peer:
    """DPDK's testpmd without huge pages, which sends back what it receives and reads no terminal.

    Its words come with its first statistics, once the machine has been up for their period.
    """
    return Peer(
        about=about,
        suites=STABLE,
        packages=("dpdk-dev",),  # testpmd is in it, not in dpdk
        program="usr/bin/dpdk-testpmd",
        prepare='export RUNTIME_DIRECTORY="$files"',  # of what it leaves while it runs, for root too
        arguments=f"--no-huge -m {memory} --no-pci --no-telemetry --no-shconf"
        ' --lcores "(0-1)@($(sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" /proc/self/status))"'
        f' --vdev "{device}" -- --nb-cores=1 --total-num-mbufs=2048 --no-flush-rx --stats-period 60',
        answers="--help",
        plugins=("mempool_ring", *drivers),
    )


PEERS: dict[str, Peer] = {
    "qemu-storage-daemon": Peer(
        about="QEMU's back-end for disks: 64 MiB, writable, four queues",
        suites=STABLE,
        packages=("qemu-utils",),
        program="usr/bin/qemu-storage-daemon",
        prepare='truncate --size=64M "$files/image"',
        arguments='--blockdev "driver=file,filename=$files/image,node-name=disk"'
        ' --export "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=4,addr.type=unix'
        ',addr.path=$socket"',
    ),
    "virtiofsd": Peer(
        about="the back-end for file systems, on rust-vmm; it ends with its front-end",
        suites=STABLE,
        packages=("virtiofsd",),
        program="usr/libexec/virtiofsd",
        prepare='mkdir -p "$files/shared"',
        arguments='--socket-path "$socket" --shared-dir "$files/shared" --sandbox none --seccomp none --tag shared',
    ),
    "passt": Peer(
        about="the back-end for networks, which speaks for its host: 192.0.2.1 is its loopback",
        suites=STABLE,
        packages=("passt",),
        program="usr/bin/passt",
        arguments='--foreground --vhost-user --socket "$socket" --repair-path none --map-host-loopback 192.0.2.1',
    ),
    "vhost-device-vsock": Peer(
        about="the back-end for vsock, of rust-vmm's devices",
        suites=("forky",),  # the first with it
        packages=("vhost-device-vsock",),
        program="usr/bin/vhost-device-vsock",
        arguments='--guest-cid 5 --socket "$socket" --uds-path "$files/vsock"',
    ),
    "dpdk-net-vhost": _testpmd(
        "DPDK's back-end for networks, which polls and sends every frame back",
        "net_vhost0,iface=$socket,queues=1,iommu-support=1",
        256,
        "net_vhost",
    ),
    "dpdk-virtio-user": _testpmd(
        "DPDK's front-end for networks, which sends every frame back",
        "net_virtio_user0,path=$socket,queues=1",
        64,
        "net_virtio",
        "net_pcap",
    ),
}
"""The programs by name."""


@dataclass(frozen=True)
class InstalledPeer:
    """A program in the cache.

    `argv` goes before arguments of your own. `script` is a program that takes the path of a socket and starts it there
    as the table says, with further arguments behind; its files are in SOCKET.d. `version` is upstream's.
    """

    argv: tuple[str, ...]
    script: Path
    version: str


def install_peer(name: str, *, suites: tuple[str, ...] | None = None, progress: Progress = quiet) -> InstalledPeer:
    """One of `PEERS`, fetched when the cache has none; that of other `suites` of Debian's where they are given.

    Raises:
        UserError: there is no such program, it does not run here, or there is no apt, no network or no space.
    """
    if name not in PEERS:
        raise UserError(f"there is no vhost-user program called {name}", hint=f"there are {', '.join(PEERS)}")
    peers = {other: replace(row, suites=suites or row.suites) for other, row in PEERS.items()}
    peer = peers[name]
    together = {
        other: row for other, row in peers.items() if (row.suites, row.packages) == (peer.suites, peer.packages)
    }
    root = cache_dir() / "vhost-user-peers" / f"{peer.packages[0]}-{_digest(together)}"
    with locked(f"vhost-user-peers-{peer.packages[0]}"):
        if not root.exists():
            archive = DebianArchive(peer.suites)
            debs = archive.fetch(peer.packages, progress=lambda said: progress(f"{name}: {said}"))
            with publish(root) as making:
                archive.unpack([deb for deb in debs if _is_needed(deb.name.split("_")[0], peer)], making)
                (making / _RECORD).write_text(json.dumps({"packages": [deb.name for deb in debs]}))
                for other, row in together.items():
                    _try(other, row, making)
                    _write_script(other, row, making, root)
    return InstalledPeer(_argv(peer, root), root / name, _version(peer, root))


_RECORD = "install.json"


def _is_needed(package: str, peer: Peer) -> bool:
    """Whether anything of a package is needed to run it; most of what DPDK's need is for who builds with them."""
    return package in peer.packages or not package.endswith("-dev")


def _digest(peers: dict[str, Peer]) -> str:
    """The digest of all that decides what is unpacked and written."""
    return hashlib.sha256(repr((peers, _SCRIPT, platform.machine())).encode()).hexdigest()[:16]


def _argv(peer: Peer, root: Path, place: Path | None = None) -> tuple[str, ...]:
    """The program at `root` with its loader; `place` is where `root` will be."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    plugins = sorted(libraries.glob("dpdk/pmds-*")) if peer.plugins else []
    words = [
        root / "usr/lib64/ld-linux-x86-64.so.2",
        "--argv0",
        Path(peer.program).name,
        "--library-path",
        ":".join(map(str, (libraries, *plugins))),
        root / peer.program,
    ]
    for plugin in peer.plugins:
        (found,) = plugins[0].glob(f"librte_{plugin}.so.[0-9][0-9]")
        words += ["-d", found.name]
    return tuple(str(word).replace(str(root), str(place or root)) for word in words)


def _try(name: str, peer: Peer, root: Path) -> None:
    """Have it say something."""
    what = f"{name} of Debian {peer.suites[-1]}"
    answer_of(what, [*_argv(peer, root), peer.answers], _ANSWER_SECONDS)


_SCRIPT = """\
#!/bin/sh
# {name} SOCKET: {about}.
set -eu
socket=$1
shift
files=$socket.d
mkdir -p "$files"
{prepare}
exec {argv} {arguments} "$@"
"""


def _write_script(name: str, peer: Peer, making: Path, root: Path) -> None:
    argv = shlex.join(_argv(peer, making, root))
    script = making / name
    script.write_text(
        _SCRIPT.format(name=name, about=peer.about, prepare=peer.prepare, argv=argv, arguments=peer.arguments)
    )
    script.chmod(0o755)


def _version(peer: Peer, root: Path) -> str:
    """Upstream's version of the package that the program is in."""
    packages: Sequence[str] = json.loads((root / _RECORD).read_text())["packages"]
    (found,) = (name for name in packages if name.startswith(f"{peer.packages[0]}_"))
    return str(Version(found.split("_")[1].replace("%3a", ":")).upstream_version)
