#!/bin/sh
# pexpect.run returns what a command has written so far when its time is over, as if that were all, and nothing tells.
#
# Guess: pexpect.TIMEOUT, as from expect(), or a status that is not a success.
# Seen on 2026-11-29, pexpect 4.9.0 (Python 3.11): of a command that writes, waits and writes again there is the first
# half, without an error, and the process is ended. With withexitstatus=True the status is None, the same as of a
# command that a signal ended; a check like `if status:` passes. Nobody needs to have asked for a timeout: it is 30 s
# where none is given, so that a guest's longer command is cut there.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pexpect==4.9.0
cat >ask.py <<"PROGRAM"
import inspect

import pexpect

slow = "sh -c 'echo one; sleep 5; echo two; exit 3'"
print("all:", pexpect.run(slow, withexitstatus=True))
print("timeout of 1 s:", pexpect.run(slow, timeout=1, withexitstatus=True))
print("timeout of 1 s, without status:", pexpect.run(slow, timeout=1))
print("ended by a signal:", pexpect.run("sh -c 'echo one; kill -9 $$'", withexitstatus=True))
print("timeout by default:", inspect.signature(pexpect.run).parameters["timeout"].default)
PROGRAM
venv/bin/python ask.py | tee seen
cmp seen - <<"SEEN"
all: (b'one\r\ntwo\r\n', 3)
timeout of 1 s: (b'one\r\n', None)
timeout of 1 s, without status: b'one\r\n'
ended by a signal: (b'one\r\n', None)
timeout by default: 30
SEEN
