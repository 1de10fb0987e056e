"""The base class of avocado's guest-driven tests, with a lab whose servers are none."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path

import pytest

from userdev.errors import VerdictError
from userdev.process import Child
from vfio_user.avocado_test import GuestTest

LOG = """12:00:00.000 ERROR vhost_user.backend: queue 1: the device failed
Traceback (most recent call last):
  File "mine.py", line 31, in transmit
    raise ValueError("boo")
ValueError: boo
"""


class Passes(GuestTest):
    """A test that sees nothing of what its device does wrong."""

    __test__ = False  # for pytest, which would run it by itself

    def test_it(self) -> None:
        """A guest that is content."""
        with self.lab() as lab:
            log = lab.folder / "mine.server.log"
            log.write_text(LOG)
            child = Child("mine", ["sleep", "600"], log=log)
            self.addCleanup(child.stop)
            lab.records.note(child)


def test_what_a_device_raised_beside_a_test_that_passes_is_in_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test = Passes("test_it", base_logdir=str(tmp_path))
    with caplog.at_level(logging.INFO, "avocado.test"):
        test.setUp()
        test.test_it()
        test.tearDown()
    [told] = [
        record for record in caplog.records if "mine: ValueError: boo (mine.py:31, in transmit)" in record.message
    ]
    assert told.levelno == logging.INFO, "avocado would make WARN of it, which is no PASS"


def test_a_plain_assert_says_which_it_was(tmp_path: Path) -> None:
    class Asserts(GuestTest):
        def test_it(self) -> None:
            raise AssertionError  # as `assert` does where pytest does not read it

    test = Asserts("test_it", base_logdir=str(tmp_path))
    with pytest.raises(AssertionError, match=r"raise AssertionError.* \(test_avocado_test.py:\d+\)"):
        test.test_it()


class LabInLab(GuestTest):
    """A lab within another, and one behind them."""

    __test__ = False  # for pytest, which would run it by itself

    def test_it(self) -> None:
        """Each is ended, and what is known of one is not asked of another."""
        with self.lab() as outer:
            with self.lab() as inner:
                assert self._trial.lab is inner
                assert [*self._open] == [outer, inner]
            assert self._trial.lab is outer
            assert [*self._open] == [outer]
        with self.lab() as last:
            assert self._trial.lab is last
        assert not self._open


def test_a_lab_may_be_within_another(tmp_path: Path) -> None:
    test = LabInLab("test_it", base_logdir=str(tmp_path))
    test.setUp()
    test.test_it()
    test.tearDown()


class Late(GuestTest):
    """A test that is still in its block when it is ended, and hears of that by what becomes of its guest."""

    __test__ = False  # for pytest, which would run it by itself

    def test_it(self) -> None:
        """Its guest goes away once the test has ended."""
        self.begun, self.ended = threading.Event(), threading.Event()
        with contextlib.suppress(self.failureException), self.lab():
            self.begun.set()
            assert self.ended.wait(60)
            raise VerdictError("the guest went away")


def test_the_cause_of_a_test_that_was_ended_is_not_what_that_did_to_its_guest(tmp_path: Path) -> None:
    """Avocado leaves its thread in the block, in which the guest of the lab that has ended is missed."""
    test = Late("test_it", base_logdir=str(tmp_path))
    test.setUp()
    thread = threading.Thread(target=test.test_it)
    thread.start()
    assert test.begun.wait(60)
    test.tearDown()
    test.ended.set()
    thread.join(60)
    [error] = tmp_path.rglob("data/error.txt")
    assert "the test took longer than its" in error.read_text().splitlines()[0], error.read_text()
