"""Recipes: what a guest image is made of, as YAML that a person writes.

A recipe names Debian packages and picks files out of them; libraries, and modules that modules need, follow by
themselves. See guest_images/recipes/minimal.yaml for one, docs/how-to/guest-image.md for
what somebody adds to it.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Annotated, Any

from pydantic import AfterValidator, StringConstraints, ValidationError

import vfio_user
from userdev.errors import UserError, meant
from userdev.written import Written, WrittenDocument, read_table, refused

ROOM = Path(vfio_user.__file__).parent / "guest_images"
"""The folder guest_images of a checkout, to which a link leads there; a wheel has its files."""
RECIPES = ROOM / "recipes"


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._-]*$")]
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line: what is in a recipe gets into the guest's settings."""


MOUNTED = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/run")
"""Where a guest mounts file systems as it boots (rootfs/etc/rc and fstab), or has a link to one."""


def _in_the_guest(path: str) -> str:
    if not re.fullmatch(r"/[^\x00-\x1f\x7f]+", path):
        raise ValueError("a path in the guest begins with /, and is one line")
    for mount in MOUNTED:
        if PurePosixPath(normpath("/" + path.lstrip("/"))).is_relative_to(mount):
            raise ValueError(f"the guest has a file system of its own at {mount}, in which nothing of an image is")
    return path


GuestPath = Annotated[str, AfterValidator(_in_the_guest)]


class OwnKernel(Written):
    """A kernel of somebody's own, in place of a package's: what `make bzImage modules_install` leaves."""

    image: Path  # arch/x86/boot/bzImage
    modules: Path  # the folder lib/modules/RELEASE below INSTALL_MOD_PATH


class ImageRecipe(Written):
    """One guest image. The lists of a recipe that `extends` another are added to the other's."""

    name: Name
    description: str
    suites: tuple[Name, ...]  # Debian suites, the newest version of a package in any of them wins
    kernel: Name  # the package that brings boot/vmlinuz-* and its modules
    packages: tuple[Name, ...]  # their dependencies are fetched too, and shipped where `files` wants them
    files: tuple[Text, ...]  # globs of files and folders in the packages; a folder comes whole
    exclude: tuple[Text, ...] = ()  # globs of what `files` would bring and nobody needs
    modules: tuple[Name, ...] = ()  # kernel modules to have at hand
    autoload: tuple[Name, ...] = ()  # modules to load at boot, in order
    services: dict[Name, Text] = {}  # name: command, started at boot and again when it ends
    own_files: dict[GuestPath, Path] = {}  # where the guest has it: a file or a folder of this machine
    own_kernel: OwnKernel | None = None  # instead of `kernel`; both are named from the recipe's folder

    @property
    def all_modules(self) -> tuple[str, ...]:
        """The names of the kernel modules that go into the image: those to be there, and those loaded at boot."""
        return (*self.modules, *self.autoload)


class _Recipe(ImageRecipe):
    """A recipe as a file has it."""

    extends: Any = None


def recipe_names() -> list[str]:
    """The recipes that come with this package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str) -> ImageRecipe:
    """The recipe called `name`, or in the file `name` when that ends in `.yaml`.

    Raises:
        UserError: an unknown name or a recipe with a mistake, which it names.
    """
    if name.endswith(".yaml"):
        return _validated(Path(name))
    if name not in recipe_names():
        known = ", ".join(recipe_names())
        hint = f"{meant(name, recipe_names())}known images: {known}; or give a recipe's file, .yaml"
        raise UserError(f"there is no guest image {name!r}", hint=hint)
    return _validated(RECIPES / f"{name}.yaml")


def _validated(path: Path) -> ImageRecipe:
    fields = _merged(path, ())
    try:
        return ImageRecipe.model_validate({**fields, "name": path.stem})
    except ValidationError as error:
        raise refused(str(path), _read(path).root, error.errors()) from None


def _merged(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The fields of the recipe at `path`, those that it extends included."""
    if path in above:
        raise UserError(f"recipe {path} extends itself, by way of {' and '.join(p.stem for p in above)}")
    written = _read(path)
    fields = _resolved(written, path)
    if fields.get("packages") and not fields.get("files"):
        raise written.refuse(("packages",), "packages: nothing of them is taken without `files`", hint=_TAKEN)
    parent = fields.pop("extends", None)
    if parent is None:
        return fields
    if not isinstance(parent, str) or not re.fullmatch(r"[\w.+-]+", parent) or parent.endswith(".yaml"):
        hint = "a recipe's name, without .yaml: of one that comes with this package, or is in the same folder"
        raise written.refuse(("extends",), f"extends: {parent!r:.100} is no recipe's name", hint=hint)
    folder = RECIPES if (RECIPES / f"{parent}.yaml").exists() else path.parent
    if not (folder / f"{parent}.yaml").exists():
        beside = {each.stem for each in folder.glob("*.yaml") if each != path}  # perhaps recipes, perhaps anything
        near = meant(parent, sorted({*recipe_names(), *beside}))
        hint = f"{near}there are: {', '.join(recipe_names())}; or one in the same folder"
        raise written.refuse(("extends",), f"extends: there is no recipe {parent!r:.100}", hint=hint)
    base = _merged(folder / f"{parent}.yaml", (*above, path))
    return {key: _join(base.get(key), fields.get(key)) for key in {**base, **fields}}


def _resolved(written: WrittenDocument[dict[str, Any]], path: Path) -> dict[str, Any]:
    """The fields of the recipe at `path`, with files of this machine by their whole paths: each is there."""
    fields = written.value
    for field in ("own_files", "own_kernel"):
        if isinstance(table := fields.get(field), dict):
            for key, value in table.items():
                if (
                    not isinstance(value, str)
                    or not (file := (path.parent / Path(value).expanduser()).absolute()).exists()
                ):
                    raise written.refuse((field, key), f"{field}: {key}: there is no file {value!r:.200}", hint=_FROM)
                table[key] = str(file)
    return fields


_TAKEN = "name there what the guest is to have of them, as `files: [usr/bin/gdb]`; libraries follow by themselves"
_FROM = "files of yours are named from the folder in which the recipe is"


def _join(base: Any, own: Any) -> Any:
    if own is None or base is None:
        return base if own is None else own
    if isinstance(base, list) and isinstance(own, list):
        return base + own
    if isinstance(base, dict) and isinstance(own, dict):
        return {**base, **own}
    return own


def _read(path: Path) -> WrittenDocument[dict[str, Any]]:
    """The fields of one file, each as it should be: what is missing may be in the one that it extends."""
    fields, root = read_table(path, "recipe", _Recipe.model_fields)
    try:
        _Recipe.model_validate(fields)
    except ValidationError as error:
        mistakes = [each for each in error.errors() if each["type"] != "missing" or len(each["loc"]) > 1]
        if mistakes:
            raise refused(str(path), root, mistakes) from None
    return WrittenDocument(fields, str(path), root)
