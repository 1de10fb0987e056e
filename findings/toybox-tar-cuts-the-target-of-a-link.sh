#!/bin/sh
# toybox's tar cuts the target of a symbolic link to 100 bytes when it unpacks what Python's tarfile packs by default.
#
# Guess: the whole target, as it has a name of any length from the same archive, and a target from one in GNU's format;
# or an error.
# Seen on 2026-11-30, toybox 0.8.9 (Debian 0.8.9+dfsg-1), Python 3.11, of an archive in the POSIX format (pax): a link to
# a file in a folder of 144 bytes points to the first 100 of them, which is nothing, status 0 and no word; the file is
# there under its whole name. busybox 1.35.0 (1:1.35.0-4+deb12u1+b1) and GNU tar 1.34 (1.34+dfsg-1.2+deb12u1) make the
# whole link.
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
fetch install --yes --download-only --no-install-recommends  \
    toybox=0.8.9+dfsg-1 busybox-static=1:1.35.0-4+deb12u1+b1 tar=1.34+dfsg-1.2+deb12u1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
cat >pack.py <<"PROGRAM"
import io
import tarfile

name = "folder/" * 20 + "file"
for packed, kind in (("gnu", tarfile.GNU_FORMAT), ("default", tarfile.DEFAULT_FORMAT)):
    with tarfile.open(f"{packed}.tar", "w", format=kind) as archive:
        file = tarfile.TarInfo(name)
        file.size = 5
        archive.addfile(file, io.BytesIO(b"bytes"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, name
        archive.addfile(link)
PROGRAM
python3 pack.py
for kind in gnu default; do
    for tool in tar "busybox tar" "toybox tar"; do
        rm -rf made && mkdir made
        status=0
        # shellcheck disable=SC2086
        (cd made && LD_LIBRARY_PATH=$libraries ../unpacked/bin/$tool -xf ../$kind.tar 2>../said) || status=$?
        what="$(cat made/link 2>/dev/null)" || what="nothing there"
        echo "$kind, $tool: status $status, target of $(readlink made/link | tr -d '\n' | wc --bytes), $what," \
            "$(find made -name file | wc --lines) file"
    done
done | tee seen
cmp seen - <<"SEEN"
gnu, tar: status 0, target of 144, bytes, 1 file
gnu, busybox tar: status 0, target of 144, bytes, 1 file
gnu, toybox tar: status 0, target of 144, bytes, 1 file
default, tar: status 0, target of 144, bytes, 1 file
default, busybox tar: status 0, target of 144, bytes, 1 file
default, toybox tar: status 0, target of 100, nothing there, 1 file
SEEN
