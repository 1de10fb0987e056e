"""Guest images in the cache, built in stages so that a change costs no more than what depends on it.

=========  ==============================================  =======================================
stage      is made of                                      is made again when
=========  ==============================================  =======================================
base       the recipe's packages: kernels, base.cpio        the recipe, or this builder, changes
image      base, then the programs and settings of         any of those files changes, or the base
           guest_images/, then the cache's keys
=========  ==============================================  =======================================

A folder of either stage is named by what it was made of and never changes, so that a run which has found its image
keeps it, whatever others build meanwhile. Newer packages in the archive are for `build_image` to find: `ensure_image`
takes what is there, so that the guests of a nightly run change when somebody says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userdev.counted import counted
from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, quiet
from vfio_user.harness.image.cpio import write_cpio
from vfio_user.harness.image.keys import Keys, ensure_keys
from vfio_user.harness.image.overlay import overlay_tree
from vfio_user.harness.image.recipe import ImageRecipe, OwnKernel, load_recipe, recipe_names

IMAGE_SECONDS = 3600.0  # seconds after its last use for which an outdated image is kept: a run may still be starting it
BASE_SECONDS = 86400.0  # the same for what takes longer to make
_DIGITS = 16  # of the digest in a folder's name


@dataclass(frozen=True)
class GuestImage:
    """A guest that QEMU can boot: `-kernel KERNEL -initrd INITRAMFS -append "console=ttyS0"`.

    `digest` tells of the content without the keys: the same recipe and packages give the same digest anywhere. What is
    kept of a running guest (a checkpoint) depends on `host_key` as well, which is made together with `ssh_key`.
    """

    name: str
    kernel: Path  # an ELF vmlinux, for QEMU's PVH boot
    bzimage: Path  # the same as its package has it, for boot loaders
    initramfs: Path
    ssh_key: Path  # the client's private key
    host_key: str  # the guest's public key, as a line of known_hosts without the host
    digest: str

    @property
    def size(self) -> int:
        """Bytes of kernel and initramfs: what QEMU is given."""
        return sum(path.stat().st_size for path in (self.kernel, self.initramfs))

    def keep(self) -> None:
        """Say that it is in use: were it outdated meanwhile, it would be removed an hour after this."""
        _touch(self.kernel.parent)


@dataclass(frozen=True)
class ImageStatus:
    """The state of one recipe's image, for `list_images`."""

    name: str
    description: str
    image: GuestImage | None  # None when it has to be built first

    @property
    def size(self) -> int:
        """That of the image; 0 where there is none."""
        return self.image.size if self.image else 0


def ensure_image(name: str, *, progress: Progress = quiet) -> GuestImage:
    """The image called `name` (or of the recipe file `name`, .yaml), built first when it is missing or outdated.

    Raises:
        UserError: an unknown name, a recipe with a mistake, or when packages cannot be fetched.
    """
    recipe = load_recipe(name)
    image = _find(recipe)
    if image is None:
        with locked(f"image-{recipe.name}"):
            image = _find(recipe) or _build(recipe, progress)
    return image


def files_of_image(name: str) -> list[tuple[Path, bool]]:
    """What of the cache another machine needs so that its `ensure_image` finds this image: paths, and whether a folder
    is needed whole. What the image was built from is not; only which that was.

    Raises:
        UserError: it has to be built first, and cannot be.
    """
    image = ensure_image(name)
    link = _base_link(load_recipe(name))
    return [
        (image.ssh_key.parent, True),
        (image.kernel.parent, True),
        (link, True),
        (link.parent / link.readlink(), False),
    ]


def build_image(name: str, *, progress: Progress = quiet) -> GuestImage:
    """Like `ensure_image`, but with the newest packages of the archive.

    Raises:
        UserError: an unknown name, a recipe with a mistake, or packages that cannot be fetched.
    """
    recipe = load_recipe(name)
    with locked(f"image-{recipe.name}"):
        _build_base(recipe, progress)
        return _find(recipe) or _build(recipe, progress)


def list_images() -> list[ImageStatus]:
    """Every recipe of this package, with its image where there is one that is up to date."""
    found = []
    for name in recipe_names():
        recipe = load_recipe(name)
        image = _find(recipe)
        found.append(ImageStatus(name, recipe.description, image))
    return found


def _images() -> Path:
    return cache_dir() / "images"


def _find(recipe: ImageRecipe) -> GuestImage | None:
    base = _current_base(recipe)
    if base is None:
        return None
    keys = ensure_keys()
    folder = _image_folder(recipe, base, keys)
    if not folder.exists():
        return None
    _touch(base)
    _touch(folder)
    return _open(recipe, folder, keys)


def _open(recipe: ImageRecipe, folder: Path, keys: Keys) -> GuestImage:
    digest = json.loads((folder / "manifest.json").read_text())["digest"]
    return GuestImage(
        recipe.name,
        folder / "vmlinux",
        folder / "vmlinuz",
        folder / "initramfs.cpio",
        keys.client,
        keys.host_public,
        digest,
    )


def _build(recipe: ImageRecipe, progress: Progress) -> GuestImage:
    """Base + overlay + keys: archives one after the other, as the kernel unpacks them."""
    base = _current_base(recipe) or _build_base(recipe, progress)
    keys = ensure_keys()
    folder = _image_folder(recipe, base, keys)
    with publish(folder) as making:
        for kernel in ("vmlinux", "vmlinuz"):
            os.link(base / kernel, making / kernel)
        initramfs = making / "initramfs.cpio"
        with initramfs.open("wb") as out:
            with (base / "base.cpio").open("rb") as packed:
                shutil.copyfileobj(packed, out, 1 << 20)
            write_cpio(overlay_tree(recipe), out)
        contents = _read_manifest(base)
        digest = _digest(contents["kernel"], _file_digest(initramfs))
        with initramfs.open("ab") as out:
            write_cpio(keys.tree(), out)
        _write_manifest(making, {**contents, "digest": digest})
    image = _open(recipe, folder, keys)
    progress(f"guest image {recipe.name}: {image.size / 1e6:.0f} MB, {digest[:12]}")
    _prune(_images().glob(f"{recipe.name}-{'[0-9a-f]' * _DIGITS}"), IMAGE_SECONDS, keep=folder)  # its own alone
    return image


def _image_folder(recipe: ImageRecipe, base: Path, keys: Keys) -> Path:
    made_of = [base.name, _builder_digest(), keys.host_public, keys.client_public]
    for path, entry in overlay_tree(recipe):
        made_of += [path, str(entry)]
    return _images() / f"{recipe.name}-{_digest(*made_of)[:_DIGITS]}"


def _current_base(recipe: ImageRecipe) -> Path | None:
    """The base that was last built for the packages and files of `recipe`."""
    link = _base_link(recipe)
    folder = link.parent / link.readlink() if link.is_symlink() else None
    return folder if folder and folder.exists() else None


def _base_link(recipe: ImageRecipe) -> Path:
    fields = recipe.model_dump(mode="json", exclude={"name", "description", "services", "own_files"})
    if recipe.own_kernel is not None:
        fields["own_kernel"] = _state_of(recipe.own_kernel)
    return _images() / "bases" / f"for-{_digest(json.dumps(fields, sort_keys=True), _builder_digest())[:16]}"


def _build_base(recipe: ImageRecipe, progress: Progress) -> Path:
    """Fetch the packages of `recipe` and make the base of them, unless there is one of exactly these."""
    archive = DebianArchive(recipe.suites)
    kernel = [] if recipe.own_kernel else [recipe.kernel]
    debs = archive.fetch([*kernel, *recipe.packages], progress=progress)
    link = _base_link(recipe)
    folder = link.parent / _digest(link.name, *(deb.name for deb in debs))[:16]
    if not folder.exists():
        with publish(folder) as making:
            progress(f"building guest image {recipe.name} from {counted(len(debs), 'package')}")
            packages = making / "packages"
            archive.unpack(debs, packages)
            _pack_base(recipe, packages, making, [deb.name for deb in debs])
            shutil.rmtree(packages)
    _link(link, folder.name)
    _touch(folder)
    _prune(link.parent.glob("[!.]*"), BASE_SECONDS, keep=folder)
    return folder


def _pack_base(recipe: ImageRecipe, packages: Path, into: Path, debs: list[str]) -> None:
    # What reads packages is slow to import, and most runs find their image.
    from vfio_user.harness.image.kernel import extract_vmlinux
    from vfio_user.harness.image.modules import KernelModules
    from vfio_user.harness.image.selection import add_busybox, add_bytecode, add_modules, add_skeleton, select

    own = recipe.own_kernel
    kernel = KernelModules(own.modules if own else _only(packages, "usr/lib/modules/*", recipe.kernel))
    try:
        tree = select(packages, recipe.files, recipe.exclude)
        add_bytecode(tree, packages)
        add_skeleton(tree)
        add_busybox(tree, packages)
        add_modules(tree, kernel, recipe.all_modules)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {error}", hint=error.hint) from error
    vmlinuz = own.image if own else _only(packages, "boot/vmlinuz-*", recipe.kernel)
    vmlinux = extract_vmlinux(vmlinuz)
    if own:
        _require_its_modules(own, vmlinux, kernel.release)
    (into / "vmlinux").write_bytes(vmlinux)
    shutil.copyfile(vmlinuz, into / "vmlinuz")
    with (into / "base.cpio").open("wb") as out:
        write_cpio(tree, out)
    contents = {"kernel": hashlib.sha256(vmlinux).hexdigest(), "release": kernel.release, "packages": debs}
    _write_manifest(into, contents)


def _require_its_modules(own: OwnKernel, vmlinux: bytes, release: str) -> None:
    """Raise UserError where a kernel says of itself that it is another one than its modules are for."""
    banners = {banner.decode() for banner in re.findall(rb"Linux version ([\w.+~-]+) \(", vmlinux)}
    if banners and release not in banners:
        raise UserError(
            f"the modules in {own.modules} are for the kernel {release}, and {own.image} is {' or '.join(banners)}",
            hint="run `make modules_install` after `make`, and name that folder",
        )


def _state_of(own: OwnKernel) -> list[tuple[str, int, int]]:
    """What tells that a kernel or one of its modules was built again: each file's name, size and time."""
    files = [own.image, *(path for path in sorted(own.modules.rglob("*")) if path.is_file())]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def _only(packages: Path, pattern: str, kernel: str) -> Path:
    found = sorted(packages.glob(pattern))
    if len(found) != 1:
        raise UserError(f"the packages of {kernel} have {len(found)} of {pattern}, not one kernel")
    return found[0]


def _builder_digest() -> str:
    """Digest of this builder's own code: what another version made is not what this one would make."""
    return _digest(*(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))))


def _digest(*parts: str) -> str:
    return hashlib.sha256(os.fsencode("\0".join(parts))).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_manifest(folder: Path, contents: dict[str, Any]) -> None:
    (folder / "manifest.json").write_text(json.dumps(contents, indent=2) + "\n")


def _read_manifest(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return contents


def _link(link: Path, target: str) -> None:
    new = link.with_name(f".{link.name}.{os.getpid()}")
    new.symlink_to(target)
    new.rename(link)


def _touch(folder: Path) -> None:
    with suppress(OSError):  # another's cache, perhaps: the time of last use is only for pruning
        os.utime(folder)


def _prune(paths: Iterator[Path], age: float, *, keep: Path) -> None:
    """Remove what was not used for `age` seconds, and the links that lead nowhere then."""
    for path in sorted(paths):
        with suppress(FileNotFoundError):
            if path.is_symlink():
                if not path.exists():
                    path.unlink()
            elif path != keep and time.time() - path.stat().st_mtime > age:
                shutil.rmtree(path, ignore_errors=True)
