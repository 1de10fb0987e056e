"""The archive that the kernel unpacks as its first file system: cpio in the "newc" form.

Written by hand because it needs no root: owner 0, device nodes and a fixed time are only numbers in a header, so the
same tree gives the same bytes on every machine. Archives may be concatenated: the kernel unpacks one after the other,
and a later one wins. Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
"""

from __future__ import annotations

import os
import shutil
import stat
from typing import BinaryIO

from userdev.errors import UserError
from vfio_user.harness.image.tree import Directory, Entry, File, Node, Symlink, Tree

MTIME = 1_700_000_000  # the same for every file of every image, in seconds of the epoch
ALIGNMENT = 4
MAX_FILE = (1 << 32) - 1
"""Bytes of a member: the header has 8 hexadecimal digits for them."""


def write_cpio(tree: Tree, out: BinaryIO) -> None:
    """Write `tree` as one archive: parents before children, sorted, its end padded so that another may follow.

    Raises:
        UserError: a file is larger than such an archive can have it.
    """
    for inode, (path, entry) in enumerate(tree, start=1):
        _write_member(out, path, entry, inode)
    _write_header(out, "TRAILER!!!", mode=0, size=0, inode=0, links=1)


def _write_member(out: BinaryIO, path: str, entry: Entry, inode: int) -> None:
    match entry:
        case Directory(mode):
            _write_header(out, path, mode=stat.S_IFDIR | mode, size=0, inode=inode, links=2)
        case Symlink(target):
            data = os.fsencode(target)
            _write_header(out, path, mode=stat.S_IFLNK | 0o777, size=len(data), inode=inode)
            _write_padded(out, data)
        case Node(mode, major, minor):
            _write_header(out, path, mode=stat.S_IFCHR | mode, size=0, inode=inode, device=(major, minor))
        case File(mode):
            with entry.open() as content:
                size = content.seek(0, os.SEEK_END)
                if size > MAX_FILE:
                    raise UserError(f"/{path} has {size} bytes: no file of an image has 4 GiB", hint=_ELSEWHERE)
                content.seek(0)
                _write_header(out, path, mode=stat.S_IFREG | mode, size=size, inode=inode)
                shutil.copyfileobj(content, out, 1 << 20)
                out.write(bytes(-size % ALIGNMENT))


_ELSEWHERE = "give it to the guest as a disk: --device nvme --image FILE"


def _write_header(
    out: BinaryIO, name: str, *, mode: int, size: int, inode: int, links: int = 1, device: tuple[int, int] = (0, 0)
) -> None:
    encoded = os.fsencode(name) + b"\0"
    owner = group = archive_major = archive_minor = checksum = 0
    about = (inode, mode, owner, group, links, MTIME if mode else 0, size)
    fields = (*about, archive_major, archive_minor, *device, len(encoded), checksum)
    # the header's 110 bytes and the name are padded together
    _write_padded(out, b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)


def _write_padded(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.write(bytes(-len(data) % ALIGNMENT))
