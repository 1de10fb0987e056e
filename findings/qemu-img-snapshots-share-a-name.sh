#!/bin/sh
# `qemu-img snapshot -c NAME` takes a name that is there already, and going back to NAME goes to the oldest of them.
#
# Guess: the second of a name is refused, or takes the place of the first, as `savevm` of a running QEMU does it.
# Seen on 2026-11-29, qemu-img 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3; 10.0.13 does the same): both are kept, `-a NAME`, `-d NAME`
# and `convert -l NAME` mean the oldest, and there is no word of that. A snapshot that is named with a number is not found
# by its name where another has that number: `-a 1` is the first of the list, whose name is another. With
# `convert -l snapshot.name=1` it is the one of that name.
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
fetch install --yes --download-only --no-install-recommends qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
run qemu-img create -q -f qcow2 image 64k
# The three snapshots are told apart by what is on the disk: 1, 2 and 3.
for each in 1:nightly 2:nightly 3:1; do
    run qemu-io -f qcow2 -c "write -q -P ${each%:*} 0 64k" image
    run qemu-img snapshot -c "${each#*:}" image
done
byte() { od -An -N1 -tu1 "$1" | tr -d " "; }
{
    run qemu-img snapshot -l image | tail -n 3 | awk '{print "number " $1 " is named " $2}'
    for name in nightly 1 snapshot.name=1; do
        run qemu-img convert -f qcow2 -O raw -l "$name" image copy
        echo "a copy of $name has $(byte copy)"
    done
    for name in nightly 1; do
        cp image other
        run qemu-img snapshot -a "$name" other
        run qemu-img convert -f qcow2 -O raw other copy
        echo "the disk that went back to $name has $(byte copy)"
    done
    run qemu-img snapshot -d nightly image
    echo "without nightly there are:$(run qemu-img snapshot -l image | tail -n 2 | awk '{printf " %s named %s", $1, $2}')"
} | tee seen
cmp seen - <<"SEEN"
number 1 is named nightly
number 2 is named nightly
number 3 is named 1
a copy of nightly has 1
a copy of 1 has 1
a copy of snapshot.name=1 has 3
the disk that went back to nightly has 1
the disk that went back to 1 has 1
without nightly there are: 2 named nightly 3 named 1
SEEN
