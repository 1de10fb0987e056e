"""The disk that QEMU's own sources have as a sample of vhost-user: in C, one thread, one system call a request.

What a server of one thread can be worth beside qemu-storage-daemon, which copies with several. Built of Debian's source
of QEMU (contrib/vhost-user-blk, subprojects/libvhost-user); of QEMU's own headers it needs three, written here.
"""

from __future__ import annotations

import platform
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from userdev.process import await_listening
from vfio_user.harness import Child, DebianArchive, c_compiler

SUITE = "trixie"
SOURCES = (
    "contrib/vhost-user-blk/vhost-user-blk.c",
    "subprojects/libvhost-user/libvhost-user.c",
    "subprojects/libvhost-user/libvhost-user-glib.c",
)
WANTED = ("contrib/vhost-user-blk/", "subprojects/libvhost-user/", "include/standard-headers/linux/")
ELSEWHERE = {f"include/qemu/{name}.h": f"subprojects/libvhost-user/include/{name}.h" for name in ("atomic", "compiler")}
"""Links of QEMU's, which its tar has as such."""
HEADERS = {
    "include/qemu/osdep.h": """
        #include <assert.h>
        #include <errno.h>
        #include <fcntl.h>
        #include <inttypes.h>
        #include <stdbool.h>
        #include <stddef.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/socket.h>
        #include <sys/stat.h>
        #include <sys/uio.h>
        #include <sys/un.h>
        #include <unistd.h>
        #include <glib.h>
        #define CONFIG_LINUX 1
        #define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
        """,
    "include/qemu/bswap.h": """
        #include <endian.h>
        #define le16_to_cpu le16toh
        #define le32_to_cpu le32toh
        #define le64_to_cpu le64toh
        """,
    "include/standard-headers/linux/types.h": """
        #include <linux/types.h>
        #include <stdint.h>
        """,
}
FLAGS = ("-O2", "-g", "-w", "-std=gnu11", "-D_GNU_SOURCE", "-Iinclude", "-Isubprojects/libvhost-user")
START_SECONDS = 20.0


def one_thread_program(folder: Path) -> Path:
    """The program, built in `folder`.

    Raises:
        UserError: no network, no space, or no source of QEMU at the mirror.
    """
    archive = DebianArchive((SUITE,)).fetch_source("qemu", folder)
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if member.isfile() and (name.startswith(WANTED) or name in ELSEWHERE):
                file = tar.extractfile(member)
                assert file is not None
                _write(folder / ELSEWHERE.get(name, name), file.read())
    archive.unlink()
    for name, text in HEADERS.items():
        _write(folder / name, text.encode())
    debian = DebianArchive((platform.freedesktop_os_release()["VERSION_CODENAME"],))  # for this machine's C library
    debian.unpack(debian.fetch(["libglib2.0-dev"]), folder / "glib")
    libraries = [str(next(folder.glob(f"glib/usr/lib/*/{name}"))) for name in ("libglib-2.0.a", "libpcre2-8.a")]
    headers = folder / "glib/usr/include/glib-2.0", Path(libraries[0]).parent / "glib-2.0/include"
    c_compiler().compile(
        [*FLAGS, *(f"-I{each}" for each in headers), "-o", "one-thread", *SOURCES, *libraries, "-lpthread", "-lm"],
        folder,
    )
    return folder / "one-thread"


@contextmanager
def one_thread(program: Path, image: Path, socket: Path) -> Iterator[Child]:
    """It serves one front-end, and ends."""
    socket.unlink(missing_ok=True)
    child = Child("one thread", [str(program), "-s", str(socket), "-b", str(image)], log=socket.with_suffix(".log"))
    try:
        if not await_listening(socket, child.end, START_SECONDS):
            raise SystemExit(f"QEMU's sample does not listen: {child.last_words()}")
        yield child
    finally:
        child.stop()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
