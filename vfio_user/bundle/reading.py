"""A bundle that is there, read whole: or the sentence that says what it is instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from userdev.errors import UserError
from vfio_user.bundle.model import FORMAT, INPUTS, MANIFEST, OWN_INPUTS, Bundle, Content
from vfio_user.harness.digests import file_digest


@dataclass(frozen=True)
class OpenBundle:
    """A bundle and its folder."""

    folder: Path
    bundle: Bundle

    @property
    def traces(self) -> dict[str, Path]:
        """Its traces, by the names of the servers that they are of."""
        names = (Path(name) for name in self.bundle.contents)
        return {name.stem: self.folder / name for name in names if name.suffix == ".trace"}

    @property
    def arguments(self) -> list[str]:
        """The recipe's, with the files that are in here."""
        inputs = str((self.folder / INPUTS).absolute())
        return [word.replace(OWN_INPUTS, inputs) for word in self.bundle.recipe.arguments]


def is_bundle(path: Path) -> bool:
    """Whether that is a folder which says that it is a bundle."""
    return (path / MANIFEST).is_file()


def open_bundle(path: Path) -> OpenBundle:
    """The bundle in a folder, all of which is there and as it was written.

    Raises:
        UserError: it is none, of a newer format, cut or changed.
    """
    manifest = path / MANIFEST
    if not path.exists():
        raise UserError(f"there is no {path}", hint="a bundle is a folder: `--bundle DIR` makes one")
    if not manifest.is_file():
        raise UserError(
            f"{path} is no bundle: it has no {MANIFEST}",
            hint="one whose making was ended has none either, as that is written last",
        )
    bundle = _parsed(manifest)
    for wrong in _wrong(path, bundle):
        raise UserError(f"the bundle {path} is not whole: {wrong}", hint="copy it again, all of the folder")
    return OpenBundle(path, bundle)


def _parsed(manifest: Path) -> Bundle:
    try:
        text = manifest.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {manifest}: {error.strerror}") from None
    try:
        document = json.loads(text)
        written = document["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{manifest} is cut off, or no bundle's", hint="copy it again, all of the folder") from None
    if isinstance(written, int) and written > FORMAT:
        raise UserError(
            f"{manifest.parent} is a bundle of format {written}, and this vfio-user knows up to {FORMAT}",
            hint="a newer vfio-user reads it",
        )
    try:
        return Bundle.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{manifest}: {where}: {first['msg']}", hint="`vfio-user docs bundles` has it") from None


def _wrong(path: Path, bundle: Bundle) -> Iterator[str]:
    """What is not as the bundle says of its files."""
    for name, content in bundle.contents.items():
        try:
            yield from _wrong_file(path / name, name, content)
        except OSError as error:  # a name that is too long, say
            yield f"{name}: {error.strerror}"


def _wrong_file(file: Path, name: str, content: Content) -> Iterator[str]:
    if file.is_symlink() or not file.is_file():
        yield f"{name} is missing"
    elif (size := file.stat().st_size) != content.size:
        yield f"{name} has {size} bytes of {content.size}"
    elif file_digest(file) != content.sha256:
        yield f"{name} was changed"
