"""What this machine has for booting guests on vfio-user devices, what it lacks, and how to get that.

One row of `CHECKS` per question. Whatever a check runs into becomes its finding: the doctor always answers.
"""

from __future__ import annotations

import getpass
import grp
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from userdev.errors import UserError
from userdev.process import run_to_end
from vfio_user.harness.accelerator import KVM, probe_accelerator
from vfio_user.harness.cache import ENVIRONMENT as CACHE_VARIABLE
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.debian import find_mirror, has_apt
from vfio_user.harness.hosts import can_make_namespaces
from vfio_user.harness.qemu import DEVICE, find_qemu
from vfio_user.harness.toolchain import is_fetched

DEFAULT_IMAGE = "minimal"
GUEST_MEMORY = 700e6  # bytes for QEMU with a guest of 512 MiB, and its server
# Measured: packages, QEMU, image and a checkpoint take about 0.8 GB in the cache; a checkpoint alone 0.12.
FIRST_RUN_SPACE = 1.5e9
LATER_RUN_SPACE = 0.3e9
TOOL_SECONDS = 20.0
_GROUP_MAY = stat.S_IRGRP | stat.S_IWGRP


class Readiness(StrEnum):
    """How it stands. Only BAD keeps `scripts/run` from working."""

    GOOD = "good"
    LATER = "later"  # not there; the first run gets it by itself
    ABSENT = "absent"  # not there; something less would be possible with it
    BAD = "bad"


@dataclass(frozen=True)
class Finding:
    """The answer to one question. `hint` says how to get what is missing."""

    name: str
    state: Readiness
    detail: str
    hint: str = ""


Examination = tuple[Readiness, str] | tuple[Readiness, str, str]


def examine_machine() -> Iterator[Finding]:
    """Answer every question, one after the other; none takes more than some seconds."""
    return map(examine, CHECKS)


def examine(name: str) -> Finding:
    """Answer the question of this name."""
    try:
        return Finding(name, *CHECKS[name]())
    except UserError as error:
        return Finding(name, Readiness.BAD, str(error), error.hint)
    except Exception as error:
        return Finding(name, Readiness.BAD, f"the check itself failed: {type(error).__name__}: {error}")


def can_run(findings: list[Finding]) -> bool:
    """Whether `scripts/run` can work here."""
    return all(finding.state is not Readiness.BAD for finding in findings)


def check_system() -> Examination:
    """Look at the operating system and the processor: BAD where that is not x86_64."""
    about = f"{platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} processors"
    if platform.machine() != "x86_64":
        return Readiness.BAD, about, "the guests are x86_64, and so are the packages: use such a machine"
    return Readiness.GOOD, about


def check_python() -> Examination:
    """Name the Python that runs this, with its version."""
    return Readiness.GOOD, f"{platform.python_version()} at {sys.executable}"


def check_cache() -> Examination:
    """Name the folder that packages, QEMU, images and checkpoints are kept in."""
    return Readiness.GOOD, str(cache_dir())


def check_disk() -> Examination:
    """The space in the cache: a machine with QEMU and image in place needs less."""
    free = shutil.disk_usage(cache_dir()).free
    needed = LATER_RUN_SPACE if _has(check_qemu) and _has(check_image) else FIRST_RUN_SPACE
    if free < needed:
        return Readiness.BAD, f"{_gb(free)} free, {_gb(needed)} needed", f"make room, or set {CACHE_VARIABLE}"
    return Readiness.GOOD, f"{_gb(free)} free in the cache"


def check_memory() -> Examination:
    """Compare the memory that is available with `GUEST_MEMORY`, in bytes: BAD below it."""
    free = psutil.virtual_memory().available
    if free < GUEST_MEMORY:
        return Readiness.BAD, f"{_gb(free)} available, {_gb(GUEST_MEMORY)} needed for one guest", "end other programs"
    return Readiness.GOOD, f"{_gb(free)} available"


def check_shared_memory() -> Examination:
    """The guest's RAM and server and QEMU share is a memfd, which no mount limits: proven by making one."""
    os.close(os.memfd_create("doctor"))
    try:
        return Readiness.GOOD, f"memfd works; {_gb(shutil.disk_usage('/dev/shm').free)} free in /dev/shm"
    except OSError:
        return Readiness.GOOD, "memfd works; there is no /dev/shm"


def check_apt() -> Examination:
    """Apt is how QEMU and images come: without it, both have to be there already."""
    if has_apt():
        find_mirror()
        return Readiness.GOOD, "Debian's packages can be fetched with this machine's mirror and keys"
    state = Readiness.ABSENT if _has(check_qemu) and _has(check_image) else Readiness.BAD
    return state, "no apt: Debian's packages cannot be fetched", "use Debian or a derivative, or its container"


def check_qemu() -> Examination:
    """Look for a QEMU that has vfio-user-pci; LATER where the first run would fetch one."""
    try:
        qemu = find_qemu()
    except UserError as error:
        return (Readiness.LATER if has_apt() else Readiness.BAD), str(error), error.hint
    return Readiness.GOOD, f"{qemu.version_text}, from the {qemu.origin}, with {DEVICE}"


def check_accelerator() -> Examination:
    """Try which accelerator QEMU has: KVM if a guest was seen to run under it; ABSENT where KVM may not be used."""
    if not KVM.exists():
        return Readiness.GOOD, f"TCG: there is no {KVM}"
    if not os.access(KVM, os.R_OK | os.W_OK):
        node = KVM.stat()
        hint = f"for faster guests: {_way_to_kvm(node.st_mode, node.st_gid)}"
        return Readiness.ABSENT, f"TCG: {KVM} is there, but you may not use it", hint
    try:
        qemu = find_qemu()
    except UserError:
        return Readiness.LATER, f"{KVM} is there; whether a guest runs under it shows when there is a QEMU"
    if probe_accelerator(qemu) == "kvm":
        return Readiness.GOOD, "KVM: a guest runs under it"
    return Readiness.GOOD, f"TCG: {KVM} is there, but a guest does not run under it"


def check_image() -> Examination:
    """Look whether the default guest image is in the cache; LATER where the first run would build it."""
    from vfio_user.harness.image import list_images

    built = [status.name for status in list_images() if status.image]
    if DEFAULT_IMAGE in built:
        return Readiness.GOOD, f"{', '.join(built)} in the cache"
    hint = f"vfio-user image build {DEFAULT_IMAGE}"
    return (Readiness.LATER if has_apt() else Readiness.BAD), f"{DEFAULT_IMAGE} is not built yet", hint


def check_namespaces() -> Examination:
    """Network namespaces stand for hosts in a migration: as the harness makes them, which takes root."""
    without = "a guest migrates between two loopback addresses, and no link can be cut"
    if not can_make_namespaces():
        hint = "be root, for hosts with a cable between them (`migrate --hosts namespaces`)"
        return Readiness.ABSENT, f"network namespaces cannot be made by this user: {without}", hint
    if not shutil.which("nsenter"):
        return Readiness.ABSENT, f"no nsenter, which starts programs in namespaces: {without}", "install util-linux"
    return Readiness.GOOD, "network namespaces can be made: `migrate` and `soak` have two hosts and a cable"


def check_debugger() -> Examination:
    """Look for gdb, which shows the stacks of a QEMU that crashed or hangs; LATER where it would be fetched."""
    if is_fetched("debugger"):
        return Readiness.GOOD, "gdb is in the cache"
    if has_apt():
        return Readiness.LATER, "gdb is fetched when a program has crashed"
    return _check_tool("gdb", "stacks of a QEMU that hangs or has crashed", "gdb")


CHECKS: dict[str, Callable[[], Examination]] = {
    "system": check_system,
    "python": check_python,
    "cache": check_cache,
    "disk": check_disk,
    "memory": check_memory,
    "shared memory": check_shared_memory,
    "apt": check_apt,
    "QEMU": check_qemu,
    "accelerator": check_accelerator,
    "guest image": check_image,
    "namespaces": check_namespaces,
    "debugger": check_debugger,
}


def _check_tool(name: str, purpose: str, packages: str) -> Examination:
    path = shutil.which(name)
    if path is None:
        return Readiness.ABSENT, f"no {name}: it is for {purpose}", f"apt-get install {packages}"
    ran = _run([path, "--version"])
    return Readiness.GOOD, ran.stdout.partition("\n")[0] if ran else str(Path(path))


def _way_to_kvm(mode: int, gid: int) -> str:
    """What lets this user have `KVM`, whose node has this mode and group."""
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:  # as in a container that was given the node of another system
        group = str(gid)
    if gid and mode & _GROUP_MAY == _GROUP_MAY:
        return f"sudo usermod --append --groups {group} {getpass.getuser()}, and log in again"
    return (
        f"be root; the mode {stat.S_IMODE(mode):04o} of {KVM}, of group {group}, lets no group in that one could join"
        f' (a rule for udev that does: KERNEL=="kvm", GROUP="kvm", MODE="0660")'
    )


def _has(check: Callable[[], Examination]) -> bool:
    try:
        return check()[0] is Readiness.GOOD
    except UserError:
        return False


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    with suppress(UserError):
        return run_to_end(command[0], command, TOOL_SECONDS)
    return None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
