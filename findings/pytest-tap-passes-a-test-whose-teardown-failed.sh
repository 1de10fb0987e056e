#!/bin/sh
# In the TAP of pytest-tap a test whose teardown failed is "ok", and so is an unexpected success that pytest fails.
#
# Guess: "not ok" for each test that pytest counts as failed or as an error, as the plugin has it where the setup fails;
# the file is what a CI reads that does not see pytest's status.
# Seen on 2026-11-30, pytest-tap 3.5 with pytest 8.4.2 (Python 3.11): of three tests pytest says "1 failed, 1 passed, 2
# errors"; the TAP has one "not ok", and the teardown's error is nowhere in it. unittest's unexpected success, one
# of the two, is "ok # TODO", no failure for readers of TAP, where pytest's own xfail(strict=True) is "not ok".
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME="$work"
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check pytest==8.4.2 pytest-tap==3.5
cat >test_device.py <<"TESTS"
import unittest

import pytest


@pytest.fixture
def device():
    yield
    raise RuntimeError("the device hangs")


@pytest.fixture
def missing():
    raise RuntimeError("no device")


def test_teardown(device):
    pass


def test_setup(missing):
    pass


class TestKnown(unittest.TestCase):
    @unittest.expectedFailure
    def test_mended(self):
        pass
TESTS
status=0
venv/bin/python -m pytest -p no:cacheprovider -q --tap-files --tap-outdir=tap --tap-combined test_device.py >said || status=$?
{
    tail -n 1 said | sed "s/ in .*//"
    echo "status $status"
    grep -hE "^(not )?ok|^[0-9]" tap/*
    if ! grep -q "device hangs" tap/*; then echo "nothing of the teardown"; fi
} | tee seen
cmp seen - <<"SEEN"
1 failed, 1 passed, 2 errors
status 1
1..3
ok 1 test_device.py::test_teardown
not ok 2 test_device.py::test_setup
ok 3 test_device.py::TestKnown.test_mended # TODO unexpected success
nothing of the teardown
SEEN
