"""What a guest image is made with: archive, library walk, modules, kernel, keys."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest
import zstandard

from tests.cases import for_each
from userdev.errors import UserError
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.image import selection
from vfio_user.harness.image.cpio import write_cpio
from vfio_user.harness.image.elf import LIBRARY_FOLDERS, Needs
from vfio_user.harness.image.kernel import decompress, extract_vmlinux
from vfio_user.harness.image.keys import ensure_keys
from vfio_user.harness.image.modules import KernelModules, modules_alias, modules_dep
from vfio_user.harness.image.selection import add_busybox, select
from vfio_user.harness.image.tree import Directory, Entry, File, Node, Symlink, Tree


def archive(tree: Tree) -> bytes:
    out = io.BytesIO()
    write_cpio(tree, out)
    return out.getvalue()


def members(data: bytes) -> list[tuple[str, int, bytes, tuple[int, int], int]]:
    """Name, mode, content, device and owner of each member, read by the format's description alone."""
    found = []
    at = 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        _inode, mode, owner, _group, _links, _time, size, _major, _minor, major, minor, name_size, _check = fields
        name = os.fsdecode(data[at + 110 : at + 110 + name_size - 1])
        start = (at + 110 + name_size + 3) & ~3
        at = (start + size + 3) & ~3
        if name != "TRAILER!!!":
            found.append((name, mode, data[start : start + size], (major, minor), owner))
    return found


def sample_tree() -> Tree:
    tree = Tree()
    tree.add("/sbin/hello", File(0o755, b"#!/bin/sh\n"))
    tree.add("bin", Symlink("usr/bin"))
    tree.add("dev/console", Node(0o600, 5, 1))
    tree.add("root", Directory(0o700))
    return tree


def test_an_archive_holds_every_entry_as_it_was_added() -> None:
    assert members(archive(sample_tree())) == [
        ("bin", stat.S_IFLNK | 0o777, b"usr/bin", (0, 0), 0),
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0), 0),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1), 0),
        ("root", stat.S_IFDIR | 0o700, b"", (0, 0), 0),
        ("usr", stat.S_IFDIR | 0o755, b"", (0, 0), 0),
        ("usr/sbin", stat.S_IFDIR | 0o755, b"", (0, 0), 0),
        ("usr/sbin/hello", stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0), 0),
    ]


def test_the_size_of_a_link_is_that_of_its_bytes() -> None:
    """Of which a letter may have several: what is behind it is found by that."""
    tree = Tree()
    for name in ("a", "b"):
        tree.add(name, Symlink(f"usr/größe-{name}"))
    assert [content.decode() for _, _, content, _, _ in members(archive(tree))] == ["usr/größe-a", "usr/größe-b"]


def test_a_file_for_which_the_format_has_no_number_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 30)
    tree = Tree()
    tree.add("srv/large", File(0o644, tmp_path / "large"))
    with pytest.raises(UserError, match=r"/srv/large has 4294967296 bytes"):
        archive(tree)


def test_archives_follow_each_other() -> None:
    extra = Tree()
    extra.add("etc/x", File(0o644, b"odd"))
    both = archive(sample_tree()) + archive(extra)
    assert [name for name, *_ in members(both)][-2:] == ["etc", "etc/x"]


def test_the_order_of_adding_does_not_matter() -> None:
    entries: list[tuple[str, Entry]] = [("a/b", File(0o644, b"1")), ("a.c", File(0o644, b"2")), ("a", Directory(0o755))]
    forward, backward = Tree(), Tree()
    for path, entry in entries:
        forward.add(path, entry)
    for path, entry in reversed(entries):
        backward.add(path, entry)
    assert archive(forward) == archive(backward)
    assert [path for path, _ in forward] == ["a", "a/b", "a.c"], "parents come before children"


# -- programs and their libraries: this machine's own serve as the packages ------------------------------------------

HOST = Path("/")


def test_a_library_is_looked_for_where_its_program_says_before_where_all_are() -> None:
    found = [*Needs("", ("libx.so",), ("opt/lib", "usr/lib/own")).candidates("libx.so")]
    assert found[:2] == ["opt/lib/libx.so", "usr/lib/own/libx.so"]
    assert found[2:] == [f"{folder}/libx.so" for folder in LIBRARY_FOLDERS]


def test_a_program_brings_its_loader_and_libraries() -> None:
    tree = select(HOST, ["/usr/bin/ls"], [])
    paths = {path for path, _ in tree}
    assert "usr/bin/ls" in paths
    assert any("ld-linux" in path for path in paths)
    loaded = subprocess.run(["ldd", "/usr/bin/ls"], capture_output=True, text=True, check=True).stdout
    libraries = {line.split()[0].rsplit("/", 1)[-1] for line in loaded.splitlines() if "=>" in line}
    assert libraries <= {path.rsplit("/", 1)[-1] for path in paths}


def test_a_link_brings_what_it_points_to(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share"
    folder.mkdir(parents=True)
    (folder / "real").write_text("x")
    (folder / "link").symlink_to("real")
    (folder / "absolute").symlink_to("/usr/share/real")
    tree = select(tmp_path, ["/usr/share/link", "/usr/share/absolute"], [])
    assert tree["usr/share/link"] == Symlink("real")
    assert "usr/share/real" in tree


def test_busybox_is_each_of_its_applets_but_where_there_is_a_program_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "answer_of", lambda *_: "usr/bin/vi\nsbin/lspci\nusr/bin/lspci\nbin/sh\n")
    tree = Tree()
    tree.add("usr/bin/lspci", File(0o755, b"\x7fELF"))
    add_busybox(tree, tmp_path)
    links = {path: entry.target for path, entry in tree if isinstance(entry, Symlink)}
    assert links == {
        "init": "usr/bin/busybox",
        "usr/bin/sh": "/usr/bin/busybox",
        "usr/bin/vi": "/usr/bin/busybox",
    }


def test_what_is_excluded_stays_out(tmp_path: Path) -> None:
    for name in ("keep.py", "test/big.py", "turtle.py"):
        path = tmp_path / "usr/lib/python3.13" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    tree = select(tmp_path, ["/usr/lib/python3.*"], ["/usr/lib/python3.*/test", "/usr/lib/python3.*/turtle.py"])
    assert [path for path, _ in tree if path.endswith(".py")] == ["usr/lib/python3.13/keep.py"]


def test_a_pattern_without_a_match_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/usr/bin/no-such-program"):
        select(tmp_path, ["/usr/bin/no-such-program"], [])


@for_each(["../secret", "/usr/../../secret", "usr/share/*/../../../../secret"])
def test_a_pattern_that_leads_out_of_the_packages_is_refused(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "packages/usr/share/doc").mkdir(parents=True)
    with pytest.raises(UserError, match="leads out"):
        select(tmp_path / "packages", [pattern], [])


def test_a_link_that_leads_out_of_the_packages_brings_nothing_from_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    share = tmp_path / "packages/usr/share"
    share.mkdir(parents=True)
    (share / "link").symlink_to("../../../secret")
    (share / "folder").symlink_to(tmp_path)
    for pattern in ("/usr/share/link", "/usr/share/folder/secret", "/usr/share/folder/*"):
        with pytest.raises(UserError):
            select(tmp_path / "packages", [pattern], [])


def test_a_library_in_no_package_is_named(tmp_path: Path) -> None:
    program = tmp_path / "usr/bin/ls"
    program.parent.mkdir(parents=True)
    program.write_bytes(Path("/usr/bin/ls").read_bytes())
    with pytest.raises(UserError, match=r"/usr/bin/ls|ld-linux"):
        select(tmp_path, ["/usr/bin/ls"], [])


# -- modules ---------------------------------------------------------------------------------------------------------


def kernel_object(**info: str) -> bytes:
    """An ELF file with nothing but a .modinfo section."""
    modinfo = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    sections_at = 64 + len(modinfo) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, sections_at, 0, 64, 0, 0, 64, 3, 2)
    section = struct.Struct("<IIQQQQIIQQ")
    table = section.pack(*[0] * 10)
    table += section.pack(1, 1, 0, 0, 64, len(modinfo), 0, 0, 1, 0)
    table += section.pack(10, 3, 0, 0, 64 + len(modinfo), len(names), 0, 0, 1, 0)
    return header + modinfo + names + table


@pytest.fixture
def kernel(tmp_path: Path) -> KernelModules:
    folder = tmp_path / "6.12-test"
    modules: dict[str, bytes] = {
        "drivers/vfio/pci/vfio-pci.ko.xz": lzma.compress(kernel_object(depends="vfio-pci-core", alias="vfio_pci:v*d*")),
        "drivers/vfio/pci/vfio-pci-core.ko.zst": zstandard.compress(kernel_object(depends="vfio,irqbypass")),
        "drivers/vfio/vfio.ko.gz": gzip.compress(kernel_object(depends="")),
        "fs/ext4/ext4.ko": kernel_object(depends="mbcache", softdep="pre: crc32c vfio post: other vfio-pci"),
        "fs/mbcache.ko": kernel_object(depends=""),
    }
    for name, data in modules.items():
        (folder / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "kernel" / name).write_bytes(data)
    (folder / "modules.builtin").write_text("kernel/virt/lib/irqbypass.ko\n")
    return KernelModules(folder)


def test_modules_come_with_those_they_need_first(kernel: KernelModules) -> None:
    assert [module.name for module in kernel.closure(["vfio_pci"])] == ["vfio", "vfio_pci_core", "vfio_pci"]


def test_a_soft_dependency_is_taken_where_the_kernel_has_it(kernel: KernelModules) -> None:
    assert [module.name for module in kernel.closure(["ext4"])] == ["vfio", "mbcache", "ext4"]


def test_a_module_is_without_its_signature_in_a_guest(kernel: KernelModules) -> None:
    path = kernel.folder / "kernel/fs/mbcache.ko"
    plain = path.read_bytes()
    signature = b"PKCS#7" * 40
    path.write_bytes(plain + signature + struct.pack(">8xI", len(signature)) + b"~Module signature appended~\n")
    [module] = kernel.closure(["mbcache"])
    assert module.data == plain


def test_a_module_that_is_built_in_needs_nothing(kernel: KernelModules) -> None:
    assert kernel.closure(["irqbypass"]) == []


def test_an_unknown_module_is_named(kernel: KernelModules) -> None:
    with pytest.raises(UserError, match="warp_drive"):
        kernel.closure(["warp-drive"])


def test_the_index_lists_dependencies_from_the_last_to_load_to_the_first(kernel: KernelModules) -> None:
    index = modules_dep(kernel, kernel.closure(["vfio-pci"])).splitlines()
    folder = "kernel/drivers/vfio"
    assert f"{folder}/pci/vfio-pci.ko: {folder}/pci/vfio-pci-core.ko {folder}/vfio.ko" in index
    assert f"{folder}/vfio.ko:" in index


def test_aliases_lead_to_their_module(kernel: KernelModules) -> None:
    assert modules_alias(kernel.closure(["vfio-pci"])) == "alias vfio_pci:v*d* vfio_pci\n"


# -- the kernel ------------------------------------------------------------------------------------------------------

VMLINUX = b"\x7fELF" + b"kernel" * 1000


def bz_image(payload: bytes) -> bytes:
    setup_sectors = 4
    image = bytearray((setup_sectors + 1) * 512)
    image[0x1F1] = setup_sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 100, len(payload))
    return bytes(image) + bytes(100) + payload + b"the rest of the image"


def _with_size(compress: Callable[[bytes], bytes]) -> bytes:
    return compress(VMLINUX) + struct.pack("<I", len(VMLINUX))


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(_with_size(zstandard.compress), id="zstd"),
        pytest.param(_with_size(lzma.compress), id="xz"),
        pytest.param(gzip.compress(VMLINUX), id="gzip"),
    ],
)
def test_the_kernel_comes_out_of_its_image(tmp_path: Path, payload: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(bz_image(payload))
    assert extract_vmlinux(tmp_path / "vmlinuz") == VMLINUX


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(b"MZ" + bytes(1000), id="no kernel"),
        pytest.param(bz_image(b"LZ??" + bytes(100)), id="unknown compression"),
        pytest.param(bz_image(zstandard.compress(VMLINUX) + bytes(4)), id="wrong size"),
        pytest.param(bz_image(_with_size(lzma.compress))[:0x24A], id="cut off"),
    ],
)
def test_what_is_no_kernel_is_refused(tmp_path: Path, image: bytes) -> None:
    (tmp_path / "vmlinuz").write_bytes(image)
    with pytest.raises(UserError, match="vmlinuz"):
        extract_vmlinux(tmp_path / "vmlinuz")


# -- keys ------------------------------------------------------------------------------------------------------------


@for_each([zstandard.compress, lzma.compress, gzip.compress])
def test_a_module_that_was_cut_off_or_changed_is_damaged(compress: Callable[[bytes], bytes]) -> None:
    packed = compress(VMLINUX)
    for wrong in (packed[: len(packed) // 2], packed[:10] + bytes(8) + packed[18:]):
        with pytest.raises(UserError, match=r"edu\.ko\.xz is damaged"):
            decompress(wrong, "edu.ko.xz")


def test_keys_are_made_once_and_kept_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    keys = ensure_keys()
    assert ensure_keys() == keys
    assert stat.S_IMODE(keys.client.stat().st_mode) == 0o600
    assert keys.client.read_bytes() not in archive(keys.tree())


def test_each_side_knows_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    keys = ensure_keys()
    client = paramiko.Ed25519Key.from_private_key_file(str(keys.client))
    assert client.get_base64() == keys.client_public.split()[1]
    tree = keys.tree()
    assert tree["root/.ssh/authorized_keys"] == File(0o600, f"{keys.client_public}\n".encode())
    host = tree["etc/dropbear/dropbear_ed25519_host_key"]
    assert isinstance(host, File)
    public = paramiko.Message(host.read())
    assert public.get_text() == "ssh-ed25519"
    assert public.get_binary()[32:] == paramiko.Ed25519Key(data=_blob(keys.host_public)).asbytes()[-32:]


def _blob(line: str) -> bytes:
    import base64

    return base64.b64decode(line.split()[1])
