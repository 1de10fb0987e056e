#!/bin/sh
# avocado's strip_console_codes() takes a word away that comes twice in one colour, and all that is behind a code
# which it does not know and which is near the end.
#
# Guess: the same text without the codes; or the ValueError that its documentation has for codes that it does not
# know.
# Seen on 2026-11-30, avocado-framework 113.0 (Python 3.11): a piece from one escape character to the next that is as
# the last one with a text is left out, so that of three green dots one is left, and of two lines "FAILED" one. Of a
# window's title, of bracketed paste (`ESC [ ? 2004 l`, which bash writes before each command) or of a cursor that is
# shown, the text behind it goes without a word if no other code comes behind; in the middle of a log the same codes
# raise ValueError. What is left is meant to be compared with what a test expects. Not in the issues found by a search.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0
cat >strip.py <<"PROGRAM"
from avocado.utils.astring import strip_console_codes

GREEN, RED, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[0m"
outputs = {
    "three dots": f"{GREEN}.{PLAIN}" * 3 + " done",
    "two lines": f"{RED}FAILED\n{PLAIN}" * 2,
    "bracketed paste": "\x1b[?2004hroot# id\x1b[?2004l\nuid=0\n",
    "a title": "\x1b]0;guest\x07login: ",
    "a cursor": "1 failed\x1b[?25h, 2 passed\n",
}
for name, output in outputs.items():
    print(name, repr(strip_console_codes(output)))
try:
    strip_console_codes(outputs["a cursor"] + f"{GREEN}bye{PLAIN}, and more of it")
except ValueError:
    print("a cursor, and more behind it: ValueError")
PROGRAM
venv/bin/python strip.py | tee seen
cmp seen - <<"SEEN"
three dots '. done'
two lines 'FAILED\n'
bracketed paste ''
a title ''
a cursor '1 failed'
a cursor, and more behind it: ValueError
SEEN
