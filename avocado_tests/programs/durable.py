#!/usr/bin/env python3
"""In a guest: write numbered blocks to a disk, and note each that was acknowledged as being on stable storage.

    durable /dev/nvme0n1 fua      write by write, each with FUA
    durable /dev/nvme0n1 flush    write, then flush

Block n goes to place n % PLACES and is full of its number. /tmp/acknowledged has the number of the last one that was
acknowledged, and /tmp/failed why it ended, if it did; /tmp/enough ends it.
"""

import mmap
import os
import struct
import sys
from pathlib import Path

PLACES, SIZE = 64, 4096
FLAGS = {"fua": os.O_DSYNC, "flush": 0}


def main() -> None:
    path, way = sys.argv[1:]
    disk = os.open(path, os.O_RDWR | os.O_DIRECT | FLAGS[way])
    noted = os.open("/tmp/acknowledged", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    page = mmap.mmap(-1, SIZE)  # O_DIRECT wants it aligned
    number = 0
    try:
        while not Path("/tmp/enough").exists():
            page[:] = struct.pack("<Q", number) * (SIZE // 8)
            os.pwritev(disk, [page], number % PLACES * SIZE)
            if way == "flush":
                os.fdatasync(disk)
            os.pwrite(noted, b"%d" % number, 0)
            number += 1
    except OSError as error:
        Path("/tmp/failed").write_text(str(error))


if __name__ == "__main__":
    main()
