#!/bin/sh
# Every seed that cloud-localds makes without meta-data is for the same instance: a guest that had one ignores the
# next.
#
# Guess: a new user-data is a new instance-id, or none, so that a guest booted with the new seed does what it says.
# Seen on 2026-11-30, cloud-localds of cloud-image-utils 0.33 (Debian 0.33-1): the instance is always "iid-local01",
# with --hostname too. A disk that was booted with one such seed has that id in it, and cloud-init takes what it does
# once for an instance (users, keys, files, runcmd, scripts) for done. Its manual has no word of the id; its --help
# has an example of meta-data of one's own, the third argument, that sets it.
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
fetch install --yes --download-only --no-install-recommends \
    cloud-image-utils=0.33-1 genisoimage=9:1.1.11-3.4 qemu-utils=1:7.2+dfsg-7+deb12u18+b3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export PATH="$work/unpacked/usr/bin:$PATH" LD_LIBRARY_PATH="$libraries"

for name in first second; do
    printf '#cloud-config\nruncmd: [[touch, /%s]]\n' "$name" >"$name"
    bash unpacked/usr/bin/cloud-localds --hostname "$name" "$name.iso" "$name"
    isoinfo -R -x /user-data -i "$name.iso" | tail -n 1
    isoinfo -R -x /meta-data -i "$name.iso"
done | tee seen
[ "$(grep -c '"instance-id": "iid-local01"' seen)" = 2 ]
zcat unpacked/usr/share/man/man1/cloud-localds.1.gz | grep -ci "instance" | grep -qx 0
