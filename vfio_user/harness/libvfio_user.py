"""The reference implementation in C, libvfio-user, and its sample programs: built once, into the cache.

Debian has no package of it, but QEMU's source carries it as a subproject, with the v1 migration region: the dialect
`region-migration`. Its own build wants Meson and a test library; three calls of a C compiler do as well.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Progress, own_suite, quiet
from vfio_user.harness.toolchain import Compiler, c_compiler

_LIBRARY = ("dma", "irq", "libvfio-user", "migration", "pci", "pci_caps", "tran", "tran_sock")
_SUITES = ("trixie", "forky")  # tried in turn; each has the same revision of libvfio-user
_FLAGS = ("-O2", "-g", "-w", "-std=gnu99", "-D_GNU_SOURCE")  # as its meson.build, but optimised
_WANTED = re.compile(r"[^/]+/subprojects/libvfio-user/((?:include|lib|samples)/.+\.[ch]|LICENSE)")

# program: the parts of the library that go into it (`client` brings functions of its own in place of the others)
PROGRAMS: dict[str, tuple[str, ...]] = {
    "server": _LIBRARY,
    "gpio-pci-idio-16": _LIBRARY,
    "client": ("migration", "tran", "tran_sock"),
}
"""libvfio-user's samples, by name. `server` and `gpio-pci-idio-16` take a socket's path; `client` is for `server`."""

# path: what is changed there, and into what
_MENDED = {
    "samples/client.c": (
        # adds up what it wrote before, and so is content only where it wrote once, as it does under valgrind
        (b"crc = rte_hash_crc(buf, fake_guest_data->bar1_size, crc);", b"crc = rte_hash_crc(buf, sizeof(buf), 0);"),
        (b"t = time(NULL) + 10;", b"t = time(NULL) + 2;"),  # for an interrupt that somebody has to wait for
    )
}

DIALECT = "region-migration"
"""What they speak."""


def reference_program(name: str, *, progress: Progress = quiet) -> Path:
    """The path of one of `PROGRAMS`, built when it is not there yet.

    Raises:
        UserError: there is no such program, no apt, no network or no space.
    """
    if name not in PROGRAMS:
        raise UserError(f"libvfio-user has no sample called {name}", hint=f"there are {', '.join(PROGRAMS)}")
    home = cache_dir() / "libvfio-user" / _digest()
    with locked("libvfio-user"):
        if not home.exists():
            compiler = c_compiler(progress=progress)
            with publish(home) as making:
                _build(compiler, making, progress)
    return home / name


def _digest() -> str:
    """The digest of all that decides what is built."""
    return hashlib.sha256(repr((PROGRAMS, _FLAGS, _MENDED, platform.machine())).encode()).hexdigest()[:16]


def _build(compiler: Compiler, into: Path, progress: Progress) -> None:
    """Fetch the sources, keep them beside the programs (a debugger finds them there), and compile."""
    with TemporaryDirectory(prefix="vfu-source-", dir=into.parent) as folder:
        for path, content in _sources(_fetch(Path(folder), progress)):
            for wrong, right in _MENDED.get(path, ()):
                content = content.replace(wrong, right)
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_bytes(content)
    archive = DebianArchive((own_suite(),))  # for this machine's C library
    archive.unpack(archive.fetch(("libjson-c-dev",), progress=progress), into / "json-c")
    progress(f"compiling {', '.join(PROGRAMS)}")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: _compile(compiler, into, name), PROGRAMS))
    shutil.rmtree(into / "json-c")


def _fetch(folder: Path, progress: Progress) -> Path:
    """QEMU's source of the first suite that the mirror really has."""
    refusals = []
    for suite in _SUITES:
        try:
            return DebianArchive((suite,)).fetch_source("qemu", folder, progress=progress)
        except UserError as error:
            refusals.append(f"{suite}: {error}")
    raise UserError(
        f"QEMU's source, which has libvfio-user in it, cannot be had; {'; '.join(refusals)}",
        hint="is there a network? does the mirror of this machine's apt carry sources?",
    )


def _sources(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The C files of libvfio-user, and its licence, in QEMU's source: path below its folder, content."""
    found = False
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if (wanted := _WANTED.fullmatch(member.name)) and (file := tar.extractfile(member)):
                found = True
                yield wanted[1], file.read()
    if not found:
        raise UserError(f"{archive.name} has no libvfio-user in it any more")


def _compile(compiler: Compiler, root: Path, name: str) -> None:
    parts = [f"samples/{name}.c", *(f"lib/{part}.c" for part in PROGRAMS[name])]
    json_c = next(root.glob("json-c/usr/lib/*/libjson-c.a"))
    folders = ("-Iinclude", "-Ilib", "-Ijson-c/usr/include/json-c")
    compiler.compile([*_FLAGS, *folders, "-o", name, *parts, str(json_c), "-lpthread"], root)
