#!/bin/sh
# In an expression of QEMU's monitor `&`, `|` and `^` bind tighter than `+` and `-`: 0x1003+0xfff&~0xfff is 0x1003.
#
# Guess: the operators of C with C's precedence, so that this rounds up to a page, 0x2000, and 8-1|8 is 15.
# Seen on 2026-11-30, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): the mask is applied to the number on its left alone, and
# 8-1|8 is -1.
# The manual says that "the monitor understands integers expressions for every integer argument" and nothing of their
# order; `x /4xw $esp+0xfff&~0xfff` shows other memory than was meant, and pmemsave saves it. With parentheses it is
# right.
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
cat >commands <<"COMMANDS"
print 0x1003+0xfff&~0xfff
print (0x1003+0xfff)&~0xfff
print 1+1&1
print 8-1|8
quit
COMMANDS
LD_LIBRARY_PATH=$libraries unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu -L unpacked/usr/share/seabios \
    -accel tcg -S -nodefaults -display none -monitor stdio <commands | tr -d "\r" | grep -xE "0x[0-9a-f]+" | tee seen
cmp seen - <<"SEEN"
0x1003
0x2000
0x2
0xffffffffffffffff
SEEN
