#!/bin/sh
# QMP's human-monitor-command succeeds where the monitor's command fails: the error is the text that it returns.
#
# Guess: what fails is an "error" of QMP's, by which every client raises: a `loadvm` without a snapshot, a device that
# does not exist, a command that is misspelt.
# Seen on 2026-11-30, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): all of them have the answer
# "return". Some texts begin with "Error: ", others do not ("unknown command: 'lodvm'", "invalid parameter: A"), and a
# command that worked returns an empty text or its output. So a harness that goes back to a snapshot with `loadvm`, for
# which 7.2 has no plain command of QMP's, goes on with the guest as it is. The schema's list of the command's
# limitations has no word on it.
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
options = "-machine pc -m 64 -accel tcg -nodefaults -display none -S".split()
firmware = "-L unpacked/usr/share/qemu -L unpacked/usr/share/seabios".split()
control = ["-chardev", f"socket,id=qmp,fd={qemus.fileno()}", "-mon", "chardev=qmp,mode=control"]
program = ["unpacked/usr/bin/qemu-system-x86_64", *options, *firmware, *control]
qemu = subprocess.Popen(program, pass_fds=[qemus.fileno()])
qemus.close()
ours.settimeout(60)
lines = ours.makefile("rw")
lines.readline()  # the greeting


def ask(command, **arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while "event" in (answer := json.loads(lines.readline())):
        pass
    return answer


ask("qmp_capabilities")
for line in "lodvm good", "loadvm good", "device_add nonsense", "sendkey A", "drive_add 0 if=none,file=nothing", "stop":
    print(f"{line}:", ask("human-monitor-command", **{"command-line": line}))
print("QMP's device_add:", *ask("device_add", driver="nonsense"))
qemu.kill()
qemu.wait()
ASK
LD_LIBRARY_PATH=$libraries python3 ask.py | tee seen
cmp seen - <<"SEEN"
lodvm good: {'return': "unknown command: 'lodvm'\r\n"}
loadvm good: {'return': 'Error: no block device can store vmstate for snapshot\r\n'}
device_add nonsense: {'return': "Error: 'nonsense' is not a valid device model name\r\n"}
sendkey A: {'return': 'invalid parameter: A\r\n'}
drive_add 0 if=none,file=nothing: {'return': "Could not open 'nothing': No such file or directory\r\n"}
stop: {'return': ''}
QMP's device_add: error
SEEN
