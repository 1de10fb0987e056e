#!/bin/sh
# qemu-storage-daemon makes the eventfds of its vhost-user front-end non-blocking, for the front-end too.
#
# Guess: a descriptor that is sent to another process stays as it was for its owner; who receives it sets what he needs on
# a descriptor of his own.
# Seen on 2026-11-29, qemu-storage-daemon 7.2.22 (Debian 12's qemu-system-common 1:7.2+dfsg-7+deb12u18+b3; 11.1.3 does the same):
# after SET_VRING_CALL the front-end's own eventfd has O_NONBLOCK, which belongs to what both descriptors stand for. A
# front-end that waits for a call by a blocking read gets EAGAIN from then on: one that takes every error for the end gives
# up, one that tries again spins. Who has to work with it polls before it reads.
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
fetch install --yes --download-only --no-install-recommends qemu-system-common=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
head -c 1M /dev/zero >disk
cat >ask.py <<"ASK"
import fcntl, os, socket, struct, subprocess, sys, time

daemon = subprocess.Popen([sys.argv[1], "--blockdev", "driver=file,filename=disk,node-name=disk", "--export",
                           "type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path=socket"])
deadline = time.monotonic() + 20
while not os.path.exists("socket") and time.monotonic() < deadline:
    time.sleep(0.05)
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_VRING_CALL = 1, 2, 3, 13
front_end = socket.socket(socket.AF_UNIX)
front_end.connect("socket")


def say(request, payload=b"", fds=()):
    socket.send_fds(front_end, [struct.pack("<III", request, 1, len(payload)) + payload], fds)


def ask():
    say(GET_FEATURES)
    return front_end.recv(20, socket.MSG_WAITALL)  # what was said before has been done then


def blocks(fd):
    return "non-blocking" if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK else "blocking"


call = os.eventfd(0)
print("before:", blocks(call))
say(SET_OWNER)
ask()
say(SET_FEATURES, struct.pack("<Q", 1 << 32))  # VIRTIO_F_VERSION_1
say(SET_VRING_CALL, struct.pack("<Q", 0), [call])
ask()
print("after:", blocks(call))
front_end.close()
daemon.terminate()
daemon.wait()
ASK
LD_LIBRARY_PATH=$libraries python3 ask.py "$(find "$work/unpacked" -name qemu-storage-daemon -type f)" | tee said
[ "$(tr "\n" " " <said)" = "before: blocking after: non-blocking " ]
