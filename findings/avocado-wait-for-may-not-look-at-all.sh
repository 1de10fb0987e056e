#!/bin/sh
# avocado's wait_for does not look even once where its time is over before it begins.
#
# Guess: wait_for(condition, 0) asks whether it is so now, as a loop with a deadline that is written with care does; and
# after `first` seconds there is a look.
# Seen on 2026-11-29, avocado-framework 113.0 (Python 3.11): with a timeout of 0 the function is never called and the
# result is None, "it did not become so", of something that is so; the same with first=0.3 and a timeout of 0.1, after
# 0.3 s. Who gives what is left of a deadline fails at its end whatever there is.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check avocado-framework==113.0
cat >look.py <<"PROGRAM"
from avocado.utils.wait import wait_for

for timeout, first in ((0, 0.0), (0.1, 0.3), (1, 0.0)):
    looks = []
    found = wait_for(lambda: looks.append(1) or "there", timeout, first=first)
    print(timeout, first, found, len(looks))
PROGRAM
venv/bin/python look.py | tee seen
[ "$(tr "\n" " " <seen)" = "0 0.0 None 0 0.1 0.3 None 0 1 0.0 there 1 " ]
