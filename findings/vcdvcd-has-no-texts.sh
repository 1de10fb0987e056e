#!/bin/sh
# vcdvcd reads a variable of texts, as pyvcd writes it, as one that never changes.
#
# Guess: GTKWave's extension for texts is what names of states are traced with: who lists the variable with its type reads
# its changes, or refuses the file.
# Seen on 2026-11-29, pyvcd 0.5.1 and vcdvcd 2.6.0 (Python 3.11): the variable is in the list of signals, without a change
# and without an error; pyDigitalWaveTools 1.2 has both texts.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyvcd==0.5.1 vcdvcd==2.6.0 pyDigitalWaveTools==1.2
cat >trace.py <<"PROGRAM"
from pyDigitalWaveTools.vcd.parser import VcdParser
from vcd import VCDWriter
from vcdvcd import VCDVCD

with open("trace.vcd", "w") as file, VCDWriter(file, timescale="1 ns") as writer:
    state = writer.register_var("device", "state", "string", init="IDLE")
    writer.change(state, 5, "RUNNING")
read = VCDVCD("trace.vcd")
print("vcdvcd", read.signals, read["device.state"].tv)
parser = VcdParser()
with open("trace.vcd") as file:
    parser.parse(file)
print("pyDigitalWaveTools", [data for _, data in parser.scope.toJson()["children"][0]["children"][0]["data"]])
PROGRAM
venv/bin/python trace.py | tee seen
grep -qxF "vcdvcd ['device.state'] []" seen
grep -qxF "pyDigitalWaveTools ['IDLE', 'RUNNING']" seen
