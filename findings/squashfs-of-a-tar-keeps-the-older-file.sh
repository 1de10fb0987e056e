#!/bin/sh
# Of two files of one name in a tar archive sqfstar takes the first one, where tar itself ends with the last.
#
# Guess: as tar unpacks it: a file that was added later (`tar -r`, `tar -u`, layers that were put together) is in place
# of the one before.
# Seen on 2026-11-29, sqfstar and mksquashfs -tar 4.5.1 (Debian 1:4.5.1-1; 4.6.1 does the same): the image has the file
# of before, "already exists in the tar file, ignoring" stands on standard error, and the status is 0. A guest whose
# root was made so runs the old program, and the archive that one looks at has the new one.
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
fetch install --yes --download-only --no-install-recommends squashfs-tools=1:4.5.1-1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
echo old >program
tar -cf root.tar program
echo newer >program
tar -rf root.tar program
mkdir unpacked-by-tar && tar -xf root.tar -C unpacked-by-tar
run sqfstar one.squashfs -quiet -no-progress <root.tar >/dev/null
run mksquashfs - two.squashfs -tar -quiet -no-progress <root.tar >/dev/null
for each in one two; do echo "$each: $(run unsquashfs -cat $each.squashfs program)"; done | tee seen
echo "tar: $(cat unpacked-by-tar/program)" | tee -a seen
[ "$(tr "\n" " " <seen)" = "one: old two: old tar: newer " ]
