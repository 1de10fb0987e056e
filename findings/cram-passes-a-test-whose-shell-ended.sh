#!/bin/sh
# cram and prysk pass a test whose shell ended in it: with `set -e`, a last command that fails is a success.
#
# Guess: a failure, as without `set -e`, where the status is shown as "[1]"; or "shell ended" at least.
# Seen on 2026-11-30, cram 0.7 and prysk 0.20.0 (Python 3.11): what follows the end of the shell is not run, and the
# line before it is taken for one without output and with status 0. Where the last check fails, or the last but one, the
# test passes, with status 0; so does one that ends with `exit 7`. Only two commands or more behind it are missed. The
# README's one word on a shell that ends is of 80, which skips.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check cram==0.7 prysk==0.20.0
test_of() { name=$1 && shift && printf '  $ %s\n' "$@" >"$name.t"; }
test_of plain "echo one > a" "echo two > b" "cmp --silent a b"
test_of strict "set -e" "echo one > a" "echo two > b" "cmp --silent a b"
test_of strict-last-but-one "set -e" "echo one > a" "echo two > b" "cmp --silent a b" "grep --quiet three a"
test_of exit "echo one > a" "exit 7"
for tool in cram prysk; do
    for name in plain strict strict-last-but-one exit; do
        status=0
        venv/bin/$tool $name.t >said || status=$?
        echo "$tool $name: status $status, $(grep -o "[0-9]* failed" said)"
    done
done | tee seen
cmp seen - <<"SEEN"
cram plain: status 1, 1 failed
cram strict: status 0, 0 failed
cram strict-last-but-one: status 0, 0 failed
cram exit: status 0, 0 failed
prysk plain: status 1, 1 failed
prysk strict: status 0, 0 failed
prysk strict-last-but-one: status 0, 0 failed
prysk exit: status 0, 0 failed
SEEN
