#!/bin/sh
# aexpect's session leaves out the last line of a command's output where the command did not end it.
#
# Guess: cmd_output() is what the command wrote; only the prompt behind it is taken away.
# Seen on 2026-11-29, aexpect 1.8.0 (Python 3.11), which avocado-vt talks to guests with: the prompt stands on the line that the
# command left open, and the whole line is taken for it. Of `printf abc` there is nothing, of two lines the first one
# alone, and the status is 0. A file without a newline at its end, as those of /proc/device-tree are, is empty for `cat`.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check aexpect==1.8.0
cat >talk.py <<"PROGRAM"
import aexpect

session = aexpect.ShellSession("env PS1='# ' /bin/sh -i", prompt=r"#\s*$")
session.cmd_output("true")  # the first prompt
for command in ("echo abc", "printf abc", "printf 'one\\ntwo'", "printf abc; echo"):
    print(command, "->", session.cmd_status_output(command))
session.close()
PROGRAM
PATH="$work/venv/bin:$PATH" venv/bin/python talk.py | tee seen
cmp seen - <<"SEEN"
echo abc -> (0, 'abc\n')
printf abc -> (0, '')
printf 'one\ntwo' -> (0, 'one\n')
printf abc; echo -> (0, 'abc\n')
SEEN
