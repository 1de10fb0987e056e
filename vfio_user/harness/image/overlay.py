"""What changes from day to day in an image: our programs, settings and services, on top of Debian's packages."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from userdev.errors import UserError
from vfio_user.harness.image.recipe import ROOM, ImageRecipe
from vfio_user.harness.image.tree import MERGED, Directory, File, Symlink, Tree, is_program, merged

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
    for name, command in recipe.services.items():  # not in inittab, where a line ends at the first #
        tree.add_content(f"etc/service.d/{name}", f"exec {command}\n".encode())
    services = "".join(f"::respawn:/usr/sbin/service {name}\n" for name in recipe.services)
    tree.add_content("etc/inittab", (ROOM / "rootfs/etc/inittab").read_bytes() + services.encode())
    tree.add_content("etc/modules", "".join(f"{name}\n" for name in recipe.autoload).encode())
    for where, own in recipe.own_files.items():
        _add_own(tree, where, own)
    for path, _ in tree:
        for parent in PurePosixPath(path).parents:
            if isinstance(tree.get(str(parent)), File):
                raise UserError(f"/{parent} cannot be a file in a guest image: /{path} is to be in it")
    return tree


def _add_own(tree: Tree, where: str, path: Path, above: tuple[Path, ...] = ()) -> None:
    """Add a file of the user's, executable where it is so here; a folder with all that is below it, through links.

    Raises:
        UserError: it is neither, or cannot be read; or what is there keeps the guest from running.
    """
    try:
        if path.is_dir():
            folder = path.resolve()
            if folder in above:
                raise UserError(f"{path} leads to a folder that it is in: no guest image holds that")
            inside = sorted(path.iterdir())
            for each in inside:
                _add_own(tree, f"{where}/{each.name}", each, (*above, folder))
            if not inside and not _is_the_systems(where):
                tree.add(where, Directory())
        elif path.is_file() and _is_the_systems(where):
            raise UserError(f"{where} is a folder of every guest: {path} cannot be there in place of it")
        elif path.is_file():
            path.open("rb").close()
            tree.add(where, File(0o755 if path.stat().st_mode & 0o111 else 0o644, path))
        else:
            raise UserError(f"{path} is no file and no folder: it cannot be in a guest image")
    except OSError as error:
        raise UserError(f"{path} cannot be put into a guest image: {error.strerror}") from error


def _is_the_systems(where: str) -> bool:
    """Whether a path in the guest is a folder, or a link to one, without which nothing runs there."""
    path = merged(where).removeprefix("usr/")
    return path in ("", "usr", "etc", *MERGED)


def _files(folder: Path) -> list[tuple[str, bytes]]:
    """Relative path and content of the files below `folder`, without what tools leave there."""
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        left_over = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not left_over and not path.name.endswith("~"):
            found.append((relative.as_posix(), path.read_bytes()))
    return found
