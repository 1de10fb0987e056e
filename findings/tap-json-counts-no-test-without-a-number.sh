#!/bin/sh
# tap-json counts no test that has no number or no plain name behind "ok": a run that failed has no failures.
#
# Guess: numbers and descriptions are optional in TAP ("If there is no test point number, the harness must maintain a
# counter"); `ok`, `ok - name` and `not ok - name` are tests.
# Seen on 2026-11-30, tap-json 1.0.0 (Node.js 20) with the tap-out that it brings: of two tests without numbers, one
# failed, it says that there were 0, with 0 failures; with numbers it counts both. tap-junit 5.0.4 and `prove` count
# them either way. Shell scripts of guests write their tests so.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
npm install --silent --no-audit --no-fund tap-json@1.0.0 tap-junit@5.0.4 >/dev/null
asked() {
    printf '%b' "$1" >tap
    echo "$2: $(node_modules/.bin/tap-json <tap | grep -o '"asserts":[0-9]*.*"failures":[0-9]*' | tr -d '"')," \
        "tap-junit $(node_modules/.bin/tap-junit <tap | grep -o "<testsuite .*" | grep -o "tests=.*failures=.[0-9]*" | tr -d '"')"
}
{
    asked "1..2\nok 1 - probe\nnot ok 2 - remove\n" "with numbers"
    asked "1..2\nok - probe\nnot ok - remove\n" "without"
    asked "1..2\nok\nnot ok\n" "without names"
} | tee seen
cmp seen - <<"SEEN"
with numbers: asserts:2,passes:1,failures:1, tap-junit tests=2 skipped=0 failures=1
without: asserts:0,passes:0,failures:0, tap-junit tests=2 skipped=0 failures=1
without names: asserts:0,passes:0,failures:0, tap-junit tests=2 skipped=0 failures=1
SEEN
