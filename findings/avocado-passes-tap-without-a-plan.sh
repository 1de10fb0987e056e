#!/bin/sh
# A TAP program that avocado runs passes without a plan, with an exit status of 3, and when it is killed.
#
# Guess: as other readers of TAP have it: a plan is what tells that a program came to its end, so that none is a failure,
# and so is a status other than 0; and one that was killed is an error.
# Seen on 2026-11-29, avocado-framework 113.0, Python 3.11: all three pass, the one that SIGKILL ended after one "ok" included.
# tap.py 3.2.1 takes the missing plan for a failure, and `prove` each of the three. That there are fewer tests than planned
# is noticed.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0 tap.py==3.2.1
program() {
    printf '#!/bin/sh\n%s\n' "$2" >"$1"
    chmod +x "$1"
}
program ./no-plan 'echo "ok 1 - begins"'
program ./status 'echo "1..1"; echo "ok 1 - begins"; exit 3'
program ./killed 'echo "ok 1 - begins"; kill -9 $$'
program ./too-few 'echo "1..2"; echo "ok 1 - begins"'
./no-plan >no-plan.tap
{
    for each in no-plan status killed too-few; do
        echo "$each: $(venv/bin/avocado-runner-tap task-run -i 1 -k tap -u "./$each" | tail -n 1 | grep -o "'result': '[a-z]*'")"
    done
    venv/bin/python - <<"READ"
import unittest

from tap.loader import Loader

result = unittest.TestResult()
Loader().load_suite_from_file("no-plan.tap").run(result)
print("tap.py, no plan:", "success" if result.wasSuccessful() else "failure")
READ
} | tee seen
cmp seen - <<"SEEN"
no-plan: 'result': 'pass'
status: 'result': 'pass'
killed: 'result': 'pass'
too-few: 'result': 'error'
tap.py, no plan: failure
SEEN
