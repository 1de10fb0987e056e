#!/bin/sh
# pyDigitalWaveTools gives the changes of a signal that has two names to the first name alone.
#
# Guess: in a VCD file variables with one identifier are one signal (IEEE 1364, 18.2.3), as simulators write what is
# connected: both names have its changes, as they have for other readers, or the file is refused.
# Seen on 2026-11-29, pyDigitalWaveTools 1.2 and vcdvcd 2.6.0 (Python 3.11): for the former the second name has no change at
# all and there is no word of it; the latter has the same for both.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyDigitalWaveTools==1.2 vcdvcd==2.6.0
cat >trace.vcd <<"TRACE"
$timescale 1 ns $end
$scope module top $end
$var wire 8 ! first [7:0] $end
$var wire 8 ! second [7:0] $end
$upscope $end
$enddefinitions $end
#0
b0 !
#5
b101 !
TRACE
cat >read.py <<"PROGRAM"
from pyDigitalWaveTools.vcd.parser import VcdParser
from vcdvcd import VCDVCD

parser = VcdParser()
with open("trace.vcd") as file:
    parser.parse(file)
for signal in parser.scope.toJson()["children"][0]["children"]:
    print("pyDigitalWaveTools", signal["name"], len(signal["data"]))
read = VCDVCD("trace.vcd")
for name in read.signals:
    print("vcdvcd", name, len(read[name].tv))
PROGRAM
venv/bin/python read.py | tee seen
[ "$(tr "\n" "," <seen)" = "pyDigitalWaveTools first 2,pyDigitalWaveTools second 0,vcdvcd top.first[7:0] 2,vcdvcd top.second[7:0] 2," ]
