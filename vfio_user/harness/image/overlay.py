"""What changes from day to day in an image: our programs, settings and services, on top of Debian's packages."""

from __future__ import annotations

from pathlib import Path

from userdev.errors import UserError
from vfio_user.harness.image.recipe import ROOM, ImageRecipe
from vfio_user.harness.image.tree import File, Symlink, Tree, is_program

PROGRAMS = "opt/vfio-user"  # where the guest has guest_images/programs


def overlay_tree(recipe: ImageRecipe) -> Tree:
    """`rootfs/` as it is, `programs/` below /opt/vfio-user, and the services, modules and own files of `recipe`.

    A program (a script that begins with `#!`, or an ELF file) can be called by its name without `.py` too.
    """
    tree = Tree()
    for path, content in _files(ROOM / "rootfs"):
        tree.add_content(path, content)
    for path, content in _files(ROOM / "programs"):
        tree.add_content(f"{PROGRAMS}/{path}", content)
        if is_program(content):
            tree.add(f"usr/bin/{Path(path).stem}", Symlink(f"/{PROGRAMS}/{path}"))
    services = "".join(f"::respawn:/usr/sbin/service {name} {cmd}\n" for name, cmd in recipe.services.items())
    tree.add_content("etc/inittab", (ROOM / "rootfs/etc/inittab").read_bytes() + services.encode())
    tree.add_content("etc/modules", "".join(f"{name}\n" for name in recipe.autoload).encode())
    for where, own in recipe.own_files.items():
        _add_own(tree, where, own)
    return tree


def _add_own(tree: Tree, where: str, path: Path) -> None:
    """Add a file of the user's, executable where it is so here; a folder with all that is below it.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    try:
        if path.is_dir():
            for each in sorted(path.iterdir()):
                _add_own(tree, f"{where}/{each.name}", each)
        elif path.is_file():
            tree.add(where, File(0o755 if path.stat().st_mode & 0o111 else 0o644, path.read_bytes()))
        else:
            raise UserError(f"{path} is no file and no folder: it cannot be in a guest image")
    except OSError as error:
        raise UserError(f"{path} cannot be put into a guest image: {error.strerror}") from error


def _files(folder: Path) -> list[tuple[str, bytes]]:
    """Relative path and content of the files below `folder`, without what tools leave there."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        left_over = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not left_over and not path.name.endswith("~"):
            found.append((relative.as_posix(), path.read_bytes()))
    return found
