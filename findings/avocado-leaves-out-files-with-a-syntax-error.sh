#!/bin/sh
# avocado, given a folder, leaves out the files of tests that Python cannot parse: nobody is told, and the job is a success.
#
# Guess: an error that names file and line, as unittest and pytest end their search with; or a test of that name with the
# verdict ERROR.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: of two files, one with a colon missing, `avocado run FOLDER` runs
# the other's test, says PASS 1 and ends with 0; the broken file's name is neither in what it prints nor in the job's log, nor
# in `avocado list`. A merge that breaks a file takes its tests out of every run. Given the file itself it says that there is
# no test in it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0
mkdir tests
cat >tests/test_whole.py <<"TEST"
from avocado import Test


class Whole(Test):
    def test(self):
        pass
TEST
sed "s/self):/self)/; s/Whole/Broken/" tests/test_whole.py >tests/test_broken.py
venv/bin/avocado list tests 2>&1 | tee said
status=0
venv/bin/avocado run --disable-sysinfo --job-results-dir results tests >printed 2>&1 || status=$?
cat printed results/latest/job.log >>said
grep "^RESULTS" printed
echo "exit status $status, the broken file is named $(grep -c test_broken said) times"
grep -q "PASS 1 | ERROR 0 | FAIL 0" printed
[ "$status" = 0 ]
if grep test_broken said; then exit 1; fi
status=0
venv/bin/avocado run --disable-sysinfo --job-results-dir results tests/test_broken.py 2>&1 || status=$?
[ "$status" = 2 ]
