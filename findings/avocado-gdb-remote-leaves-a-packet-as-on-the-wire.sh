#!/bin/sh
# avocado's GDBRemote gives a packet as it stands on the wire: "0* ", which is four zeros, stays "0* ", and what it
# sends is not escaped. A program that ended well has not stopped for its MI helpers.
#
# Guess: decode() and encode() know the run lengths and escapes of GDB's remote protocol, which its manual describes
# with the form of a packet; is_exit() is true however a program ends.
# Seen on 2026-11-30, avocado-framework 113.0 (Python 3.11): of the registers of a stub that shortens runs, as the
# protocol lets each stub do, the text is too short and holds stars; of the byte 7d 03 (an escaped "#") both are left.
# A "#" that is sent stands as it is, where a stub sees the end of the packet. Each checksum is right, so that nothing
# raises. is_stopped_exit() and is_exit() know reason="exited" (a status that is not 0) and not "exited-normally". Not
# in the issues found by a search.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0
cat >talk.py <<"PROGRAM"
import warnings

warnings.simplefilter("ignore")
from avocado.utils import gdb


def packet(body):
    return b"$" + body + b"#%02x" % (sum(body) % 256)


remote = gdb.GDBRemote("127.0.0.1", 1)
print("a run of four zeros", remote.decode(packet(b"0* ")))
print("an escaped mark", remote.decode(packet(b"a}\x03b")))
print("a mark to be sent", remote.encode(b"X0,1:#"))
for record in '*stopped,reason="exited",exit-code="03"', '*stopped,reason="exited-normally"':
    print(record, "is_exit", gdb.is_exit(gdb.parse_mi(record)))
PROGRAM
venv/bin/python talk.py 2>/dev/null | tee seen
cmp seen - <<"SEEN"
a run of four zeros b'0* '
an escaped mark b'a}\x03b'
a mark to be sent b'$X0,1:##42'
*stopped,reason="exited",exit-code="03" is_exit True
*stopped,reason="exited-normally" is_exit False
SEEN
