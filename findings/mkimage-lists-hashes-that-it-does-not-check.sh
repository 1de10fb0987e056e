#!/bin/sh
# `mkimage -l` and `dumpimage` print the checksum of an image in a FIT and do not compare it: damaged data comes out
# as a success.
#
# Guess: of an image whose data is not what its hash says they say so and fail; dumpimage refuses one in the legacy
# format whose checksum is wrong.
# Seen on 2026-11-30, u-boot-tools 2023.01 (Debian 2023.01+dfsg-2+deb12u3): one byte of the kernel in a FIT is another
# one, its crc32 node is printed as written, `dumpimage -p 0` writes the damaged kernel, and both end with 0. A copy
# that was cut short or changed in transport is found by the boot loader in the guest alone.
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
    u-boot-tools=2023.01+dfsg-2+deb12u3 device-tree-compiler=1.6.1-4+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
export PATH="$work/unpacked/usr/bin:$PATH" LD_LIBRARY_PATH="$libraries"

seq 1000 >kernel
cat >image.its <<"SOURCE"
/dts-v1/;
/ {
    description = "one kernel";
    #address-cells = <1>;
    images {
        kernel {
            data = /incbin/("kernel");
            type = "kernel"; arch = "arm64"; os = "linux"; compression = "none";
            load = <0x80000>; entry = <0x80000>;
            hash { algo = "crc32"; };
        };
    };
    configurations { default = "only"; only { kernel = "kernel"; }; };
};
SOURCE
mkimage -f image.its image.itb >/dev/null
sed 's/^500$/5x0/' image.itb >damaged.itb
cmp -s image.itb damaged.itb && exit 1
python3 -c 'import zlib; print("crc32 of the kernel:", "%08x" % zlib.crc32(open("kernel", "rb").read()))'
for image in image damaged; do
    mkimage -l "$image.itb" | grep "Hash value"
    dumpimage -T flat_dt -p 0 -o "$image.kernel" "$image.itb" >/dev/null
    echo "$image: status $?, line 500 of the kernel is $(sed -n 500p "$image.kernel")"
done | tee seen
cmp seen - <<"SEEN"
  Hash value:   8dc4565d
image: status 0, line 500 of the kernel is 500
  Hash value:   8dc4565d
damaged: status 0, line 500 of the kernel is 5x0
SEEN
