#!/usr/bin/env python3
"""In a guest: read the end of a disk into memory that was plugged in, which is above 4 GiB.

    reading_high /dev/vda

Prints how many buffers there were right and wrong. The kernel gives memory above 4 GiB first (ZONE_NORMAL).
"""

import mmap
import os
import struct
import sys

SIZE, BUFFERS, BLOCKS, FRAME = 4096, 4096, 256, (1 << 55) - 1


def main() -> None:
    disk = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
    reference, memory = mmap.mmap(-1, BLOCKS * SIZE), mmap.mmap(-1, BUFFERS * SIZE)
    begin = os.lseek(disk, 0, os.SEEK_END) - len(reference)
    os.preadv(disk, [reference], begin)
    memory.write(bytes([255]) * len(memory))
    buffers = memoryview(memory)
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address_of(memory) // SIZE * 8)
        frames = struct.unpack(f"<{BUFFERS}Q", pagemap.read(BUFFERS * 8))
    high = [at for at in range(BUFFERS) if (frames[at] & FRAME) * SIZE >= 4 << 30]
    wrong = 0
    for at in high:
        buffer, block = buffers[at * SIZE :][:SIZE], at % BLOCKS * SIZE
        os.preadv(disk, [buffer], begin + block)
        wrong += buffer != reference[block : block + SIZE]
    print(f"{len(high) - wrong} right, {wrong} wrong")


def address_of(memory: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


if __name__ == "__main__":
    main()
