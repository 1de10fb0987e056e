#!/bin/sh
# A test method with a `yield` in it passes in avocado without one line of it being run.
#
# Guess: it is run to its end as any method is, or refused as no test.
# Seen on 2026-11-28, avocado-framework 113.0, Python 3.11: the method is called, the generator that it returns is thrown
# away, and the verdict is PASS. A `yield` that slips into a test (a fixture written as in pytest, a helper made a
# generator) turns it into one that cannot fail; the same line in a plain method of the same class is a FAIL.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_generator.py <<"TEST"
from avocado import Test


class Generator(Test):
    def test_plain(self):
        self.fail("this line was run")

    def test_yields(self):
        self.fail("this line was run")
        yield
TEST
venv/bin/avocado run --job-results-dir results test_generator.py | tee said || true
grep -q "Generator.test_plain:  FAIL: this line was run" said
grep -q "Generator.test_yields:  PASS" said
