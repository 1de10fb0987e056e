#!/bin/sh
# A test of Robot Framework that was skipped is a PASS for avocado's plugin, whichever way it was skipped.
#
# Guess: SKIP, which both sides have by that name; robot's own summary counts skipped tests apart from those that
# passed.
# Seen on 2026-11-29, avocado-framework and avocado-framework-plugin-robot 113.0, robotframework 6.1.1 (Python 3.11):
# the keyword Skip, the tag robot:skip and a failure under robot:skip-on-failure are each "pass". A suite that skips all
# of itself on a machine without the hardware is green, and no result of avocado tells it from one that ran.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0 \
    avocado-framework-plugin-robot==113.0 robotframework==6.1.1
cat >device.robot <<"SUITE"
*** Test Cases ***
Keyword
    Skip    no hardware
    Fail    never run
Tag
    [Tags]    robot:skip
    Fail    never run
Failure
    [Tags]    robot:skip-on-failure
    Fail    a failure
Fails
    Fail    a failure
SUITE
{
    for test in Keyword Tag Failure Fails; do
        echo "$test: $(venv/bin/avocado-runner-robot task-run -i 1 -k robot -u "device.robot:Device.$test" | tail -n 1 |
            grep -o "'result': '[a-z]*'")"
    done
    venv/bin/robot --output NONE --log NONE --report NONE device.robot | grep "tests," | sort -u
} | tee seen
cmp seen - <<"SEEN"
Keyword: 'result': 'pass'
Tag: 'result': 'pass'
Failure: 'result': 'pass'
Fails: 'result': 'fail'
4 tests, 0 passed, 1 failed, 3 skipped
SEEN
