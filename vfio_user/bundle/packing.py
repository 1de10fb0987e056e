"""From a results folder to a bundle: what of it is worth taking, without secrets, within a bound, the best first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from userdev.errors import UserError, about
from userdev.writable import require_writable
from vfio_user.bundle.cores import COMPRESSED, TooLarge, pack_core
from vfio_user.bundle.model import INPUTS, MANIFEST, Bundle, Content, Outcome, Recipe, without_secrets
from vfio_user.bundle.secrets import Secrets
from vfio_user.harness.artifacts import write_text
from vfio_user.harness.digests import file_digest
from vfio_user.page.names import COMMANDS, GUEST_COMMANDS, INDEX, MIGRATIONS, PROCESSES, RECORD, TIMELINE

USUAL_MIB = 200
"""What a bundle may have, where nothing else is said: what is sent and kept without a thought."""

# What is taken, the best first: what does not fit is left out. All but traces and cores are text.
TAKEN = (
    "error.txt",
    RECORD,
    "report.json",
    "summary.json",
    "versions.json",
    TIMELINE,
    PROCESSES,
    COMMANDS,
    "*.faults.yaml",
    "*.backtrace.txt",
    MIGRATIONS,
    "*.server.log",
    "*.qemu.log",
    "*.interposer.log",
    "*.dmesg.log",
    "*.pci.log",
    "*.console.log",
    "*.qmp.log",
    "*.trace",
    GUEST_COMMANDS,
    "*.console.timed.log",
    "*.trace.log",
    "*.core",
    f"*.core{COMPRESSED}",
)
_OF_BYTES = frozenset({".trace"})
_CORES = frozenset({".core", COMPRESSED})

_NOT_TAKEN = "no kind of file that a bundle has"


def checked_place(place: Path) -> Path:
    """A place for a new bundle, by its absolute path: nothing is there, or an empty folder.

    Raises:
        UserError: something is, or nothing can be written there.
    """
    is_empty_folder = place.is_dir() and not any(place.iterdir())
    if not is_empty_folder and (place.exists() or place.is_symlink()):
        raise UserError(f"{place} is there already, and a bundle is a folder of its own", hint="name another folder")
    require_writable(place, makes_folders=True)
    return place.absolute()


def pack(
    folder: Path,
    place: Path,
    recipe: Recipe,
    outcome: Outcome,
    *,
    of: str,
    inputs: Mapping[str, Path] | None = None,
    secrets: Secrets,
    most: int = USUAL_MIB << 20,
) -> Bundle:
    """Make a bundle of `most` bytes at `place`, of a run whose results are in `folder`; bundle.json is written last.

    `inputs` are the files that the command line named, by the names that the recipe has for them.

    Raises:
        UserError: something is at that place, or `most` is too little for the recipe alone.
        OSError: it cannot be written.
    """
    place = checked_place(place)
    place.mkdir(parents=True, exist_ok=True)
    packed = _Packing(place, secrets, most)
    for name, path in (inputs or {}).items():
        packed.take(path, f"{INPUTS}/{name}")
    for path in _in_order(folder):
        packed.take(path, path.name)
    packed.left_out |= dict.fromkeys(_others(folder), _NOT_TAKEN)
    packed.write_index()
    bundle = Bundle(
        of=secrets.text(of),
        made=datetime.now().astimezone().isoformat(timespec="seconds"),
        outcome=without_secrets(outcome, secrets),
        recipe=without_secrets(recipe, secrets),
    )
    while len(text := (made := packed.described(bundle)).document()) > packed.room:
        if not packed.contents:
            shutil.rmtree(place)
            raise UserError(f"a bundle of {most} bytes has no room for its recipe", hint="--bundle-size takes MiB")
        packed.give_up_last()
    write_text(place / MANIFEST, text.decode())
    return made


@dataclass
class _Packing:
    """A bundle that is being made: what is in it so far, and the bytes that are left."""

    place: Path
    secrets: Secrets
    room: int
    contents: dict[str, Content] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def take(self, path: Path, name: str) -> None:
        """Have a file in it, or say why not."""
        if path.is_symlink() or not path.is_file():
            self.left_out[name] = "no file"
            return
        target = self.place / name
        target.parent.mkdir(exist_ok=True)
        try:
            target = self._written(path, target)
        except TooLarge:
            self.left_out[name] = f"too large: there were {self.room} bytes left, and it has {path.stat().st_size}"
            return
        self._took(target)

    def write_index(self) -> None:
        """Write the page of what is in it."""
        from vfio_user.page.document import write_page  # of bundles alone: not for who does without

        page = self.place / INDEX
        try:
            write_page(self.place, page)
        except UserError as error:
            self.left_out[INDEX] = str(error)
            return
        if page.stat().st_size > self.room:
            self.left_out[INDEX] = f"too large: it has {page.stat().st_size} bytes; `vfio-user show` writes it"
            page.unlink()
            return
        self._took(page)

    def described(self, bundle: Bundle) -> Bundle:
        """A bundle that says what is in this one."""
        return bundle.model_copy(update={"contents": self.contents, "left_out": self.left_out})

    def give_up_last(self) -> None:
        """Let go of what was taken last."""
        name, content = self.contents.popitem()
        (self.place / name).unlink()
        self.room += content.size
        self.left_out[name] = f"too large: it has {content.size} bytes"

    def _took(self, target: Path) -> None:
        size = target.stat().st_size
        self.room -= size
        self.contents[str(target.relative_to(self.place))] = Content(size=size, sha256=file_digest(target))

    def _written(self, path: Path, target: Path) -> Path:
        """Write a file without secrets; where."""
        if path.suffix in _CORES:
            target = target if target.suffix == COMPRESSED else target.with_name(target.name + COMPRESSED)
            pack_core(path, target, self.secrets, self.room)
            return target
        if path.stat().st_size > self.room:
            raise TooLarge
        data = _clean(path.read_bytes(), path.suffix, self.secrets)
        if len(data) > self.room:
            raise TooLarge
        with about(target):
            target.write_bytes(data)
        return target


def _clean(data: bytes, suffix: str, secrets: Secrets) -> bytes:
    """What a file has, without secrets: JSON is JSON still, and a trace as long as it was."""
    if suffix in _OF_BYTES:
        return secrets.data(data)
    text = data.decode("utf-8", "surrogateescape")
    if suffix == ".json":
        with suppress(ValueError, RecursionError):
            return (json.dumps(secrets.values(json.loads(text)), indent=2) + "\n").encode()
    return secrets.text(text).encode("utf-8", "surrogateescape")


def _in_order(folder: Path) -> Iterator[Path]:
    """The files that are taken, the best first, each once."""
    known: set[Path] = set()
    for pattern in TAKEN:
        for path in sorted(folder.glob(pattern)):
            if path not in known:
                known.add(path)
                yield path


def _others(folder: Path) -> Iterator[str]:
    """Files beside those; folders are other runs'."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() and path.name != INDEX and not any(path.match(pattern) for pattern in TAKEN):
            yield path.name
