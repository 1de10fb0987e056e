#!/bin/sh
# Importing pygal makes later imports of other packages warn, on Pythons before 3.12; with warnings as errors they fail.
#
# Guess: importing a library of charts changes nothing for imports that have nothing to do with it.
# Seen on 2026-11-29, pygal 3.1.3, Python 3.11: the import leaves a finder in sys.meta_path that has find_module() alone, so that every
# later import of something that is not there warns ("PluginImportFixer.find_spec() not found"). Under -W error, as test suites run,
# `try: import optional` of any other package ends in an ImportWarning that `except ImportError` does not catch. From 3.12 on, where
# find_module() is not called any more, the finder does nothing.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pygal==3.1.3
cd "$work"
cat >optional.py <<"PROGRAM"
import sys

if "pygal" in sys.argv:
    import pygal
try:
    import a_package_that_is_optional
except ImportError as error:
    print(type(error).__name__, error)
PROGRAM
venv/bin/python -W error optional.py | tee without
venv/bin/python -W error optional.py pygal >with 2>&1 || true
tail -n 1 with
grep -q "^ModuleNotFoundError" without
if venv/bin/python -c "import sys; sys.exit(sys.version_info >= (3, 12))"; then
    grep -q "^ImportWarning: PluginImportFixer" with
else
    grep -q "^ModuleNotFoundError" with
fi
