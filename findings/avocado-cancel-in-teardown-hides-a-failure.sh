#!/bin/sh
# In avocado a test that failed is CANCEL, and its job a success, when tearDown calls `cancel`.
#
# Guess: FAIL stays, since a verdict is not mended by what comes after it; or ERROR, as tearDown did not end.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: the last exception wins, whatever it weighs. The failure is
# gone from the verdict and from the exit status (0). A tearDown that leaves early by `cancel` ("nothing to take down on
# this machine") makes every test of its class one that cannot fail. An ordinary exception in tearDown makes the same
# FAIL an ERROR, with the test's own reason gone from the line.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_cancel.py <<"TEST"
from avocado import Test


class Cancels(Test):
    def tearDown(self):
        self.cancel("nothing to take down")

    def test_fails(self):
        self.fail("the device lost a write")
TEST
cat >test_raise.py <<"TEST"
from avocado import Test


class Raises(Test):
    def tearDown(self):
        raise ValueError("nothing to take down")

    def test_fails(self):
        self.fail("the device lost a write")
TEST
status=0
venv/bin/avocado run --job-results-dir results test_cancel.py >said || status=$?
venv/bin/avocado run --job-results-dir results test_raise.py >>said || true
cat said
echo "status of the job whose test cancels: $status"
grep -q "Cancels.test_fails:  CANCEL: nothing to take down" said
grep -q "Raises.test_fails:  ERROR: nothing to take down" said
[ "$status" = 0 ]
