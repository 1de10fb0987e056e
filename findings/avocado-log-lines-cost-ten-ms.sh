#!/bin/sh
# Every line that a test of avocado logs makes it end ten milliseconds later: 600 lines are six seconds.
#
# Guess: lines are written as they come, so that 600 of them cost some milliseconds, and a test's time is its own.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: a test that logs 600 lines in a
# loop is told to have taken 3.8 s (one that logs nothing: 0.02 s), and the run with it ends 6.2 s later. The runner takes one message
# from the test's process, then sleeps 10 ms, so a test that talks is slow, and may outrun its timeout by what it logs.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_lines.py <<"TEST"
from avocado import Test


class Lines(Test):
    def test_quiet(self):
        pass

    def test_talks(self):
        for number in range(600):
            self.log.info("line %d", number)
TEST
for test in quiet talks; do
    began=$(date +%s%N)
    venv/bin/avocado run --job-results-dir results "test_lines.py:Lines.test_$test" | grep "Lines.test_$test" || true
    echo $(($(date +%s%N) / 1000000 - began / 1000000)) >"$test"
    echo "$test: the whole run took $(cat $test) ms"
done
[ $(($(cat talks) - $(cat quiet))) -gt 4000 ]
