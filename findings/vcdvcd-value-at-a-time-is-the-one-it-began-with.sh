#!/bin/sh
# vcdvcd's value of a signal at a time is the first of that time; a moment later it is the last, with no change between.
#
# Guess: where a signal changes twice at one time (what simulators write of delta cycles), the value at that time is the one
# that it has from then on.
# Seen on 2026-11-29, vcdvcd 2.6.0 (Python 3.11): of 1 and then 3 at time 5 the value at 5 is 1, at 6 it is 3, and the list
# of changes has both at 5.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check vcdvcd==2.6.0
cat >trace.vcd <<"TRACE"
$timescale 1 ns $end
$scope module top $end
$var wire 8 ! state [7:0] $end
$upscope $end
$enddefinitions $end
#0
b0 !
#5
b1 !
b11 !
#9
b0 !
TRACE
cat >read.py <<"PROGRAM"
from vcdvcd import VCDVCD

state = VCDVCD("trace.vcd")["top.state[7:0]"]
print(state.tv)
print([state[time] for time in (4, 5, 6, 8, 9)])
PROGRAM
venv/bin/python read.py | tee seen
grep -qxF "[(0, '0'), (5, '1'), (5, '11'), (9, '0')]" seen
grep -qxF "['0', '1', '11', '11', '0']" seen
