"""Which guest-driven tests there are, and how avocado is told of those that are meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import vfio_user
from userdev.errors import UserError, meant

NIGHTLY = "nightly"
"""The tag of tests that take too long for every change."""


def filters(tags: tuple[str, ...], *, everything: bool) -> list[str]:
    """Avocado's filters: each is tags with commas between them, of which a test has all, and none behind a minus.

    Without `everything` nightly tests are left out where they are not asked for.
    """
    if everything:
        return list(tags)
    return [tag if NIGHTLY in tag.split(",") else f"{tag},-{NIGHTLY}".strip(",") for tag in tags or ("",)]


def suite_folder() -> Path | None:
    """The folder of the project's own guest-driven tests: beside the package, or here. None outside of a checkout."""
    candidates = (parent / "avocado_tests" for parent in (Path(vfio_user.__file__).parent.parent, Path.cwd()))
    return next((folder for folder in candidates if folder.is_dir()), None)


def all_tests(folder: Path | None) -> list[str]:
    """All test files of the project's own.

    Raises:
        UserError: this is no checkout, which has them.
    """
    if folder is None:
        hint = "give FILEs with tests of your own, or run this in a checkout"
        raise UserError(
            "the project's own guest-driven tests are in its repository, and this is no checkout", hint=hint
        )
    return [_named(path, folder) for path in sorted(folder.glob("test_*.py"))]


def reference(test: str, folder: Path | None, beside: Path | None = None) -> str:
    """A test as avocado wants it, from a path, or a name of the folder with or without `test_` and `.py`.

    A path is one from the folder `beside` where that has it, or from here. What is behind the colon is a class or
    CLASS.METHOD, and means these alone: for avocado it is a regular expression, which may be found anywhere in a name.
    """
    name, _, chosen = test.partition(":")
    own = (folder / f"test_{name}.py", folder / name, folder / f"{name}.py") if folder else ()
    for path in (*([beside / name] if beside else []), Path(name), *own):
        if path.is_file():
            exactly = f"^{re.escape(chosen)}{'$' if '.' in chosen else '[.]'}"
            return _named(path, folder) + (f":{exactly}" if chosen else "")
    known = [topic_of(path) for path in all_tests(folder)] if folder else []
    around = ((beside or Path()) / name).parent
    near = meant(topic_of(name), known) or meant(Path(name).name, sorted(path.name for path in around.glob("*.py")))
    path = "give the path of a file that has tests; the project's own are in its checkout, CHECKOUT/avocado_tests"
    hint = f"{near}there are: {', '.join(known)}" if known else f"{near}{path}"
    raise UserError(f"there is no test file {name}", hint=hint)


def topic_of(file: str) -> str:
    """What a file of tests is of: its name without folder, `test_` and `.py`."""
    return Path(file).stem.removeprefix("test_")


def chosen_of(reference: str) -> str:
    """The class or CLASS.METHOD that a reference is of; "": all of its file."""
    pattern = reference.partition(":")[2].removeprefix("^").removesuffix("$").removesuffix("[.]")
    return re.sub(r"\\(.)", r"\1", pattern)


def package_folder(file: Path) -> Path | None:
    """The folder in which the package of a file is, None where it is in none: where `import` finds it by its name."""
    package = folder = file.parent
    while (folder / "__init__.py").exists() and folder != folder.parent:
        folder = folder.parent
    return None if folder == package else folder


def package_folders(references: Iterable[str], root: Path) -> list[Path]:
    """The folders in which the packages of test files are, but for `root`, from which the files are named."""
    found = dict.fromkeys(package_folder(root / name.partition(":")[0]) for name in references)
    return [folder for folder in found if folder not in (None, root)]


def _named(path: Path, folder: Path | None) -> str:
    """A file as its tests are to be named: from the folder that has the project's own, where it is below that."""
    root, path = folder.parent if folder else Path.cwd(), path.absolute()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
