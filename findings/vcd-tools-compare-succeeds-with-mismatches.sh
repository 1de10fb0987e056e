#!/bin/sh
# vcd-tools' `compare` ends with status 0 where the traces differ, and calls traces equivalent of which one lacks a signal.
#
# Guess: non-zero where something differs, as diff and cmp have it, and as it has it where a file is missing; and a
# signal that one trace does not have is a difference.
# Seen on 2026-11-30, vcd-tools 0.3.0 (Python 3.11): "FAILURES FOUND", with status 0; of a trace without one of two
# signals "The two VCD files are equivalent.", as the common ones match. `compare golden.vcd new.vcd` in a script or a
# CI job holds whatever the simulation did, and also when the signal that mattered was renamed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check vcd-tools==0.3.0
cat >golden.vcd <<"VCD"
$timescale 1 ns $end
$scope module top $end
$var wire 1 ! irq $end
$var wire 1 " ack $end
$upscope $end
$enddefinitions $end
#0
0!
0"
#5
1!
#7
1"
#9
0!
0"
VCD
sed "/^#5/,/^1!/d" golden.vcd >other.vcd
sed '/"/d' golden.vcd >fewer.vcd
asked() {
    status=0
    venv/bin/vcd_tools_rs compare golden.vcd "$1" >said 2>&1 || status=$?
    echo "$1: status $status, $(grep -oE "FAILURES FOUND|The two VCD files are equivalent|No such file" said)"
}
{
    asked golden.vcd
    asked other.vcd
    asked fewer.vcd
    asked missing.vcd
} | tee seen
cmp seen - <<"SEEN"
golden.vcd: status 0, The two VCD files are equivalent
other.vcd: status 0, FAILURES FOUND
fewer.vcd: status 0, The two VCD files are equivalent
missing.vcd: status 1, No such file
SEEN
