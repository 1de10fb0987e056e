#!/bin/sh
# In the stream of pytest-subunit a test whose setup failed, and one that was skipped, is a success as well.
#
# Guess: one status for each test, the one that pytest prints.
# Seen on 2026-11-30, pytest-subunit 0.0.11 with pytest 8.4.2, python-subunit 1.4.6 (Python 3.11): behind "failure" or
# "skip" comes "success" for the same test, as the teardown's end counts as the test's. Of three tests, none of which
# passed, subunit-stats says "Total tests: 5", "Passed tests: 2"; who keeps the last status of a test has two successes.
# pytest ends with 0 then, as stestr does with --subunit; without it with 1.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pytest==8.4.2 pytest-subunit==0.0.11 python-subunit==1.4.6
cat >test_device.py <<"TESTS"
import pytest


@pytest.fixture
def device():
    raise RuntimeError("no device")


def test_setup(device):
    pass


@pytest.mark.skip(reason="no device")
def test_skipped():
    pass


def test_failed():
    assert False
TESTS
run() {
    status=0
    venv/bin/python -m pytest -p no:cacheprovider -q "$@" test_device.py >said || status=$?
    echo "pytest $*: status $status"
}
{
    run | tr -s " "
    run --subunit
    venv/bin/subunit2csv <said | cut -d, -f1,2
    venv/bin/subunit-stats <said | grep tests | tr -s " "
} | tee seen
cmp seen - <<"SEEN"
pytest : status 1
pytest --subunit: status 0
test,status
test_device.py::test_setup,failure
test_device.py::test_setup,success
test_device.py::test_skipped,skip
test_device.py::test_skipped,success
test_device.py::test_failed,failure
Total tests: 5
Passed tests: 2
Failed tests: 2
Skipped tests: 1
SEEN
