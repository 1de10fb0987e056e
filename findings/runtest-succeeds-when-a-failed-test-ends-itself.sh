#!/bin/sh
# DejaGnu's runtest ends with status 0 after a failed test if that test file says exit, and when no test has the name
# that was asked for.
#
# Guess: 1, as "if any test failed" in its manual; and not 0 for a name of no test, as pytest has it.
# Seen on 2026-11-30, DejaGnu 1.6.3 (Debian 1.6.3-1), expect 5.45.4: `exit` at the end of a test file, where each
# script of expect has it, ends runtest itself: the FAIL is in its output, there is no summary, the files behind it
# are not run, and the status is 0. Without the exit the status is 1. A name of no test gives 0 and an empty summary.
# The manual has the three statuses and neither of these.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
# Debian 12's packages and what they need, unpacked here by an apt that sees nothing as installed.
mkdir -p lists/partial cache/archives/partial
: >status
fetch() {
    apt-get -qq -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::State::status="$work/status" \
        -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}
fetch update
fetch install --yes --download-only --no-install-recommends \
    dejagnu=1.6.3-1 expect=5.45.4-2+b1
for package in cache/archives/*.deb; do dpkg-deb --extract "$package" unpacked; done
libraries=$(find "$work/unpacked" -name "*.so*" -printf "%h\n" | sort -u | tr "\n" ":")
mkdir -p testsuite/t.all
run() {
    status=0
    PATH=$work/unpacked/usr/bin:$PATH LD_LIBRARY_PATH=$libraries sh unpacked/usr/bin/runtest --tool t --srcdir . $2 \
        >said 2>&1 || status=$?
    echo "$1: status $status, $(grep -c "^FAIL" said) failed, $(grep -c "^PASS" t.sum) passed," \
        "$(grep -c "^# of" said) lines of summary"
}
printf 'fail first\n' >testsuite/t.all/first.exp
printf 'pass second\n' >testsuite/t.all/second.exp
run "failed" "" | tee seen
run "a name of no test" "third.exp" | tee -a seen
printf 'fail first\nexit\n' >testsuite/t.all/first.exp
run "failed and ended itself" "" | tee -a seen
cmp seen - <<"SEEN"
failed: status 1, 1 failed, 1 passed, 2 lines of summary
a name of no test: status 0, 0 failed, 0 passed, 0 lines of summary
failed and ended itself: status 0, 1 failed, 0 passed, 0 lines of summary
SEEN
