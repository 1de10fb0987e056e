"""What a guest has to find again on its disks, whatever happened to it: bytes beyond those that its work writes.

Functions for the guest (see `Guest.call`).
"""

from __future__ import annotations

KEPT = 64 << 10
"""Bytes, the last ones of a disk."""


def write_kept(address: str, size: int, seed: str) -> None:
    """In the guest: write the last bytes of the disk of a PCI function, and have them on it."""
    import os
    import random
    import sys

    sys.path.append("/opt/vfio-user")
    from disk_work import find_disk

    disk, end = find_disk(address)
    fd = os.open(disk, os.O_WRONLY)
    try:
        if os.pwrite(fd, random.Random(seed).randbytes(size), end - size) != size:
            raise OSError(f"less than {size} bytes were written")
        os.fsync(fd)
    finally:
        os.close(fd)


def differing(address: str, size: int, seed: str) -> str:
    """In the guest: what of them is not as `write_kept` left it, past the page cache; nothing: it all is."""
    import mmap
    import os
    import random
    import sys

    sys.path.append("/opt/vfio-user")
    from disk_work import find_disk

    disk, end = find_disk(address)
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, size) as room:
            count = os.preadv(fd, [room], end - size)
            found = room[:count]
    finally:
        os.close(fd)
    wanted = random.Random(seed).randbytes(size)
    if found == wanted:
        return ""
    first = next((at for at, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other), len(found))
    return f"of the last {size} bytes of {disk} those from {first} on are not what was written"
