"""Machines that are reached by SSH as the place where cells run: what is put there, and what is asked of them first."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import userdev
import userdev_servers
import vfio_user
import vhost_user
from userdev.counted import counted
from userdev.errors import UserError
from userdev.process import answer_of, run_to_end
from vfio_user.bundle.of_tests import OUTSIDE
from vfio_user.harness.cache import ENVIRONMENT, cache_dir
from vfio_user.harness.debian import Progress
from vfio_user.harness.hosts import SshHost
from vfio_user.harness.hosts.archives import Archive, Member, make_archive
from vfio_user.harness.image.builder import files_of_image
from vfio_user.harness.qemu import ensure_qemu
from vfio_user.nightly.place import Here, Place, Ran, Readiness
from vfio_user.nightly.plan import Plan, SlotText
from vfio_user.nightly.slot_spawner import NAME, SETTING, SlotCommand, ran, setting
from vfio_user.nightly.summary import Machine, Slot

NEEDED_MIB = 1024
"""What is to be free on a slot beside what is put there: guests' disks, checkpoints, evidence."""

PROBE_SECONDS, READY_SECONDS = 90.0, 3600.0

_PACKAGES = (vfio_user, vhost_user, userdev, userdev_servers)

_PROBE = """
import importlib, json, os, shutil, sys
folder = sys.argv[1]
lacking = []
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        lacking.append(f"{name} ({error})")
try:
    os.makedirs(folder, exist_ok=True)
    free, why = shutil.disk_usage(folder).free >> 20, "" if os.access(folder, os.W_OK) else "it may not be written"
except OSError as error:
    free, why = 0, error.strerror
print(json.dumps({"python": list(sys.version_info[:2]), "lacking": lacking, "free": free, "why": why}))
"""
_MODULES = ("avocado", "click", "filelock", "packaging", "paramiko", "platformdirs", "psutil", "pydantic", "qemu.qmp")
_OLDEST_PYTHON = [3, 11]


@dataclass(frozen=True)
class _Found:
    """What a slot has."""

    machine: Machine
    qemus: Mapping[str, str]
    missing: Mapping[str, str]
    kernel: str


def described(installed: Distribution) -> dict[str, str]:
    """The files by which another machine's Python knows this package; those of a checkout have other names."""
    metadata = f"Metadata-Version: 2.1\nName: {installed.name}\nVersion: {installed.version}\n"
    return {"METADATA": metadata, "entry_points.txt": installed.read_text("entry_points.txt") or ""}


@dataclass
class Slots:
    """The slots of a plan. Tests are looked for in `root`, which is put there with the package."""

    texts: Mapping[str, SlotText]
    hosts: Mapping[str, SshHost]
    root: Path
    references: Sequence[str]
    _commands: list[SlotCommand] = field(default_factory=list)

    def make_ready(self, qemus: Mapping[str, str], images: Sequence[str], say: Progress) -> Readiness:
        """Ask each slot what it has, put there what it lacks, and have it look for QEMUs and images.

        A slot that cannot be used, or that lacks a QEMU which another one has, is left out, with a remark.

        Raises:
            UserError: no slot can be used.
        """
        with tempfile.TemporaryDirectory(prefix="vfio-user-slots-") as folder, ThreadPoolExecutor(8) as threads:
            package = make_archive(Path(folder) / "package.tar", self._package(Path(folder)), follow=True)
            cache = make_archive(Path(folder) / "cache.tar", _cached(qemus, images, say))
            wanted = json.dumps({"qemus": qemus, "images": list(images)})
            asked = {name: threads.submit(self._ready, name, package, cache, wanted, say) for name in self.texts}
            found, remarks = {}, []
            for name, answer in asked.items():
                try:
                    found[name] = answer.result()
                except UserError as error:
                    remarks.append(f"slot {name} is left out: {error}{f' ({error.hint})' if error.hint else ''}")
        had = {qemu for slot in found.values() for qemu in slot.qemus}
        for name, slot in list(found.items()):
            if lacking := [f"QEMU {qemu}: {why}" for qemu, why in slot.missing.items() if qemu in had]:
                remarks.append(f"slot {name} is left out: another one has what it lacks: {'; '.join(lacking)}")
                del found[name]
        if not found:
            raise UserError(f"of {counted(len(remarks), 'slot')} none can be used", hint="\n".join(remarks))
        for remark in remarks:
            say(remark)
        self._commands = [self._command(name, package) for name in found]
        first = next(iter(found.values()))
        return Readiness(
            tuple(
                Slot(name=name, machine=one.machine, parallel=self.texts[name].parallel) for name, one in found.items()
            ),
            first.qemus,
            first.missing,
            first.kernel,
            tuple(remarks),
        )

    def settings(self) -> Mapping[str, Any]:
        """Our spawner, and how it runs a test on each slot."""
        return {
            "run.spawner": NAME,
            "run.max_parallel_tasks": sum(slot.parallel for slot in self._commands),
            SETTING: setting(self._commands),
        }

    def ran(self, test: Mapping[str, Any]) -> Ran:
        """What the spawner has written down."""
        return ran(Path(str(test["logdir"])))

    def close(self) -> None:
        """What runs there ends with its connection."""

    # -- one slot ----------------------------------------------------------------------------------------------------

    def _ready(self, name: str, package: Archive, cache: Archive, wanted: str, say: Progress) -> _Found:
        self._probe(name, package.mib + cache.mib)
        text = self.texts[name]
        for archive, target in ((package, self._package_folder(name, package)), (cache, f"{text.folder}/cache")):
            if self.put(name, archive, target):
                say(f"slot {name} was given {archive.mib} MiB ({archive.path.stem})")
        answer = self._asked(name, [*self._python(name, package), "ready", wanted], READY_SECONDS)
        return _Found(Machine(**answer["machine"]), answer["qemus"], answer["missing"], answer["kernel"])

    def _probe(self, name: str, mib: int) -> None:
        text = self.texts[name]
        said = self._asked(name, [text.python, "-c", _PROBE, text.folder, *_MODULES], PROBE_SECONDS)
        where = f"{text.python} on {text.host}"
        if said["python"] < _OLDEST_PYTHON:
            raise UserError(f"{where} is Python {'.'.join(map(str, said['python']))}", hint="3.11 or later is needed")
        if said["lacking"]:
            raise UserError(
                f"{where} lacks {', '.join(said['lacking'])}",
                hint="pip install '/path/to/vfio-user[test]' there",
            )
        if said["why"]:
            raise UserError(f"{text.folder} on {text.host}: {said['why']}")
        if said["free"] < mib + NEEDED_MIB:
            raise UserError(f"{text.folder} on {text.host} has {said['free']} MiB free, {mib + NEEDED_MIB} are needed")

    def _asked(self, name: str, argv: Sequence[str], seconds: float) -> dict[str, Any]:
        """The JSON that a program there says last."""
        done = run_to_end(self.texts[name].host, self.hosts[name].command(argv), seconds)
        lines = done.stdout.strip().splitlines() or [""]
        try:
            answer = json.loads(lines[-1])
        except (ValueError, RecursionError):
            answer = None
        if done.returncode != 0 or not isinstance(answer, dict):
            raise UserError(f"{self.texts[name].host}: {_last(done)}")
        return answer

    def put(self, name: str, archive: Archive, target: str) -> bool:
        """Have an archive unpacked in a folder of a slot; returns whether it was not there.

        Raises:
            UserError: it did not arrive as it is, or there is no space.
        """
        host = self.hosts[name]
        module = [sys.executable, "-P", "-m", "vfio_user.harness.hosts.archives"]
        arguments = [json.dumps(host.where()), str(archive.path), archive.digest, self.texts[name].folder, target]
        command = host.through.command([*module, *arguments])
        return bool(json.loads(answer_of(self.texts[name].host, command, READY_SECONDS)))

    # -- what is put there, and how it is run -----------------------------------------------------------------------

    def _package(self, scratch: Path) -> Iterator[Member]:
        for package in _PACKAGES:
            yield Member(Path(str(package.__file__)).parent, package.__name__)
        for name, content in described(distribution("vfio-user")).items():  # devices are found by these
            text = scratch / name
            text.write_text(content)
            yield Member(text, f"vfio_user-0.dist-info/{name}")
        for reference in self.references:
            path = Path(reference.partition(":")[0])
            if path.is_absolute():  # with what it may import from beside it
                yield from (Member(beside, f"{OUTSIDE}{beside}") for beside in path.parent.glob("*.py"))
            else:
                yield Member(self.root / path.parts[0], path.parts[0])

    def _package_folder(self, name: str, package: Archive) -> str:
        return f"{self.texts[name].folder}/package-{package.digest[:16]}"

    def _python(self, name: str, package: Archive) -> list[str]:
        folder = self._package_folder(name, package)
        environment = {
            ENVIRONMENT: f"{self.texts[name].folder}/cache",
            "PYTHONPATH": folder,
            "PYTHONDONTWRITEBYTECODE": "",
            "VFIO_USER_SLOT": name,
        }
        given = [f"{key}={value}" for key, value in environment.items()]
        return ["env", "-C", folder, *given, self.texts[name].python, "-P", "-m", "vfio_user.nightly.over_there"]

    def _command(self, name: str, package: Archive) -> SlotCommand:
        text = self.texts[name]
        command = self.hosts[name].command(self._python(name, package))
        return SlotCommand(name, text.parallel, command, f"{text.folder}/tests")


def hosts_of(plan: Plan) -> dict[str, SshHost]:
    """The SSH servers of a plan's slots, by their names."""
    base = plan.path.parent.absolute()

    def file(given: str) -> str:
        return str(base / Path(given).expanduser()) if given else ""

    return {
        name: SshHost(
            name,
            slot.host,
            slot.host,
            port=slot.port,
            user=slot.user or getpass.getuser(),
            key=file(slot.identity),
            known_hosts=file(slot.known_hosts),
            python=slot.python,
        )
        for name, slot in plan.text.slots.items()
    }


def place_of(plan: Plan, hosts: Mapping[str, SshHost] | None = None) -> Place:
    """Where the cells of a plan run: its slots, or this machine. `hosts` are those that `hosts_of` gives."""
    if not plan.text.slots:
        return Here(plan.text.parallel)
    root = Path.cwd()
    references = [reference for each in plan.references.values() for reference in each]
    return Slots(plan.text.slots, hosts or hosts_of(plan), root, references)


def _cached(qemus: Mapping[str, str], images: Sequence[str], say: Progress) -> Iterator[Member]:
    """Of this machine's cache, what a slot needs of it. A QEMU that is elsewhere is looked for on the slot."""
    base = cache_dir()
    for wanted in qemus.values():
        try:
            folders = ensure_qemu(wanted or None, progress=say).folders
        except UserError:
            continue  # the slots say what they have
        for folder in folders:
            yield Member(folder, str(folder.relative_to(base)))
    for image in images:
        for path, whole in files_of_image(image):
            yield Member(path, str(path.relative_to(base)), whole)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [*done.stderr.strip().splitlines(), *done.stdout.strip().splitlines()]
    return lines[-1] if lines else f"status {done.returncode}"
