#!/bin/sh
# QEMU loads a state into a machine that has a device, a display or a processor more, or another -cpu, without a word.
#
# Guess: an error, as where a device is missing: "Make sure that your current VM setup matches your saved VM setup,
# including any hotplugged devices", QEMU says then.
# Seen on 2026-11-30, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): only what the stream has and the machine lacks is
# missed. What the machine has beyond it stays as it was before the load, the migration is "completed", the guest is
# "running", and QEMU's standard error is empty. A test whose harness makes the two command lines apart passes, and has
# migrated to another machine than it says.
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
import json, os, socket, subprocess, sys


class Qemu:
    def __init__(self, *extra):
        self.ours, qemus = socket.socketpair()
        self.ours.settimeout(60)
        options = "-machine pc -m 64 -accel tcg -nodefaults -display none".split()
        firmware = "-L unpacked/usr/share/qemu -L unpacked/usr/share/seabios".split()
        control = ["-chardev", f"socket,id=qmp,fd={qemus.fileno()}", "-mon", "chardev=qmp,mode=control"]
        program = ["unpacked/usr/bin/qemu-system-x86_64", *options, *firmware, *control, *extra]
        self.process = subprocess.Popen(program, pass_fds=[qemus.fileno()], stderr=subprocess.PIPE, text=True)
        qemus.close()
        self.lines = self.ours.makefile("rw")
        self.lines.readline()  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        self.lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.lines.flush()
        while "event" in (answer := json.loads(self.lines.readline())):
            pass
        return answer["return"]

    def migrated(self):
        while (status := self.ask("query-migrate").get("status")) not in ("completed", "failed"):
            pass
        return status

    def end(self):
        try:
            self.ask("quit")
        except (OSError, ValueError):
            pass  # it has ended
        return self.process.communicate()[1].strip()


def tell(*extra):
    qemu = Qemu(*extra, "-incoming", "defer")
    try:
        qemu.ask("migrate-incoming", uri="exec:cat state")
        outcome = qemu.migrated(), qemu.ask("query-status")["status"]
    except (OSError, ValueError):
        outcome = "failed", "ended"
    print(*extra, "->", *outcome, "|", (qemu.end() or "not a word").splitlines()[0][:58])


rng = "-device", "virtio-rng-pci,addr=4"
source = Qemu(*rng)
source.ask("migrate", uri="exec:cat > state")
source.migrated()
source.end()
tell(*rng)
tell(*rng, "-device", "virtio-balloon-pci,addr=5")
tell(*rng, "-device", "VGA")
tell(*rng, "-smp", "2")
tell(*rng, "-cpu", "Nehalem")
tell()
ASK
LD_LIBRARY_PATH=$libraries python3 ask.py | tee seen
cmp seen - <<"SEEN"
-device virtio-rng-pci,addr=4 -> completed running | not a word
-device virtio-rng-pci,addr=4 -device virtio-balloon-pci,addr=5 -> completed running | not a word
-device virtio-rng-pci,addr=4 -device VGA -> completed running | not a word
-device virtio-rng-pci,addr=4 -smp 2 -> completed running | not a word
-device virtio-rng-pci,addr=4 -cpu Nehalem -> completed running | not a word
-> failed ended | qemu-system-x86_64: Unknown savevm section or instance '00
SEEN
