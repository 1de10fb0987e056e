"""What changes from day to day in an image: our programs, settings and services, on top of Debian's packages."""

from __future__ import annotations

from pathlib import Path

from vfio_user.harness.image.recipe import ROOM, Recipe
from vfio_user.harness.image.tree import Symlink, Tree

PROGRAMS = "opt/vfio-user"  # where the guest has guest_images/programs


def overlay_tree(recipe: Recipe, room: Path = ROOM) -> Tree:
    """`rootfs/` as it is, `programs/` below /opt/vfio-user, and the services and modules of `recipe`.

    A program, that is a file that begins with `#!`, can be called by its name without `.py` too.
    """
    tree = Tree()
    for path, text in _texts(room / "rootfs"):
        tree.add_text(path, text)
    for path, text in _texts(room / "programs"):
        tree.add_text(f"{PROGRAMS}/{path}", text)
        if text.startswith("#!"):
            tree.add(f"usr/bin/{Path(path).stem}", Symlink(f"/{PROGRAMS}/{path}"))
    services = "".join(f"::respawn:/usr/sbin/service {name} {cmd}\n" for name, cmd in recipe.services.items())
    tree.add_text("etc/inittab", (room / "rootfs/etc/inittab").read_text() + services)
    tree.add_text("etc/modules", "".join(f"{name}\n" for name in recipe.autoload))
    return tree


def _texts(folder: Path) -> list[tuple[str, str]]:
    """Relative path and content of the files below `folder`, without what Python or an editor left there."""
    return [
        (path.relative_to(folder).as_posix(), path.read_text())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith(("~", ".swp"))
    ]
