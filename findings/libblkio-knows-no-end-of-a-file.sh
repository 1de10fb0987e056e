#!/bin/sh
# libblkio's driver `io_uring` writes behind the capacity that it has told, and reads zeros from there.
#
# Guess: -EINVAL or -EIO in the completion for whatever is not within `capacity`, as from a disk.
# Seen on 2026-11-29, libblkio 1.5.0 (Debian 13's 1.5.0-2), Linux 6.18: on a regular file of 1,000 bytes `capacity` is 1000.
# A read of 4 KiB from 0 and one at 8 KiB both complete with 0, the rest is zeros; a write of 512 bytes at 1 MiB completes
# with 0 and makes the file 1,049,088 bytes long, which `capacity` says then. A user whose offsets are wrong is told
# nothing, and one that was tried on a file finds its first error on a real disk.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# Debian 13's package from where this machine has Debian's, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial sources
: >status
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
    [ ! -s "$file" ] || sed "s/bookworm/trixie/g" "$file" >"sources/${file##*/}"
done
[ ! -e sources/sources.list ] || mv sources/sources.list sources/main.list
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/sources" -o APT::Sandbox::User= \
        -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends libblkio1=1.5.0-2
dpkg-deb --extract cache/archives/libblkio1_*.deb unpacked
cat >ask.py <<"ASK"
import ctypes, os, sys
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_int64, c_void_p

library = ctypes.CDLL(sys.argv[1])
library.blkio_get_error_msg.restype = c_char_p
library.blkio_get_queue.restype = c_void_p
library.blkio_get_queue.argtypes = [c_void_p, c_int]


class Region(ctypes.Structure):
    _fields_ = [("addr", c_void_p), ("len", c_size_t), ("iova", c_uint64), ("fd_offset", c_int64), ("fd", c_int),
                ("flags", c_uint32)]


class Completion(ctypes.Structure):
    _fields_ = [("user_data", c_void_p), ("error_msg", c_char_p), ("ret", c_int), ("reserved", c_uint8 * 12)]


def must(status):
    if status < 0:
        sys.exit(library.blkio_get_error_msg().decode())
    return status


with open("disk", "wb") as file:
    file.write(b"a" * 1000)
disk, region, capacity = c_void_p(), Region(), c_uint64()
must(library.blkio_create(b"io_uring", byref(disk)))
must(library.blkio_set_str(disk, b"path", b"disk"))
must(library.blkio_connect(disk))
must(library.blkio_start(disk))
must(library.blkio_alloc_mem_region(disk, byref(region), c_size_t(65536)))
must(library.blkio_map_mem_region(disk, byref(region)))
queue = c_void_p(library.blkio_get_queue(disk, 0))
for request, offset, size in ((library.blkioq_read, 0, 4096), (library.blkioq_read, 8192, 512),
                              (library.blkioq_write, 1 << 20, 512)):
    done = Completion()
    ctypes.memset(region.addr, ord("b"), size)
    request(queue, c_uint64(offset), c_void_p(region.addr), c_size_t(size), None, 0)
    must(library.blkioq_do_io(queue, byref(done), 1, 1, None))
    must(library.blkio_get_uint64(disk, b"capacity", byref(capacity)))
    last = ctypes.string_at(region.addr, size)[-1]
    print(f"{request.__name__[7:]} of {size} at {offset}: {done.ret}, last byte {last}; "
          f"capacity {capacity.value}, file {os.path.getsize('disk')}")
ASK
python3 ask.py "$(find "$work/unpacked" -name "libblkio.so.1")" | tee said
cmp said - <<"SAID"
read of 4096 at 0: 0, last byte 0; capacity 1000, file 1000
read of 512 at 8192: 0, last byte 0; capacity 1000, file 1000
write of 512 at 1048576: 0, last byte 98; capacity 1049088, file 1049088
SAID
