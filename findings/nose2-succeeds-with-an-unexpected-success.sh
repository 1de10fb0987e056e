#!/bin/sh
# nose2 says OK and ends with 0 where a test that is expected to fail has passed; unittest fails the same run.
#
# Guess: as unittest has it since Python 3.4: "FAILED (unexpected successes=1)", status 1; the decorator is unittest's
# own.
# Seen on 2026-11-30, nose2 0.16.0 (Python 3.11): "OK (unexpected successes=1)", status 0. pytest 8.4.2 and stestr 4.2.1
# fail such a run as well. A fault that was mended, or a check that checks nothing any more, is told to nobody.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nose2==0.16.0 pytest==8.4.2 stestr==4.2.1
mkdir tests
: >tests/__init__.py
cat >tests/test_known.py <<"TESTS"
import unittest


class TestKnown(unittest.TestCase):
    @unittest.expectedFailure
    def test_mended(self):
        pass
TESTS
asked() {
    status=0
    "$@" >said 2>&1 || status=$?
}
{
    asked venv/bin/nose2 -s tests -t .
    echo "nose2: status $status, $(tail -n 1 said)"
    asked venv/bin/python -m unittest discover -s tests -t .
    echo "unittest: status $status, $(tail -n 1 said)"
    asked venv/bin/python -m pytest -q tests
    echo "pytest: status $status"
    asked venv/bin/stestr --test-path tests --top-dir . run
    echo "stestr: status $status"
} | tee seen
cmp seen - <<"SEEN"
nose2: status 0, OK (unexpected successes=1)
unittest: status 1, FAILED (unexpected successes=1)
pytest: status 1
stestr: status 1
SEEN
