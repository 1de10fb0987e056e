#!/bin/sh
# When a test of avocado outruns its time, tearDown runs while the test goes on, and its `finally` and `with` never end.
#
# Guess: the test is interrupted by an exception, so that `finally` runs, then tearDown; or neither does.
# Seen on 2026-11-28, avocado-framework 113.0, Python 3.11: the method runs in a thread which is left behind, so none of its
# `finally` blocks and context managers is left; tearDown is called, in the other thread. What a test releases in a
# `with` block stays, and what tearDown takes apart is in use.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_time.py <<"TEST"
import os
import threading
import time

from avocado import Test


class Late(Test):
    timeout = 3

    def note(self, what):
        with open(os.environ["NOTES"], "a") as notes:
            print(what, threading.current_thread().name, file=notes)

    def test(self):
        try:
            self.note("test")
            time.sleep(30)
        finally:
            self.note("finally")

    def tearDown(self):
        self.note("tearDown")
TEST
NOTES="$work/notes" venv/bin/avocado run --job-results-dir results test_time.py | tee said || true
cat notes
grep -q "INTERRUPT 1" said
[ "$(cut -d " " -f 1 notes | tr "\n" " ")" = "test tearDown " ]
[ "$(cut -d " " -f 2 notes | sort -u | wc -l)" = 2 ]
