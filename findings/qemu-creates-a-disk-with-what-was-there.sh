#!/bin/sh
# A disk that QEMU's blockdev-create has made with preallocation=metadata reads as what its file had before.
#
# Guess: zeros: a new qcow2 image is empty, whatever lay in the file, as without preallocation, and as qemu-img's is.
# Seen on 2026-11-29, QEMU 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3): of a file that was full of OLD! the new disk reads
# as OLD! The file is not emptied, which qemu-img does before it writes, and its clusters are handed out as they are;
# with preallocation off they read as zeros. The schema's description of blockdev-create says nothing of an old content.
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
qemu() {
    LD_LIBRARY_PATH=$libraries unpacked/usr/bin/qemu-system-x86_64 -L unpacked/usr/share/qemu \
        -L unpacked/usr/share/seabios -L unpacked/usr/lib/ipxe/qemu -nodefaults -display none "$@"
}

for preallocation in off metadata; do
    yes OLD | tr "\n" "!" | head -c 2M >used
    {
        printf '{"execute": "qmp_capabilities"}\n'
        printf '{"execute": "blockdev-create", "arguments": {"job-id": "job", "options": {"driver": "qcow2", '
        printf '"file": "file", "size": 1048576, "preallocation": "%s"}}}\n' $preallocation
        sleep 5 # it is a job, and has to have ended
        printf '{"execute": "query-jobs"}\n{"execute": "job-dismiss", "arguments": {"id": "job"}}\n'
        printf '{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "disk", "file": "file"}}\n'
        printf '{"execute": "human-monitor-command", "arguments": {"command-line": "qemu-io disk \"read -v 0 4\""}}\n'
        sleep 1
        printf '{"execute": "quit"}\n'
        sleep 2
    } | qemu -machine none -qmp stdio -blockdev file,node-name=file,filename=used >said
    grep -q '"status": "concluded"' said
    ! grep -q '"error"' said
    echo "$preallocation: $(grep "^00000000:" said)"
done | tee seen
cmp seen - <<"SEEN"
off: 00000000:  00 00 00 00  ....
metadata: 00000000:  4f 4c 44 21  OLD.
SEEN
