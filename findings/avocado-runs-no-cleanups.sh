#!/bin/sh
# What a test of avocado gives to `addCleanup` is never run, and neither is its class's `setUpClass`.
#
# Guess: both are run, and a cleanup that fails is an error: avocado.Test is a subclass of unittest.TestCase.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: avocado calls setUp, the test and tearDown by itself. Cleanups
# are accepted and forgotten, after a pass as after a failure, so a server that a test started and meant to end that way
# stays; a cleanup that would raise leaves a PASS. setUpClass is not called either; what it would have made is missing.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_cleanups.py <<"TEST"
import os

from avocado import Test


class Cleanups(Test):
    def note(self, what):
        with open(os.environ["NOTES"], "a") as notes:
            notes.write(f"{what}\n")

    def tearDown(self):
        self.note("tearDown")

    def test_passes(self):
        self.addCleanup(self.note, "cleanup")

    def test_fails(self):
        self.addCleanup(self.note, "cleanup")
        self.fail("as it is meant to")

    def test_has_a_cleanup_that_fails(self):
        self.addCleanup(self.fail, "in the cleanup")


class ClassFixture(Test):
    @classmethod
    def setUpClass(cls):
        cls.made = True

    def test_uses_it(self):
        self.assertTrue(getattr(self, "made", False), "setUpClass was not called")
TEST
NOTES=$work/notes venv/bin/avocado run --job-results-dir results test_cleanups.py | tee said || true
cat notes
[ "$(sort notes | uniq -c | tr -s " ")" = " 3 tearDown" ]
grep -q "test_has_a_cleanup_that_fails:  PASS" said
grep -q "ClassFixture.test_uses_it:  FAIL: .*setUpClass was not called" said
