"""A disk that firmware boots from has what its boot loader is told of, where it is told that it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vfio_user.harness import MachineConfig, boot_disk, write_boot_disk
from vfio_user.harness.command_line import kernel_options
from vfio_user.harness.image import GuestImage
from vfio_user.harness.toolchain import BootLoader

SECTOR = boot_disk.SECTOR
KERNEL, INITRAMFS = b"kernel" * 1000, b"initramfs" * 77
HARDWARE = MachineConfig("pc-q35-11.1", "tcg", modules=("virtio_blk",))


class Loader(BootLoader):
    """Begins a disk with the script itself."""

    def build(self, script: str, folder: Path) -> bytes:
        assert folder.is_dir()
        return script.encode()


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GuestImage:
    monkeypatch.setattr(boot_disk, "boot_loader", lambda **_: Loader(tmp_path))
    (tmp_path / "vmlinuz").write_bytes(KERNEL)
    (tmp_path / "initramfs").write_bytes(INITRAMFS)
    return GuestImage("small", tmp_path / "none", tmp_path / "vmlinuz", tmp_path / "initramfs", tmp_path, "", "")


def test_kernel_and_initramfs_are_where_the_loader_looks_for_them(image: GuestImage, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    write_boot_disk(disk, image, HARDWARE)
    data = disk.read_bytes()
    for word, content in (("linux", KERNEL), ("initrd", INITRAMFS)):
        found = re.search(rf"^{word} (\d+)\+(\d+)\b".encode(), data, re.MULTILINE)
        assert found, data[:SECTOR]
        start, count = (int(number) for number in found.groups())
        assert data[start * SECTOR : (start + count) * SECTOR].rstrip(b"\0") == content
    assert len(data) % SECTOR == 0


def test_the_kernel_is_told_what_qemu_would_tell_it(image: GuestImage, tmp_path: Path) -> None:
    write_boot_disk(tmp_path / "disk", image, HARDWARE)
    told = " ".join(kernel_options(HARDWARE)).encode()
    assert told.endswith(b" mods=virtio_blk")
    assert b" %s\n" % told in (tmp_path / "disk").read_bytes()


def test_what_the_loader_would_read_as_a_word_of_its_own_reaches_the_kernel(image: GuestImage, tmp_path: Path) -> None:
    """GRUB's quotes are a shell's."""
    options = ("memmap=1M$64M", "a=b;c", 'dyndbg="file x +p"')
    write_boot_disk(tmp_path / "disk", image, replace(HARDWARE, kernel_options=options))
    [line] = re.findall(rb"^linux .*", (tmp_path / "disk").read_bytes(), re.MULTILINE)
    assert line.endswith(b" 'memmap=1M$64M' 'a=b;c' 'dyndbg=file x +p'")
