#!/bin/sh
# avocado's JUnit file does not say why a test was skipped or cancelled; its JSON says "<unknown>" of those that passed.
#
# Guess: the reason is the `message` of `<skipped>`, as that of a failure is of `<failure>`, and a passed test has none (null).
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: `<skipped/>` is empty, though the same job's results.json and
# results.tap have the reason. So a CI that shows JUnit cannot tell a machine without the hardware from a test that was
# switched off. In results.json a test that passed has the text "<unknown>" as its fail_reason: whoever asks whether there
# is a reason is told yes.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_reasons.py <<"TEST"
from avocado import Test, skip


class Reasons(Test):
    def test_cancels(self):
        self.cancel("there is no such device")

    @skip("not on this machine")
    def test_skipped(self):
        pass

    def test_passes(self):
        pass
TEST
venv/bin/avocado run --job-results-dir results test_reasons.py >said
grep -A 1 "<testcase" results/latest/results.xml
grep "^ok" results/latest/results.tap
venv/bin/python - <<"JSON" | sort | tee reasons
import json

for test in json.load(open("results/latest/results.json"))["tests"]:
    print(test["name"].rpartition(".")[2], test["status"], test["fail_reason"])
JSON
cmp reasons - <<"REASONS"
test_cancels CANCEL there is no such device
test_passes PASS <unknown>
test_skipped SKIP not on this machine
REASONS
[ "$(grep -c "<skipped/>" results/latest/results.xml)" = 2 ]
[ "$(grep -c "# SKIP [nt]" results/latest/results.tap)" = 2 ]
