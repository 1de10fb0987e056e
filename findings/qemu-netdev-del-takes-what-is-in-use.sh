#!/bin/sh
# QEMU's netdev_del takes the network away from under a device that uses it; what comes back under its name is not
# connected.
#
# Guess: it is refused while a device uses it, as blockdev-del, object-del and chardev-remove are; or netdev_add of the
# same id mends it.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 10.0.13 does the same): it answers {}, there is no
# event, and the NIC's link goes down. `info network` lists the one that was deleted as the NIC's as before, and
# set_link does not know it. netdev_add takes the id again, so that there are two of the name, and the NIC stays with
# the dead one: a test that swaps the backend of a running guest finds every answer good and the guest without a network
# for good.
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
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
cat >ask.py <<"ASK"
import json, os, socket, subprocess

ours, qemus = socket.socketpair()
os.set_inheritable(qemus.fileno(), True)
options = "-machine pc -accel tcg -nodefaults -display none -S".split()
firmware = "-L unpacked/usr/share/qemu -L unpacked/usr/share/seabios".split()
network = "-netdev user,id=net -device e1000,netdev=net,id=nic,addr=2,romfile=".split()
console = "-chardev null,id=console -device isa-serial,chardev=console".split()
control = ["-chardev", f"socket,id=qmp,fd={qemus.fileno()}", "-mon", "chardev=qmp,mode=control"]
program = ["unpacked/usr/bin/qemu-system-x86_64", *options, *firmware, *network, *console, *control]
qemu = subprocess.Popen(program, pass_fds=[qemus.fileno()])
qemus.close()
ours.settimeout(60)
lines = ours.makefile("rw")
lines.readline()  # the greeting
events = []


def ask(command, **arguments):
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while "event" in (answer := json.loads(lines.readline())):
        events.append(answer["event"])
    return answer.get("return", answer.get("error", {}).get("desc"))


def monitor(line):
    return ask("human-monitor-command", **{"command-line": line})


def link():
    """Reads the bit "link up" of the NIC's status register (e1000, offset 8) as its driver does."""
    return "up" if int(monitor("xp /1wx 0xfe000008").split()[-1], 16) & 2 else "down"


def network():
    lines = monitor("info network").splitlines()
    return [line.strip(" \\").split(":")[0] for line in lines if "type=" in line]


ask("qmp_capabilities")
for port in ("0xcf8 0x80001010", "0xcfc 0xfe000000", "0xcf8 0x80001004", "0xcfc 2"):  # BAR 0, then memory on
    monitor("o /4 " + port)
print("before:", network(), "link", link())
print("chardev-remove:", ask("chardev-remove", id="console"))
print("netdev_del:", ask("netdev_del", id="net"), network(), "link", link())
print("set_link:", ask("set_link", name="net", up=True))
print("netdev_add:", ask("netdev_add", type="user", id="net"), network(), "link", link())
print("events:", events)
ask("quit")
qemu.wait(60)
ASK
export LD_LIBRARY_PATH="$libraries"
python3 ask.py | tee seen
cmp seen - <<"SEEN"
before: ['nic', 'net'] link up
chardev-remove: Chardev 'console' is busy
netdev_del: {} ['nic', 'net'] link down
set_link: Device 'net' not found
netdev_add: {} ['nic', 'net', 'net'] link down
events: []
SEEN
