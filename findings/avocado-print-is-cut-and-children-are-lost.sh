#!/bin/sh
# In a test of avocado, print("a", "b") is four lines of the log, and what a child process prints is in no log.
#
# Guess: the file `stdout` beside the log has what the test wrote to its standard output, its children included.
# Seen on 2026-11-28, avocado-framework 113.0, Python 3.11: every write() becomes a line by itself ("a", " ", "b", and an
# empty one); the standard output that children inherit is /dev/null, so theirs is in no file below the results.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_print.py <<"TEST"
import subprocess

from avocado import Test


class Prints(Test):
    def test(self):
        print("a", "b")
        subprocess.run(["echo", "said by a child"], check=True)
TEST
venv/bin/avocado run --job-results-dir results test_print.py
printf "%s\n" a " " b "" >expected
cmp expected results/latest/test-results/*/stdout
! grep -r "^said by a child" results
