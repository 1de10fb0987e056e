#!/bin/sh
# tap-xunit makes a success of a TAP stream that bailed out, and of one that ends before its plan.
#
# Guess: an error or a failure in the XML, and a status that is not 0: TAP has a plan and "Bail out!" so that a run
# that broke off is not taken for one that passed. tap2subunit counts what is missing as failures.
# Seen on 2026-11-30, tap-xunit 2.4.1 (Node.js 20): the tests that came are in the file, with 0 failures and 0 errors;
# why it bailed out is nowhere, and the status is 0. A guest that dies in the middle of its tests is a success of
# fewer tests on the dashboard.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
npm install --silent --no-audit --no-fund tap-xunit@2.4.1 >/dev/null
asked() {
    status=0
    printf '%b' "$1" | node_modules/.bin/tap-xunit >said || status=$?
    echo "$2: status $status, $(grep -o "tests=.*errors=.[0-9]*" said | tr -d '"')"
    ! grep -q "no KVM" said
}
{
    asked "1..2\nok 1 - a\nok 2 - b\n" "whole"
    asked "1..2\nok 1 - a\nBail out! no KVM\n" "bailed out"
    asked "1..2\nok 1 - a\n" "ended early"
    asked "1..1\nnot ok 1 - a\n" "failed"
} | tee seen
cmp seen - <<"SEEN"
whole: status 0, tests=2 failures=0 errors=0
bailed out: status 0, tests=1 failures=0 errors=0
ended early: status 0, tests=1 failures=0 errors=0
failed: status 1, tests=1 failures=1 errors=0
SEEN
