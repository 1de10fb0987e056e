#!/bin/sh
# partitioninfo, the reader of disk images for Node.js, numbers partitions by counting them: behind a gap its second
# is the system's third.
#
# Guess: the number is that of the entry in the table, as the kernel, sfdisk and everybody's `vda3` have it.
# Seen on 2026-11-30, partitioninfo 6.0.3 (Node.js 20), sfdisk 2.38.1: of a GPT disk with the entries 1, 3 and 128 it
# gives 1, 2 and 3, and whoever asks for 3 gets the place of 128, and writes there; of a disk with an MBR the entries
# 1 and 3 are 1 and 2. Such tables are common: a partition was deleted, or, in cloud images, 1, 14 and 15 are all
# there is.
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
fetch install --yes --download-only --no-install-recommends fdisk=2.38.1-5+deb12u3
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/sbin/$program" "$@"; }
npm install --silent --no-audit --no-fund partitioninfo@6.0.3 >/dev/null

for label in gpt dos; do
    truncate -s 16M "$label.img"
    printf 'label: %s\n1: start=2048, size=2048\n3: start=6144, size=2048\n' "$label" | run sfdisk --quiet "$label.img"
done
printf '128: start=10240, size=2048\n' | run sfdisk --quiet --append gpt.img
run sfdisk --dump gpt.img | grep -o "^gpt.img.*size"
cat >read.js <<"PROGRAM"
const { get, getPartitions } = require('partitioninfo');

(async () => {
  for (const label of ['gpt', 'dos']) {
    const { partitions } = await getPartitions(`${label}.img`);
    console.log(label, partitions.map((one) => `${one.index} at ${one.offset / 512}`).join(', '));
  }
  console.log('asked for 3 of gpt:', (await get('gpt.img', 3)).offset / 512);
})();
PROGRAM
node read.js | tee seen
cmp seen - <<"SEEN"
gpt 1 at 2048, 2 at 6144, 3 at 10240
dos 1 at 2048, 2 at 6144
asked for 3 of gpt: 10240
SEEN
