#!/bin/sh
# In avocado unittest's own skips are errors, and its `expectedFailure` says nothing: such a test passes when it passes.
#
# Guess: SKIP for all three ways to skip, and a failed job for a test that was expected to fail and did not:
# avocado.Test is a subclass of unittest.TestCase.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: only avocado's own decorators and `cancel` are known. unittest's
# decorator, `skipTest` and SkipTest are each an ERROR with the reason as the error's text; a failure under
# `expectedFailure` is a FAIL, and an unexpected success is a PASS, where unittest would fail the run.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_skips.py <<"TEST"
import unittest

from avocado import Test


class Skips(Test):
    @unittest.skip("by decorator")
    def test_decorator(self):
        pass

    def test_method(self):
        self.skipTest("by method")

    def test_exception(self):
        raise unittest.SkipTest("by exception")

    @unittest.expectedFailure
    def test_fails_as_expected(self):
        self.fail("as expected")

    @unittest.expectedFailure
    def test_passes_unexpectedly(self):
        pass
TEST
venv/bin/avocado run --job-results-dir results test_skips.py | tee said || true
for line in "decorator:  ERROR: by decorator" "method:  ERROR: by method" "exception:  ERROR: by exception" \
    "fails_as_expected:  FAIL: as expected" "passes_unexpectedly:  PASS"; do
    grep -q "Skips.test_$line" said
done
