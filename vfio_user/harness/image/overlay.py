"""What changes from day to day in an image: our programs, settings and services, on top of Debian's packages."""

from __future__ import annotations

from pathlib import Path

from vfio_user.harness.image.recipe import ROOM, ImageRecipe
from vfio_user.harness.image.tree import Symlink, Tree, is_program

PROGRAMS = "opt/vfio-user"  # where the guest has guest_images/programs


def overlay_tree(recipe: ImageRecipe) -> Tree:
    """`rootfs/` as it is, `programs/` below /opt/vfio-user, and the services and modules of `recipe`.

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
    return tree


def _files(folder: Path) -> list[tuple[str, bytes]]:
    """Relative path and content of the files below `folder`, without what tools leave there."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        left_over = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not left_over and not path.name.endswith("~"):
            found.append((relative.as_posix(), path.read_bytes()))
    return found
