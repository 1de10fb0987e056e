#!/usr/bin/env python3
"""In a guest: four threads write blocks of a disk and flush now and then, until /tmp/enough is there.

    writing /dev/vda

/tmp/writing is touched at each flush: whoever takes it away sees that the writers go on. In the end all blocks that
were written are read. A thread that is told of an error ends, and says so.
"""

import mmap
import os
import random
import sys
import threading
from pathlib import Path

SIZE, BLOCKS, WRITERS, FLUSH_AFTER, LEAST = 4096, 2048, 4, 50, 100
SAID, ENOUGH = Path("/tmp/writing"), Path("/tmp/enough")


def write(disk: int, which: int, expected: dict[int, bytes]) -> None:
    page, numbers, turn = mmap.mmap(-1, SIZE), random.Random(which), 0
    while not ENOUGH.exists():
        turn += 1
        block = numbers.randrange(BLOCKS // WRITERS) * WRITERS + which
        page[:] = data = (turn * WRITERS + which).to_bytes(8, "little") * (SIZE // 8)
        os.pwritev(disk, [page], block * SIZE)
        expected[block] = data
        if turn % FLUSH_AFTER == 0:
            os.fsync(disk)
            SAID.touch()


def main() -> None:
    disk = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
    expected: dict[int, bytes] = {}
    threads = [threading.Thread(target=write, args=(disk, which, expected)) for which in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page, wrong = mmap.mmap(-1, SIZE), 0
    for block, data in expected.items():
        os.preadv(disk, [page], block * SIZE)
        wrong += page[:] != data
    busy = all(any(block % WRITERS == which for block in expected) for which in range(WRITERS))
    whole = len(expected) > LEAST and busy
    print(f"{wrong} of {len(expected)} are wrong" if wrong or not whole else "all is there")


if __name__ == "__main__":
    main()
