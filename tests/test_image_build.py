"""Recipes, and the images that are built of them: from packages of a machine that exists only here."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from multiprocessing import get_context
from pathlib import Path

import pytest
import zstandard
from click.testing import CliRunner

from tests.test_image_parts import bz_image, kernel_object, members
from userdev.errors import UserError
from vfio_user.cli.image import command
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.image import GuestImage, builder, overlay, recipe
from vfio_user.harness.image.kernel import extract_vmlinux

RECIPE = """\
description: a guest of a test
suites: [test]
kernel: linux
packages: [busybox]
files: [/usr/bin/busybox]
modules: [nvme]
autoload: [virtio_net]
services:
  sshd: dropbear -F
"""


class Packages:
    """An archive whose packages are a few files; `versions` is what it has now."""

    versions: Sequence[str] = ("busybox_1_amd64.deb", "linux_1_amd64.deb")
    fetched: list[Sequence[str]]
    unpacked = 0
    broken = False

    def __init__(self, suites: Sequence[str]) -> None:
        self.suites = suites

    def fetch(self, packages: Sequence[str], *, progress: object = None) -> list[Path]:
        Packages.fetched.append(packages)
        return [Path(name) for name in Packages.versions]

    def unpack(self, debs: Iterable[Path], into: Path) -> None:
        Packages.unpacked += 1
        vmlinux = b"\x7fELF" + repr(list(debs)).encode()
        busybox = b"#!/bin/sh\necho usr/bin/ls; echo usr/sbin/reboot\n"
        modules = "usr/lib/modules/6.12-test"
        files = {
            "boot/vmlinuz-6.12-test": bz_image(zstandard.compress(vmlinux) + struct.pack("<I", len(vmlinux))),
            "usr/bin/busybox": busybox,
            f"{modules}/modules.builtin": b"",
            f"{modules}/kernel/nvme.ko": kernel_object(depends=""),
            f"{modules}/kernel/virtio_net.ko": kernel_object(depends=""),
        }
        for name, data in files.items():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes(data)
            (into / name).chmod(0o755)
            if Packages.broken:
                raise UserError("a package does not unpack")


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Packages]:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    monkeypatch.setattr(builder, "DebianArchive", Packages)
    monkeypatch.setattr(Packages, "versions", Packages.versions)
    monkeypatch.setattr(Packages, "fetched", [], raising=False)
    monkeypatch.setattr(Packages, "unpacked", 0)
    monkeypatch.setattr(Packages, "broken", False)
    return Packages


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A guest_images folder with the recipe `small`, a setting and a program."""
    room = tmp_path / "guest_images"
    files = {
        "recipes/small.yaml": RECIPE,
        "rootfs/etc/inittab": "::sysinit:/etc/rc\n",
        "rootfs/etc/rc": "#!/bin/sh\n",
        "programs/hello.py": "#!/usr/bin/env python3\nprint('hello')\n",
        "programs/library.py": "x = 1\n",
    }
    for name, text in files.items():
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        (room / name).write_text(text)
    monkeypatch.setattr(recipe, "RECIPES", room / "recipes")
    monkeypatch.setattr(overlay, "ROOM", room)
    return room


def contents(image: GuestImage) -> dict[str, bytes]:
    return {name: data for name, _mode, data, *_ in members(image.initramfs.read_bytes())}


def modes(image: GuestImage) -> dict[str, int]:
    return {name: mode & 0o7777 for name, mode, *_ in members(image.initramfs.read_bytes())}


def test_an_image_has_packages_programs_settings_and_keys(room: Path) -> None:
    image = builder.ensure_image("small")
    files = contents(image)
    assert image.kernel.read_bytes().startswith(b"\x7fELF")
    assert extract_vmlinux(image.bzimage) == image.kernel.read_bytes()
    assert files["usr/lib/modules/6.12-test/modules.dep"] == b"kernel/nvme.ko:\nkernel/virtio_net.ko:\n"
    assert files["usr/bin/ls"] == b"/usr/bin/busybox"
    assert files["init"] == b"usr/bin/busybox"
    assert files["etc/modules"] == b"virtio_net\n"
    assert files["etc/inittab"].endswith(b"::respawn:/usr/sbin/service sshd\n")
    assert files["etc/service.d/sshd"] == b"exec dropbear -F\n"
    assert files["opt/vfio-user/library.py"] == b"x = 1\n"
    assert image.ssh_key.with_suffix(".pub").read_bytes().strip() in files["root/.ssh/authorized_keys"]


def test_the_size_of_an_image_is_the_same_wherever_it_is_told(room: Path) -> None:
    said: list[str] = []
    image = builder.ensure_image("small", progress=said.append)
    [status] = builder.list_images()
    assert status.size == image.size == sum(path.stat().st_size for path in (image.kernel, image.initramfs))
    assert f"guest image small: {status.size / 1e6:.0f} MB, {image.digest[:12]}" in said


def test_programs_can_be_run_by_their_names(room: Path) -> None:
    image = builder.ensure_image("small")
    assert contents(image)["usr/bin/hello"] == b"/opt/vfio-user/hello.py"
    assert modes(image)["opt/vfio-user/hello.py"] == 0o755
    assert modes(image)["opt/vfio-user/library.py"] == 0o644


def test_an_image_is_built_once(room: Path) -> None:
    first = builder.ensure_image("small")
    assert builder.ensure_image("small") == first
    assert len(Packages.fetched) == 1


def test_the_digest_depends_on_what_is_in_it_and_not_on_the_keys(
    room: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = builder.ensure_image("small")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "another cache"))
    second = builder.ensure_image("small")
    assert second.host_key != first.host_key
    assert second.digest == first.digest


def test_an_edited_program_needs_no_package(room: Path) -> None:
    before = builder.ensure_image("small")
    (room / "programs/library.py").write_text("x = 2\n")
    after = builder.ensure_image("small")
    assert contents(after)["opt/vfio-user/library.py"] == b"x = 2\n"
    assert after.digest != before.digest
    assert Packages.unpacked == 1
    assert before.initramfs.exists(), "a run that found it before may still want to start it"


def test_an_edited_recipe_is_built_again(room: Path) -> None:
    before = builder.ensure_image("small")
    path = room / "recipes/small.yaml"
    path.write_text(path.read_text().replace("modules: [nvme]", "modules: []"))
    after = builder.ensure_image("small")
    assert "usr/lib/modules/6.12-test/kernel/nvme.ko" in contents(before)
    assert "usr/lib/modules/6.12-test/kernel/nvme.ko" not in contents(after)


@pytest.fixture
def mine(room: Path, tmp_path: Path) -> Path:
    """A stranger's folder with a recipe that has files of theirs, beside the files."""
    folder = tmp_path / "mine"
    (folder / "data" / "deep").mkdir(parents=True)
    (folder / "data" / "deep" / "numbers").write_bytes(b"1 2 3")
    (folder / "tool.sh").write_text("#!/bin/sh\necho mine\n")
    (folder / "tool.sh").chmod(0o700)
    fields = "own_files: {/usr/bin/tool: tool.sh, /srv/data: data}"
    (folder / "mine.yaml").write_text(f"extends: small\ndescription: with mine\n{fields}\n")
    return folder / "mine.yaml"


def test_files_of_ones_own_are_in_the_image(mine: Path) -> None:
    image = builder.ensure_image(str(mine))
    assert contents(image)["usr/bin/tool"] == b"#!/bin/sh\necho mine\n"
    assert contents(image)["srv/data/deep/numbers"] == b"1 2 3"
    assert (modes(image)["usr/bin/tool"], modes(image)["srv/data/deep/numbers"]) == (0o755, 0o644)


def test_an_edited_file_of_ones_own_needs_no_package(mine: Path) -> None:
    before = builder.ensure_image(str(mine))
    (mine.parent / "data" / "deep" / "numbers").write_bytes(b"4")
    after = builder.ensure_image(str(mine))
    assert contents(after)["srv/data/deep/numbers"] == b"4"
    assert after.digest != before.digest
    assert Packages.unpacked == 1


def test_whatever_a_folder_of_ones_own_has_is_in_the_image(mine: Path) -> None:
    """A folder with nothing in it, a name that is no UTF-8, a file behind a link, and one of no size."""
    data = mine.parent / "data"
    (data / "empty" / "more").mkdir(parents=True)
    (data / os.fsdecode(b"gr\xf6\xdfe")).write_bytes(b"")
    (data / "link").symlink_to("deep")
    image = builder.ensure_image(str(mine))
    assert {"srv/data/empty/more", "srv/data/link/numbers", os.fsdecode(b"srv/data/gr\xf6\xdfe")} <= {*contents(image)}
    (data / "empty" / "more").rmdir()
    assert "srv/data/empty/more" not in contents(builder.ensure_image(str(mine)))


def test_a_large_file_of_ones_own_is_read_in_pieces(mine: Path) -> None:
    """For each boot that looks whether the image is still of that."""
    size = 64 << 20
    with (mine.parent / "data" / "large").open("wb") as file:
        file.truncate(size)
    image = builder.ensure_image(str(mine))
    tracemalloc.start()
    try:
        assert builder.ensure_image(str(mine)) == image
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()
    assert image.initramfs.stat().st_size > size


OUT_OF_PLACE = {
    "/tmp/x": ("tool.sh", "a file system of its own at /tmp"),
    "//run/x": ("tool.sh", "a file system of its own at /run"),
    "/srv/../var/run/x": ("data", "a file system of its own at /var/run"),
    "/lib": ("tool.sh", "/lib is a folder of every guest"),
    "/usr/bin/.": ("tool.sh", "is a folder of every guest"),
    "/.": ("tool.sh", "is a folder of every guest"),
    "/opt/vfio-user": ("tool.sh", "/opt/vfio-user cannot be a file"),
}


def test_what_would_not_be_there_or_keep_the_guest_from_running_is_refused(mine: Path) -> None:
    for where, (what, told) in OUT_OF_PLACE.items():
        mine.write_text(f"extends: small\ndescription: with mine\nown_files: {{{where}: {what}}}\n")
        with pytest.raises(UserError) as caught:
            builder.ensure_image(str(mine))
        assert told in str(caught.value), where


def test_an_empty_folder_takes_no_place_of_a_link_to_another(mine: Path) -> None:
    (mine.parent / "empty").mkdir()
    mine.write_text("extends: small\ndescription: with mine\nown_files: {/lib: empty}\n")
    image = builder.ensure_image(str(mine))
    assert [data for name, _mode, data, *_ in members(image.initramfs.read_bytes()) if name == "lib"] == [b"usr/lib"]


def test_what_is_no_file_cannot_be_in_an_image(mine: Path) -> None:
    for target in ("nowhere", ".", ".."):
        link = mine.parent / "data" / "dead"
        link.symlink_to(target)
        with pytest.raises(UserError, match="dead"):
            builder.ensure_image(str(mine))
        link.unlink()


def own_kernel(folder: Path, build: bytes) -> None:
    """What somebody has built: a kernel, and its modules as `make modules_install` leaves them."""
    vmlinux = b"\x7fELF" + build
    (folder / "bzImage").write_bytes(bz_image(zstandard.compress(vmlinux) + struct.pack("<I", len(vmlinux))))
    modules = folder / "lib/modules/7.0-mine"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "modules.builtin").write_text("kernel/drivers/net/virtio_net.ko\n")
    (modules / "kernel").mkdir(exist_ok=True)
    (modules / "kernel" / "nvme.ko").write_bytes(kernel_object(depends=""))


@pytest.fixture
def kernel(mine: Path) -> Path:
    own_kernel(mine.parent, b"first")
    fields = "own_kernel: {image: bzImage, modules: lib/modules/7.0-mine}"
    mine.write_text(f"extends: small\ndescription: with my kernel\n{fields}\n")
    return mine


def test_a_kernel_of_ones_own_is_booted_with_its_modules(kernel: Path) -> None:
    image = builder.ensure_image(str(kernel))
    assert image.kernel.read_bytes() == b"\x7fELFfirst"
    assert contents(image)["usr/lib/modules/7.0-mine/modules.dep"] == b"kernel/nvme.ko:\n"
    assert Packages.fetched == [["busybox"]]


def test_a_kernel_that_was_built_again_is_taken(kernel: Path) -> None:
    builder.ensure_image(str(kernel))
    own_kernel(kernel.parent, b"second")
    assert builder.ensure_image(str(kernel)).kernel.read_bytes() == b"\x7fELFsecond"


def test_what_is_no_folder_of_modules_is_named(kernel: Path) -> None:
    (kernel.parent / "lib/modules/7.0-mine/modules.builtin").unlink()
    with pytest.raises(UserError, match=r"7\.0-mine is no kernel's folder of modules"):
        builder.ensure_image(str(kernel))


def test_a_kernel_and_modules_of_another_are_told_apart(kernel: Path) -> None:
    """As after `make` without `make modules_install`."""
    own_kernel(kernel.parent, b"Linux version 7.1-mine+ (gcc)")
    with pytest.raises(UserError, match=r"are for the kernel 7\.0-mine, and .*bzImage is 7\.1-mine\+"):
        builder.ensure_image(str(kernel))
    own_kernel(kernel.parent, b"Linux version 7.0-mine (gcc)")
    assert b"7.0-mine" in builder.ensure_image(str(kernel)).kernel.read_bytes()


def test_modules_are_those_of_the_kernel_whatever_leads_to_them(kernel: Path) -> None:
    (kernel.parent / "modules").symlink_to("lib/modules/7.0-mine")
    kernel.write_text(kernel.read_text().replace("lib/modules/7.0-mine", "modules"))
    assert "usr/lib/modules/7.0-mine/modules.dep" in contents(builder.ensure_image(str(kernel)))


def test_a_folder_is_no_kernel(kernel: Path) -> None:
    kernel.write_text(kernel.read_text().replace("bzImage", "lib"))
    with pytest.raises(UserError, match="lib cannot be read: Is a directory"):
        builder.ensure_image(str(kernel))


def test_newer_packages_are_taken_when_somebody_asks_for_them(room: Path, packages: type[Packages]) -> None:
    old = builder.ensure_image("small")
    packages.versions = ("busybox_1_amd64.deb", "linux_2_amd64.deb")
    assert builder.ensure_image("small") == old
    new = builder.build_image("small")
    assert new.digest != old.digest
    assert builder.ensure_image("small") == new


def test_a_build_of_the_same_packages_is_the_image_that_is_there(room: Path) -> None:
    image = builder.ensure_image("small")
    assert builder.build_image("small") == image
    assert Packages.unpacked == 1


def test_a_failed_build_leaves_nothing_behind(room: Path, packages: type[Packages]) -> None:
    packages.broken = True
    with pytest.raises(UserError, match="does not unpack"):
        builder.ensure_image("small")
    packages.broken = False
    assert contents(builder.ensure_image("small"))["usr/bin/ls"] == b"/usr/bin/busybox"


def test_old_images_go_when_nobody_used_them_for_long(room: Path) -> None:
    before = builder.ensure_image("small")
    last_use = time.time() - builder.IMAGE_SECONDS - 60
    os.utime(before.kernel.parent, (last_use, last_use))
    (room / "programs/library.py").write_text("x = 2\n")
    after = builder.ensure_image("small")
    assert not before.initramfs.exists()
    assert after.initramfs.exists()


def test_an_image_that_is_in_use_stays_however_old_and_so_does_another_recipes(room: Path) -> None:
    """Also where a recipe's name begins as this one's does: nobody can tell who uses that."""
    before = builder.ensure_image("small")
    others = before.kernel.parent.with_name(f"small-mine-{'0' * 16}")
    others.mkdir()
    last_use = time.time() - builder.IMAGE_SECONDS - 60
    for folder in (before.kernel.parent, others):
        os.utime(folder, (last_use, last_use))
    before.keep()
    (room / "programs/library.py").write_text("x = 2\n")
    builder.ensure_image("small")
    assert before.initramfs.exists()
    assert others.exists()


def test_what_tools_leave_in_a_folder_is_in_no_image(tmp_path: Path) -> None:
    for name in ("etc/inittab", ".git/config", "etc/.hidden/x", "a/__pycache__/m.pyc", "a/m.py", "a/m.py~", ".swp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in overlay._files(tmp_path)] == ["a/m.py", "etc/inittab"]


def test_what_is_in_use_stays_however_old_and_links_to_what_went_go_too(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("kept", 900.0), ("old", 900.0), ("new", 10.0)):
        (tmp_path / name).mkdir()
        (tmp_path / f"to-{name}").symlink_to(name)
        os.utime(tmp_path / name, (now - age, now - age))
    builder._prune(tmp_path.iterdir(), 500.0, keep=tmp_path / "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "new", "to-kept", "to-new"]


def _ensure(_number: int) -> str:
    return builder.ensure_image("small").digest


def test_two_builds_at_once_make_one_image(room: Path, tmp_path: Path) -> None:
    with get_context("fork").Pool(3) as pool:
        digests = set(pool.map_async(_ensure, range(3)).get(timeout=50))
    assert digests == {builder.ensure_image("small").digest}
    assert len(list((tmp_path / "cache/images").glob("small-*"))) == 1


# -- recipes ---------------------------------------------------------------------------------------------------------


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run() -> CliRunner:
    return CliRunner()


def test_the_list_tells_what_is_built(room: Path, run: CliRunner) -> None:
    before = run.invoke(command, ["list"])
    image = builder.ensure_image("small")
    after = run.invoke(command, ["list"])
    assert "small" in before.output
    assert image.digest[:12] not in before.output
    assert image.digest[:12] in after.output


def test_a_build_prints_where_everything_is(room: Path, run: CliRunner) -> None:
    result = run.invoke(command, ["build", "small"])
    image = builder.ensure_image("small")
    assert result.exit_code == 0
    for path in (image.kernel, image.bzimage, image.initramfs, image.ssh_key):
        assert str(path) in result.output
