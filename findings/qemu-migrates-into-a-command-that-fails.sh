#!/bin/sh
# QEMU's `migrate` to `exec:COMMAND` is "completed" though COMMAND ended with a failure.
#
# Guess: "failed" with the command's status, and the guest goes on at the source: QEMU is the command's parent, waits for
# it, and is told how it ended.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 11.1.3 does the same): the exit status is not looked
# at. A command that fails before it has read all is noticed by the broken pipe alone. One that reads all and fails then (a
# compressor that cannot write its last block, `cat >FILE && false`) gives "completed" and a guest in `postmigrate`, so
# that whoever ends the source at `completed` has ended the guest. What the command says on standard error is all there is.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
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
import json, os, socket, subprocess, sys, time

COMMANDS = {"reads all, then fails": "exec:cat >stream; exit 3", "reads nothing": "exec:exit 3"}
for what, uri in COMMANDS.items():
    ours, qemus = socket.socketpair()
    os.set_inheritable(qemus.fileno(), True)
    # only QEMU itself finds its libraries there, not the commands that it starts
    options = "-machine q35 -accel tcg -m 16 -S -nodefaults -display none -L unpacked/usr/share/qemu".split()
    monitor = ["-chardev", f"socket,id=qmp,fd={qemus.fileno()}", "-mon", "chardev=qmp,mode=control"]
    seabios = ["-L", "unpacked/usr/share/seabios"]
    loader = ["unpacked/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "--library-path", sys.argv[1]]
    program = [*loader, "unpacked/usr/bin/qemu-system-x86_64", *options, *seabios, *monitor]
    qemu = subprocess.Popen(program, pass_fds=[qemus.fileno()], stderr=subprocess.DEVNULL)
    qemus.close()
    lines = ours.makefile("rw")
    lines.readline()  # the greeting

    def ask(command, **arguments):
        print(json.dumps({"execute": command, "arguments": arguments}), file=lines, flush=True)
        while "event" in (said := json.loads(lines.readline())):
            pass
        return said["return"]

    ask("qmp_capabilities")
    ask("migrate", uri=uri)
    deadline = time.monotonic() + 60
    while (status := ask("query-migrate").get("status")) not in ("completed", "failed") and time.monotonic() < deadline:
        time.sleep(0.1)
    print(f"{what}: {status}, guest {ask('query-status')['status']}")
    qemu.kill()
    qemu.wait()
ASK
QEMU_MODULE_DIR=unpacked/usr/lib/x86_64-linux-gnu/qemu python3 ask.py "$libraries" | tee said
grep -qx "reads all, then fails: completed, guest postmigrate" said
grep -qx "reads nothing: failed, guest prelaunch" said
