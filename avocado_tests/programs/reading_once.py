#!/usr/bin/env python3
"""In a guest: read a disk into buffers that are used once, until /tmp/busy is gone; then compare all of them.

    reading_once /dev/vda

A buffer that is read into again would hide a write that a dirty log has lost. They are all there before: a page that
the guest itself makes is sent by a migration anyway, with what was read into it.
"""

import mmap
import os
import sys
import time
from pathlib import Path

SIZE, COUNT, BLOCKS, PAUSE = 4096, 20000, 256, 0.0002
BUSY = Path("/tmp/busy")


def main() -> None:
    disk = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
    once = mmap.mmap(-1, COUNT * SIZE)
    once.write(bytes([255]) * len(once))
    buffers, reference = memoryview(once), mmap.mmap(-1, BLOCKS * SIZE)
    os.preadv(disk, [reference], 0)
    expected = [reference[at * SIZE : (at + 1) * SIZE] for at in range(BLOCKS)]
    BUSY.touch()
    done = 0
    while BUSY.exists() and done < COUNT:
        os.preadv(disk, [buffers[done * SIZE :][:SIZE]], done % BLOCKS * SIZE)
        done += 1
        time.sleep(PAUSE)
    while BUSY.exists():
        time.sleep(0.01)
    wrong = [at for at in range(done) if buffers[at * SIZE :][:SIZE] != expected[at % BLOCKS]]
    print(f"wrong: {len(wrong)} of {done}" if wrong else "no wrong buffer")


if __name__ == "__main__":
    main()
