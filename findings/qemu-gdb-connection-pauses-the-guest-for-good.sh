#!/bin/sh
# Whoever connects to QEMU's gdbstub pauses the guest, without a word said; when he is gone, it stays paused.
#
# Guess: a connection changes nothing until a debugger asks for something; or the guest stands still for as long as the
# connection lasts, and goes on when it ends.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 11.1.3 does the same): running, paused by a connection on
# which nothing was sent, paused still after its end, which is no event either. A harness that waits for the port by
# connecting to it, and a debugger that is killed, leave a guest that looks hung, until somebody says `cont`.
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
cat >ask.py <<"ASK"
import json, os, socket, subprocess

ours, qemus = socket.socketpair()
os.set_inheritable(qemus.fileno(), True)
options = "-machine pc -accel tcg -nodefaults -display none -gdb unix:gdb,server=on,wait=off".split()
firmware = "-L unpacked/usr/share/qemu -L unpacked/usr/share/seabios".split()
monitor = ["-chardev", f"socket,id=qmp,fd={qemus.fileno()}", "-mon", "chardev=qmp,mode=control"]
program = ["unpacked/usr/bin/qemu-system-x86_64", *options, *firmware, *monitor]
qemu = subprocess.Popen(program, pass_fds=[qemus.fileno()])
qemus.close()
ours.settimeout(60)
lines = ours.makefile("rw")
lines.readline()  # the greeting
events = []


def hear():
    said = json.loads(lines.readline())
    if "event" in said:
        events.append(said["event"])
    return said


def ask(command):
    print(json.dumps({"execute": command}), file=lines, flush=True)
    while "event" in (said := hear()):
        pass
    return said["return"]


ask("qmp_capabilities")
print("at first:", ask("query-status")["status"])
debugger = socket.socket(socket.AF_UNIX)
debugger.connect("gdb")
while "STOP" not in events:
    hear()
print("connected:", ask("query-status")["status"])
debugger.close()
ours.settimeout(5)
try:
    while True:
        hear()
except TimeoutError:
    print("events of it all:", *events)
lines = ours.makefile("rw")  # the one before reads no more after its timeout
ours.settimeout(60)
print("the connection ended:", ask("query-status")["status"])
ask("cont")
print("told to:", ask("query-status")["status"])
qemu.kill()
qemu.wait()
ASK
QEMU_MODULE_DIR=unpacked/usr/lib/x86_64-linux-gnu/qemu LD_LIBRARY_PATH="$libraries" python3 ask.py | tee said
cmp said - <<"SAID"
at first: running
connected: paused
events of it all: STOP
the connection ended: paused
told to: running
SAID
