"""Building libvfio-user, of a source of a few lines in Debian's place; the real one is tests/test_reference.py's."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from userdev.errors import UserError
from vfio_user.harness import libvfio_user
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.debian import DebianArchive
from vfio_user.harness.libvfio_user import reference_program
from vfio_user.harness.toolchain import Compiler, c_compiler

SAMPLE = "int vfu_part(void);\nint main(void) { return vfu_part() - 42; }\n"


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return c_compiler()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def archive(tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in place of Debian's, whose QEMU has a libvfio-user of a few lines."""
    source = tmp_path / "qemu_1.0.orig.tar.xz"
    tree = tmp_path / "qemu-1.0/subprojects/libvfio-user"
    for name, text in {"lib/part.c": "int vfu_part(void) { return 42; }\n", "samples/sample.c": SAMPLE}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    pack(tmp_path / "qemu-1.0", source)

    def fetch_source(self: DebianArchive, package: str, into: Path, **_: object) -> Path:
        assert package == "qemu"
        if self.suites != ("forky",):
            raise UserError("404 not found")
        return Path(shutil.copy(source, into / source.name))

    def unpack(_: DebianArchive, __: object, into: Path) -> None:
        library = into / "usr/lib/machine/libjson-c.a"
        library.parent.mkdir(parents=True)
        library.write_bytes(b"!<arch>\n")

    monkeypatch.setattr(DebianArchive, "fetch_source", fetch_source)
    monkeypatch.setattr(DebianArchive, "fetch", lambda *_, **__: [])
    monkeypatch.setattr(DebianArchive, "unpack", unpack)
    monkeypatch.setattr(libvfio_user, "c_compiler", lambda **_: compiler)
    monkeypatch.setattr(libvfio_user, "PROGRAMS", {"sample": ("part",)})
    return source


def pack(tree: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tree, tree.name)


@pytest.mark.network
def test_it_comes_from_the_first_suite_that_has_it_and_runs(archive: Path, own_cache: Path) -> None:
    program = reference_program("sample")
    assert subprocess.run([program], check=False).returncode == 0
    assert program.is_relative_to(own_cache)


@pytest.mark.network
def test_the_second_time_nothing_is_fetched(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = reference_program("sample")
    monkeypatch.setattr(libvfio_user, "_fetch", None)
    assert reference_program("sample") == first


@pytest.mark.network
def test_what_does_not_compile_leaves_nothing_and_says_so(archive: Path, tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "qemu-1.0/subprojects/libvfio-user/lib/part.c").write_text("#include <nonesuch.h>\n")
    pack(tmp_path / "qemu-1.0", archive)
    with pytest.raises(UserError, match=r"nonesuch\.h"):
        reference_program("sample")
    assert list((own_cache / "libvfio-user").iterdir()) == []


@pytest.mark.network
def test_a_qemu_without_it_is_the_users_error(archive: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "qemu-1.0/subprojects")
    pack(tmp_path / "qemu-1.0", archive)
    with pytest.raises(UserError, match="no libvfio-user"):
        reference_program("sample")


def test_a_sample_that_there_is_not_is_the_users_error() -> None:
    with pytest.raises(UserError, match="nonesuch") as caught:
        reference_program("nonesuch")
    assert "gpio-pci-idio-16" in caught.value.hint
