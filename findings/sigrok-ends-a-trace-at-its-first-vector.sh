#!/bin/sh
# sigrok-cli reads a VCD file up to the first change of a vector: the rest of the trace is not there, of the single bits
# too, and it succeeds.
#
# Guess: it leaves the vector out and reads the bits, or refuses the file.
# Seen on 2026-11-29, sigrok-cli 0.7.2 with libsigrok 0.5.2 (Debian 0.7.2-1+b1): with a bit alone there are 20 samples;
# with a vector of four bits beside it that changes at 3 there are 3, without a word and with status 0, and none at all
# where the vector has a value from the beginning, as simulators write it. A decoder that finds nothing wrong in such a
# trace has been given nothing.
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
fetch install --yes --download-only --no-install-recommends sigrok-cli=0.7.2-1+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
run() { program=$1 && shift && LD_LIBRARY_PATH=$libraries "$work/unpacked/usr/bin/$program" "$@"; }
cat >bit.vcd <<"TRACE"
$timescale 1 us $end
$scope module device $end
$var wire 1 ! irq $end
$upscope $end
$enddefinitions $end
#0
0!
#3
1!
#20
TRACE
sed 's/^.upscope/$var wire 4 # state $end\n&/; s/^1!/&\nb0011 #/' bit.vcd >vector.vcd
sed 's/^0!/&\nb0000 #/' vector.vcd >begun.vcd
for each in bit vector begun; do
    run sigrok-cli -i $each.vcd -I vcd -O csv >said 2>&1
    status=$?
    grep "^; Channels" said
    echo "$each: status $status, $(grep -c "^[01]$" said || :) samples"
done | tee seen
cmp seen - <<"SEEN"
; Channels (1/1): irq
bit: status 0, 20 samples
; Channels (1/1): irq
vector: status 0, 3 samples
; Channels (1/1): irq
begun: status 0, 0 samples
SEEN
