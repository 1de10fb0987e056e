#!/bin/sh
# What vncdotool and asyncvnc type into a guest of QEMU has no shift: of `root:X_1!` the guest has `root;X-11`.
#
# Guess: a client that is told to type a text presses what the text needs, as a person would who types in a viewer: ":"
# is shift and the key of ";".
# Seen on 2026-11-30, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3), vncdotool 1.4.2, asyncvnc 1.3.0: both send the key
# symbol alone, which QEMU takes for a key of its keyboard, without shift: ":" is ";", "_" is "-", "!" is 1. For a
# capital QEMU presses caps lock, and again not until the next small letter. A password that a test types is another
# one, and nothing fails. vncdotool has --force-caps "for non-compliant servers", with which it presses shift; asyncvnc
# has nothing.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends qemu-system-x86=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check vncdotool==1.4.2 asyncvnc==1.3.0
cat >type.py <<"PROGRAM"
"""A guest of 24 bytes that reads the keyboard by the BIOS and writes each sign to its serial line, after a ">"."""

import asyncio, os, socket, subprocess, time

import asyncvnc

GUEST = bytes.fromhex("31d2 b8e300 cd14 b83e01 cd14 b400 cd16 b401 31d2 cd14 ebf4")
TEXT = "root:X_1!"


async def by_asyncvnc(port):
    async with asyncvnc.connect("127.0.0.1", port) as client:
        client.keyboard.write(TEXT)
        await client.drain()


def vncdotool(*options):
    program = "venv/bin/vncdo", *options, "-s"
    return lambda port: subprocess.run([*program, f"127.0.0.1::{port}", "type", TEXT], check=True)


def typed(length):
    """What the guest has written, as soon as that is so many signs or does not become more."""
    for _ in range(60):
        with open("typed") as signs:
            if len(text := signs.read()) >= length:
                break
        time.sleep(0.5)
    return text


with open("disk", "wb") as disk:
    disk.write(GUEST.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
ways = {
    "vncdotool": vncdotool(),
    "vncdotool --force-caps": vncdotool("--force-caps"),
    "asyncvnc": lambda port: asyncio.run(by_asyncvnc(port)),
}
for name, way in ways.items():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = "LD_LIBRARY_PATH=" + os.environ["LIBRARIES"]  # which Python is to do without
    options = f"-machine pc -m 16 -accel tcg -nodefaults -display none -vga std -vnc 127.0.0.1:{port - 5900}".split()
    firmware = "-L unpacked/usr/share/qemu -L unpacked/usr/share/seabios".split()
    guest = "-drive file=disk,format=raw -serial file:typed".split()
    program = ["env", libraries, "unpacked/usr/bin/qemu-system-x86_64", *options, *firmware, *guest]
    open("typed", "w").close()
    qemu = subprocess.Popen(program, stdin=subprocess.DEVNULL)
    try:
        typed(1)
        way(port)
        print(f"{name}: {TEXT} is", typed(1 + len(TEXT))[1:])
    finally:
        qemu.kill()
        qemu.wait()
PROGRAM
LIBRARIES=$libraries venv/bin/python type.py | tee seen
cmp seen - <<"SEEN"
vncdotool: root:X_1! is root;X-11
vncdotool --force-caps: root:X_1! is root:X_1!
asyncvnc: root:X_1! is root;X-11
SEEN
