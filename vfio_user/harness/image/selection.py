"""From unpacked packages to a guest's file system: the files that a recipe wants, and what those need to run."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from fnmatch import fnmatch
from glob import glob
from pathlib import Path

from userdev.errors import UserError
from userdev.process import answer_of, run_to_end
from vfio_user.harness.image.elf import LIBRARY_FOLDERS, read_needs
from vfio_user.harness.image.modules import KernelModules, modules_alias, modules_dep
from vfio_user.harness.image.tree import MERGED, Directory, File, Node, Symlink, Tree, merged

COMPILE_SECONDS = 120.0
LIST_SECONDS = 60.0
EMPTY_FOLDERS = ("dev", "proc", "run", "sys", "root", "mnt", "var/log", "var/tmp")


def select(packages: Path, patterns: Iterable[str], exclude: Iterable[str]) -> Tree:
    """The files of `packages` (a root with unpacked packages in it) that `patterns` name, with their libraries.

    Raises:
        UserError: a pattern matches nothing or leads out of the packages, or a library is in no package.
    """
    chosen = _Selection(packages, tuple(pattern.lstrip("/") for pattern in exclude))
    for pattern in patterns:
        chosen.add_matches(pattern)
    return chosen.tree


class _Selection:
    """A tree that grows by files of `packages`; each brings what it points to or loads."""

    def __init__(self, packages: Path, exclude: tuple[str, ...]) -> None:
        self.packages = packages.resolve()
        self.exclude = exclude
        self.tree = Tree()

    def add_matches(self, pattern: str) -> None:
        if ".." in pattern.split("/"):
            raise UserError(f"{pattern} leads out of the recipe's packages", hint="paths are those in the guest")
        # unlike Path.glob, this one does not ask whether a link leads somewhere: here, links lead to another root
        matches = sorted(glob(pattern.lstrip("/"), root_dir=self.packages, include_hidden=True))  # noqa: PTH207
        if not matches:
            raise UserError(f"no package of the recipe has a file {pattern}")
        for path in matches:
            self._add(path)

    def _add(self, path: str) -> None:
        path = merged(path)
        if path in self.tree or any(fnmatch(path, pattern) for pattern in self.exclude):
            return
        source = self.packages / path
        if not source.parent.resolve().is_relative_to(self.packages):
            raise UserError(f"/{path} is behind a link that leads out of the recipe's packages")
        if source.is_symlink():
            target = str(source.readlink())
            self.tree.add(path, Symlink(target))
            self._add(posixpath.join(posixpath.dirname(path), target))
        elif source.is_dir():
            self.tree.add(path, Directory())
            for name in sorted(child.name for child in source.iterdir()):
                self._add(f"{path}/{name}")
        elif source.exists():
            self.tree.add(path, File(source.stat().st_mode & 0o755, source))
            self._add_needs(path, source)
        else:
            raise UserError(f"/{path} is in none of the recipe's packages")

    def _add_needs(self, path: str, source: Path) -> None:
        needs = read_needs(path, source.read_bytes())
        if needs is None:
            return
        if needs.interpreter:
            self._add(needs.interpreter)
        for library in needs.libraries:
            found = next((p for p in needs.candidates(library) if os.path.lexists(self.packages / p)), None)
            if found is None:
                raise UserError(f"/{path} needs {library}, which is in none of the recipe's packages")
            self._add(found)


def add_bytecode(tree: Tree, packages: Path) -> None:
    """Compile the Python library of `tree` with its own interpreter, whose compiled form no other version reads.

    Guests start Python three times as fast with it.

    Raises:
        UserError: the interpreter does not run here.
    """
    sources = [entry.content for path, entry in tree if _is_library_module(path) and isinstance(entry, File)]
    if not sources:
        return
    # the same bytes everywhere: paths as in the guest, no time stamps, one process in a fixed order; -B because what
    # the compiler imports would be compiled with both, and be taken for done
    compiling = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(packages), "-p", "/"]
    ran = run_to_end(
        "the guest's Python",
        [*_staged(packages, "usr/bin/python3"), "-B", "-S", "-s", *compiling, "-i", "-"],
        COMPILE_SECONDS,
        env={"PYTHONHOME": str(packages / "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
        said="\n".join(str(source) for source in sources),
    )
    if ran.returncode != 0:
        raise UserError(f"the guest's Python does not compile its library: {(ran.stdout + ran.stderr).strip()[-500:]}")
    for source in sources:
        assert isinstance(source, Path)
        for compiled in sorted((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")):
            tree.add(compiled.relative_to(packages).as_posix(), File(0o644, compiled))


def _is_library_module(path: str) -> bool:
    return path.startswith("usr/lib/python3") and path.endswith(".py")


def _staged(packages: Path, program: str) -> list[str]:
    """How to run a program of `packages` here: by its own loader and libraries."""
    folders = ":".join(str(packages / folder) for folder in LIBRARY_FOLDERS)
    loader = packages / "usr/lib64/ld-linux-x86-64.so.2"
    return [str(loader), "--library-path", folders, str(packages / program)]


def add_busybox(tree: Tree, packages: Path) -> None:
    """Install busybox under the names of all its applets, except where a package's own program is in the tree."""
    applets = answer_of("the guest's busybox", [packages / "usr/bin/busybox", "--list-full"], LIST_SECONDS)
    taken = {posixpath.basename(path) for path, _ in tree}
    for applet in applets.split():
        if posixpath.basename(applet) not in taken:
            tree.add(applet, Symlink("/usr/bin/busybox"))
    tree.add("init", Symlink("usr/bin/busybox"))  # what the kernel starts


def add_modules(tree: Tree, kernel: KernelModules, names: Iterable[str]) -> None:
    """Add the kernel modules called `names`, those they need, and modprobe's index of them."""
    folder = f"usr/lib/modules/{kernel.release}"
    modules = kernel.closure(names)
    for module in modules:
        tree.add(f"{folder}/{module.path}", File(0o644, module.data))
    tree.add_content(f"{folder}/modules.dep", modules_dep(kernel, modules).encode())
    tree.add_content(f"{folder}/modules.alias", modules_alias(modules).encode())
    tree.add(f"{folder}/modules.builtin", File(0o644, kernel.folder / "modules.builtin"))


def add_skeleton(tree: Tree) -> None:
    """Add the folders and links that every root has, and the one device that must be there before /dev is."""
    for folder in EMPTY_FOLDERS:
        tree.add(folder, Directory())
    tree.add("tmp", Directory(0o1777))
    tree.add("dev/console", Node(0o600, 5, 1))
    for name in MERGED:
        tree.add(f"usr/{name}", Directory())
        tree.add(name, Symlink(f"usr/{name}"))
    tree.add("var/run", Symlink("/run"))
