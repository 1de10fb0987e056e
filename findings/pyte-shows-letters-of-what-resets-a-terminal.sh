#!/bin/sh
# pyte shows parts of control sequences as text: of the soft reset a "p", of a request's device string all of it.
#
# Guess: a sequence that a terminal does not know is passed over as a whole: ECMA-48 says where each ends, whatever it
# is.
# Seen on 2026-11-29, pyte 0.8.2 (Python 3.11): ESC [ ! p, which terminfo's xterm has in its reset (is2, rs2), leaves
# "p"; ESC P ... ESC \ leaves what is between, as does ESC _; a colour with colons leaves its second half. Lines drawn
# with "repeat" (ESC [ 4 b, terminfo's rep of xterm-256color) are one character long.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pyte==0.8.2
cat >show.py <<"PROGRAM"
import pyte

SEQUENCES = {
    "soft reset": "A\x1b[!pB",
    "device control string": "A\x1bP+q544e\x1b\\B",
    "application command": "A\x1b_G1\x1b\\B",
    "colour with colons": "A\x1b[38:2::1:2:3mB",
    "tertiary attributes": "A\x1b[=cB",
    "private mode": "A\x1b[?2026hB",
    "repeat": "-\x1b[4b|",
}
for name, sequence in SEQUENCES.items():
    screen = pyte.Screen(20, 1)
    pyte.Stream(screen).feed(sequence)
    print(f"{name}: {screen.display[0].rstrip()}")
PROGRAM
venv/bin/python show.py | tee seen
cmp seen - <<"SEEN"
soft reset: ApB
device control string: A+q544eB
application command: AG1B
colour with colons: A2::1:2:3mB
tertiary attributes: AcB
private mode: AB
repeat: -|
SEEN
