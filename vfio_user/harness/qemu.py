"""Which QEMU to use: one that is there and can do vfio-user, else one from Debian's packages in the cache.

QEMU has `vfio-user-pci` since 10.1 (hw/vfio-user/ in its source). A QEMU in the cache was never installed: it is
called through its own dynamic loader, so that it runs beside the machine's older C library.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, field_validator

from userdev.counted import counted
from userdev.errors import UserError, meant
from userdev.process import answer_of
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, has_apt, quiet

ENVIRONMENT = "VFIO_USER_QEMU"
PROGRAM = "qemu-system-x86_64"
DEVICE = "vfio-user-pci"
FIRST_VERSION = Version("10.1")
ANSWER_SECONDS = 30.0  # seconds for `--version` and `-device help`, which take a hundredth of one


@dataclass(frozen=True)
class Qemu:
    """A QEMU that can be run.

    `argv` goes before QEMU's own arguments. `origin` says who chose it: "option", "environment", "path" or "cache".
    `digest` identifies the program and its firmware.
    """

    argv: tuple[str, ...]
    version: Version
    version_text: str
    origin: str
    digest: str

    @property
    def folders(self) -> list[Path]:
        """Those of the cache that it is made of: what another host needs to run it."""
        return _installations(self.argv)

    def devices(self) -> frozenset[str]:
        """Every name that `-device` takes."""
        return _devices(self.argv)


class QemuRecipe(BaseModel):
    """One entry of qemu_manifest.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: str
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    minimum: str

    @field_validator("minimum")
    @classmethod
    def _is_version(cls, text: str) -> str:
        if not re.fullmatch(r"\d+\.\d+(\.\d+)?", text):
            raise ValueError(f"{text!r} is not a version such as 10.1")
        return text


@functools.cache
def manifest() -> Mapping[str, QemuRecipe]:
    """The QEMUs that can be installed, by name."""
    text = resources.files(__package__).joinpath("qemu_manifest.yaml").read_text()
    return {name: QemuRecipe.model_validate(entry) for name, entry in yaml.safe_load(text).items()}


def find_qemu(explicit: str | None = None) -> Qemu:
    """The QEMU to use: `explicit`, else $VFIO_USER_QEMU, else the one on PATH, else the cache's `default`.

    The first two are a path, a command or a name of the manifest, and have to be good. What is found on PATH is
    passed over when it is too old.

    Raises:
        UserError: there is none.
    """
    for choice, origin in ((explicit, "option"), (os.environ.get(ENVIRONMENT), "environment")):
        if choice:
            return _chosen(choice, origin)
    rejected = []
    on_path = shutil.which(PROGRAM)
    if on_path:
        try:
            return examine((on_path,), "path")
        except UserError as error:
            rejected.append(str(error))
    if cached := installed_qemu("default"):
        return cached
    raise UserError(_needed(*rejected), hint=_how_to_get_one())


def ensure_qemu(explicit: str | None = None, *, progress: Progress = quiet) -> Qemu:
    """`find_qemu`, and when there is none, install one into the cache.

    Raises:
        UserError: neither works.
    """
    choice = explicit or os.environ.get(ENVIRONMENT)
    if choice and choice in manifest() and not installed_qemu(choice):
        return install_qemu(choice, progress=progress)
    try:
        return find_qemu(explicit)
    except UserError:
        if choice or not has_apt():
            raise
    return install_qemu(progress=progress)


def install_qemu(name: str = "default", *, progress: Progress = quiet) -> Qemu:
    """Download a QEMU of the manifest into the cache, or bring it up to date; nothing outside the cache changes.

    Raises:
        UserError: there is no such name, no apt, no network or no space, or when the archive's is too old.
    """
    if name not in manifest():
        raise UserError(
            f"no QEMU is called {name}", hint=f"{meant(name, manifest())}there are: {', '.join(manifest())}"
        )
    if not has_apt():
        raise UserError(_needed("this machine has no apt to fetch one with"), hint=_how_to_get_one())
    recipe = manifest()[name]
    archive = DebianArchive(recipe.suites)
    with locked(f"qemu-{name}"):
        debs = archive.fetch(recipe.packages, progress=lambda message: progress(f"QEMU: {message}"))
        digest = _digest(deb.name for deb in debs)
        have = installed_qemu(name)
        if have and have.digest == digest:
            return have
        progress(f"QEMU: unpacking {counted(len(debs), 'package')}")
        with publish(_home(name)) as root:
            archive.unpack(debs, root)
            (root / _RECORD).write_text(json.dumps({"digest": digest, "packages": [deb.name for deb in debs]}))
            examine(_private_argv(root), "cache", digest=digest, minimum=parse_version(recipe.minimum))
        qemu = installed_qemu(name)
        if qemu is None:
            raise UserError(f"{_home(name)} vanished while QEMU was installed there", hint="install it again")
        return qemu


def installed_qemu(name: str) -> Qemu | None:
    """The cache's QEMU of that name, or None when it is not installed, broken or older than the manifest wants."""
    root = _home(name)
    try:
        digest = json.loads((root / _RECORD).read_text())["digest"]
        return examine(_private_argv(root), "cache", digest=digest, minimum=parse_version(manifest()[name].minimum))
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def examine(argv: Sequence[str], origin: str, *, digest: str | None = None, minimum: Version = FIRST_VERSION) -> Qemu:
    """Run a QEMU to learn what it is.

    Raises:
        UserError: it does not run, is too old or lacks vfio-user-pci.
    """
    name = _program(argv)
    text = _said(argv, "--version").partition("\n")[0].strip()
    if not text.startswith(_BANNER):
        raise UserError(f"{name} is not a QEMU: --version says {text[:80]!r}")
    version = parse_version(text)
    if version < max(minimum, FIRST_VERSION):
        raise UserError(f"{name} is QEMU {version}, too old", hint=_needed())
    if digest is None:
        about = Path(name).resolve().stat()
        digest = _digest((str(Path(name).resolve()), str(about.st_size), str(about.st_mtime_ns), text))
    qemu = Qemu(tuple(argv), version, text, origin, digest)
    if DEVICE not in qemu.devices():
        raise UserError(f"{name} is QEMU {version}, but was built without {DEVICE}", hint=_needed())
    return qemu


def parse_version(text: str) -> Version:
    """The first X.Y or X.Y.Z in a text; ValueError when there is none."""
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    if not found:
        raise ValueError(f"no version in {text!r}")
    return Version(found[0])


def parse_devices(text: str) -> frozenset[str]:
    """The names in what `-device help` prints."""
    return frozenset(re.findall(r'^name "([^"]+)"', text, re.MULTILINE))


_RECORD = "install.json"
_BANNER = "QEMU emulator version "


def _home(name: str) -> Path:
    return cache_dir() / "qemu" / name


def _private_argv(root: Path) -> tuple[str, ...]:
    """How to run the QEMU unpacked at `root` with its own C library, libraries and firmware."""
    firmware = [root / "usr/share/qemu", root / "usr/share/seabios", root / "usr/lib/ipxe/qemu"]
    return (
        str(root / "usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        str(root / "usr/lib/x86_64-linux-gnu"),
        str(root / "usr/bin" / PROGRAM),
        *(word for folder in firmware if folder.is_dir() for word in ("-L", str(folder))),
    )


def _chosen(choice: str, origin: str) -> Qemu:
    if choice in manifest():
        qemu = installed_qemu(choice)
        if qemu is None:
            raise UserError(f"the QEMU called {choice} is not installed", hint=f"vfio-user qemu install {choice}")
        return Qemu(qemu.argv, qemu.version, qemu.version_text, origin, qemu.digest)
    path = shutil.which(choice)
    if path is None:
        hint = f"{meant(choice, manifest())}name a QEMU's path, or one of: {', '.join(manifest())}"
        raise UserError(f"{choice} is no program that can be run", hint=hint)
    return examine((str(Path(path).absolute()),), origin)


@functools.cache
def _devices(argv: tuple[str, ...]) -> frozenset[str]:
    return parse_devices(_said(argv, "-device", "help"))


def _installations(argv: Sequence[str]) -> list[Path]:
    """The folders of the cache that a command is from."""
    base = cache_dir() / "qemu"
    inside = (Path(word) for word in argv if Path(word).is_relative_to(base))
    return sorted({base / path.relative_to(base).parts[0] for path in inside})


def _said(argv: Sequence[str], *question: str) -> str:
    """What a QEMU answers. That of one in the cache is kept beside it, and holds until one of its programs changes."""
    answer = None
    for root in _installations(argv):
        answer = root / f"said{'-'.join(('', *question))}.txt"
        with suppress(OSError):
            programs = [Path(word).stat().st_ctime_ns for word in argv if word.startswith("/") and Path(word).is_file()]
            if Path(argv[0]).is_file() and answer.stat().st_mtime_ns > max(programs):
                return answer.read_text()
    command = (*argv, *question)
    said = answer_of(_program(command), command, ANSWER_SECONDS)
    if answer is not None:
        with suppress(OSError):  # another's cache, perhaps, or a full disk
            _write_at_once(answer, said)
    return said


def _write_at_once(path: Path, text: str) -> None:
    """Write a file that others may be reading."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def program_of(command: Sequence[str]) -> Path:
    """The QEMU in a command that may begin with its loader."""
    return Path(_program(command))


def manifest_name(command: Sequence[str]) -> str:
    """The name by which the manifest has the QEMU of a command; "" where that is not one of the cache's."""
    return next((folder.name for folder in _installations(command)), "")


def _program(command: Sequence[str]) -> str:
    """The same, as it is written."""
    return next((word for word in command if word.endswith(f"/{PROGRAM}")), command[0])


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _needed(*findings: str) -> str:
    sentence = f"QEMU {FIRST_VERSION} or later with {DEVICE} is needed"
    return "; ".join((sentence, *findings))


def _how_to_get_one() -> str:
    if has_apt():
        return "vfio-user qemu install puts one into the cache"
    return f"install it, or build it, and put {PROGRAM} on PATH or name it by --qemu or {ENVIRONMENT}"
