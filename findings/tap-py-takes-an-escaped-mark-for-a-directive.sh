#!/bin/sh
# tap.py reads an escaped `#` in a test's description as the begin of a directive: a failure becomes a skip, and a
# success a failure.
#
# Guess: `\#` is a plain mark, as TAP 14 says, as Test::More writes it where a name has one, and as `prove` and avocado
# read it.
# Seen on 2026-11-29, tap.py 3.2.1 (Python 3.11), avocado-framework 113.0 and prove of Perl 5.36: of "not ok 1 - issue
# \# SKIP in the driver" tap.py makes a skipped test and a successful run, the others a failure; of "ok 1 - port \# TODO
# list" an unexpected success, with which the run fails, the others a pass. What escapes its names so that no reader
# mistakes them is mistaken by the one that lets no test of that name fail.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0 tap.py==3.2.1 PyYAML==6.0.3 \
    more-itertools==10.8.0
cat >fails <<"PROGRAM"
#!/bin/sh
cat <<"TAP"
1..1
not ok 1 - issue \# SKIP in the driver
TAP
PROGRAM
cat >passes <<"PROGRAM"
#!/bin/sh
cat <<"TAP"
1..1
ok 1 - port \# TODO list
TAP
PROGRAM
chmod +x fails passes
cat >read.py <<"PROGRAM"
import sys
import unittest

from tap.loader import Loader

result = unittest.TestResult()
Loader().load_suite_from_file(sys.argv[1]).run(result)
print(len(result.skipped), "skipped,", "success" if result.wasSuccessful() else "failure")
PROGRAM
for each in fails passes; do
    "./$each" >"$each.tap"
    echo "$each, tap.py: $(venv/bin/python read.py "$each.tap")"
    result=$(venv/bin/avocado-runner-tap task-run -i 1 -k tap -u "./$each" | tail -n 1 | grep -o "'result': '[a-z]*'")
    echo "$each, avocado: $result"
    echo "$each, prove: $(prove "$each.tap" 2>&1 | grep "^Result")"
done | tee seen
cmp seen - <<"SEEN"
fails, tap.py: 1 skipped, success
fails, avocado: 'result': 'fail'
fails, prove: Result: FAIL
passes, tap.py: 0 skipped, failure
passes, avocado: 'result': 'pass'
passes, prove: Result: PASS
SEEN
