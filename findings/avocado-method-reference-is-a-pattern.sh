#!/bin/sh
# `avocado run FILE:CLASS.METHOD` runs every method whose name begins so: the reference is a regular expression.
#
# Guess: exactly that method, as unittest and pytest take such a name.
# Seen on 2026-11-28, avocado-framework 113.0, Python 3.11: asked for `Names.test_reset`, it runs `Names.test_reset` and
# `Names.test_reset_twice`; asked for both by name, it runs three tests, one of them twice. A `$` at the end of the
# reference means what the name alone seems to.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check avocado-framework==113.0
cd "$work"
cat >test_names.py <<"TEST"
from avocado import Test


class Names(Test):
    def test_reset(self):
        pass

    def test_reset_twice(self):
        pass
TEST
count() { venv/bin/avocado list "$@" | tee /dev/stderr | grep -c "^avocado-instrumented"; }
one=$(count test_names.py:Names.test_reset)
both=$(count test_names.py:Names.test_reset test_names.py:Names.test_reset_twice)
exact=$(count "test_names.py:Names.test_reset$")
echo "one name: $one tests; both names: $both tests; with a dollar sign: $exact"
[ "$one $both $exact" = "2 3 1" ]
