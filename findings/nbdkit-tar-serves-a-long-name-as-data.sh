#!/bin/sh
# nbdkit's filter `tar` serves a member with a long name from two blocks too early: its disk begins with the member's name.
#
# Guess: the member's bytes, as tar extracts them and as they are for a short name, or a refusal.
# Seen on 2026-11-30, nbdkit 1.32.5 (Debian 1.32.5-1), tar 1.34 (1.34+dfsg-1.2+deb12u1): of a GNU archive, which is
# tar's default, a member whose name has more than 100 bytes is 1,024 bytes out: first the name, then the header, then the
# bytes without their end, in the right size and with status 0. What is written through it goes over the name, and tar
# finds the member under no name of its own after it. With --format=posix it is right. The manual asks for the name
# "exactly", says nothing of its length.
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
fetch install --yes --download-only --no-install-recommends nbdkit=1.32.5-1 libnbd-bin=1.14.2-1 tar=1.34+dfsg-1.2+deb12u1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export libraries work
filter=$(find "$work/unpacked" -name nbdkit-tar-filter.so)
plugin=$(find "$work/unpacked" -name nbdkit-file-plugin.so)
archive() { LD_LIBRARY_PATH=$libraries "$work/unpacked/bin/tar" "$@"; }
export_of() { # archive, member, what nbdcopy does
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/nbdkit --unix - --filter="$filter" "$plugin" "$1" tar-entry="$2" \
        tar="$work/unpacked/bin/tar" --run "LD_LIBRARY_PATH=\$libraries \"\$work/unpacked/usr/bin/nbdcopy\" $3"
}
long=$(printf "%0120d" 0 | tr 0 n)/disk
mkdir "${long%/*}"
head -c 64K /dev/urandom >disk
cp disk "$long"
{
    for format in gnu posix; do
        archive --create --format=$format --file=$format.tar disk "$long"
        for member in disk "$long"; do
            rm -f made
            status=0
            export_of $format.tar "$member" '"$uri" made' || status=$?
            cmp -s made disk && what=same || what="begins with $(head -c 4 made | tr -d '\000')"
            echo "$format, name of ${#member}: status $status, $(stat -c %s made) bytes, $what"
        done
    done
    rm -f made
    export_of gnu.tar "$long" '"$uri" made'
    head -c 64512 disk >begin
    tail -c +1025 made | cmp -s - begin && echo "1,024 bytes out"
    export_of gnu.tar "$long" 'disk "$uri"'
    archive --list --file=gnu.tar >names 2>/dev/null || true
    echo "members found after writing: $(grep -cxF "$long" names || true)"
} | tee seen
cmp seen - <<"SEEN"
gnu, name of 4: status 0, 65536 bytes, same
gnu, name of 125: status 0, 65536 bytes, begins with nnnn
posix, name of 4: status 0, 65536 bytes, same
posix, name of 125: status 0, 65536 bytes, same
1,024 bytes out
members found after writing: 0
SEEN
