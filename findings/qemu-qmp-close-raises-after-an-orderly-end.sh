#!/bin/sh
# Closing a qemu.qmp connection raises EOFError when QEMU has ended because it was told to.
#
# Guess: close() and disconnect() of a connection that the other side has ended are nothing to raise for: `quit` was
# answered, and its event SHUTDOWN has come.
# Seen on 2026-11-29, qemu.qmp 0.0.6 (Python 3.11), QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): `quit` answers {},
# QEMU ends with status 0, and then the legacy close() and the asynchronous disconnect() both raise EOFError; a second
# call does not. Where the call stands in a `finally` or at the end of a `with`, it fails a test that has passed, or
# takes the place of the reason why one failed.
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
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check qemu.qmp==0.0.6
cat >ask.py <<"PROGRAM"
import asyncio
import os
import subprocess
import time

from qemu.qmp import QMPClient
from qemu.qmp.legacy import QEMUMonitorProtocol

LIBRARIES = {**os.environ, "LD_LIBRARY_PATH": os.environ["QEMU_LIBRARIES"]}


def start(path):
    program = "unpacked/usr/bin/qemu-system-x86_64 -machine none -nodefaults -display none -qmp"
    qemu = subprocess.Popen([*program.split(), f"unix:{path},server=on,wait=off"], env=LIBRARIES)
    while not os.path.exists(path):
        assert qemu.poll() is None
        time.sleep(0.05)
    return qemu


def legacy():
    qemu = start("legacy")
    monitor = QEMUMonitorProtocol("legacy")
    monitor.connect()
    print("legacy: quit", monitor.cmd("quit"), "status", qemu.wait(60))
    for _ in range(2):
        try:
            print("legacy: close", monitor.close())
        except EOFError as error:
            print("legacy: close", repr(error))


async def asynchronous():
    qemu = start("asynchronous")
    client = QMPClient("test")
    await client.connect("asynchronous")
    print("asynchronous: quit", await client.execute("quit"), "status", await asyncio.to_thread(qemu.wait, 60))
    for _ in range(2):
        try:
            print("asynchronous: disconnect", await client.disconnect())
        except EOFError as error:
            print("asynchronous: disconnect", repr(error))


legacy()
asyncio.run(asynchronous())
PROGRAM
QEMU_LIBRARIES=$libraries venv/bin/python ask.py 2>said | tee seen
cmp seen - <<"SEEN"
legacy: quit {} status 0
legacy: close EOFError()
legacy: close None
asynchronous: quit {} status 0
asynchronous: disconnect EOFError()
asynchronous: disconnect None
SEEN
