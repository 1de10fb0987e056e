"""The base of avocado's tests that drive guests: a lab whose evidence is the test's, and verdicts as avocado has them.

`vfio-user test-e2e FILE` runs them (docs/testing.md).
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

from avocado import Test

from userdev.errors import UserError, VerdictError
from vfio_user.bundle import keeping_test
from vfio_user.harness import (
    CELL_PARAMETER,
    TEST_SECONDS,
    XFAIL,
    BootedGuest,
    Cell,
    Exercise,
    Lab,
    Plugged,
    Trial,
    patience,
    succeed,
    trial,
)
from vfio_user.harness.evidence import raised_by


class GuestTest(Test):  # type: ignore[misc]  # avocado has no types
    """A test that boots guests. What a guest or device did wrong fails it; what could not be done is an error.

    What a class has of unittest's that avocado passes over in silence (avocado 113) is refused when the class is made.
    """

    timeout = TEST_SECONDS * patience("kvm")  # the factor is that of all deadlines, without the accelerator's

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Refuse what would make a test pass without being run; have a plain `assert` that fails say which it was.

        Raises:
            UserError: a class fixture, a test with a yield, one that is expected to fail; what to write instead
        """
        super().__init_subclass__(**arguments)
        for name, value in vars(cls).items():
            if (instead := _passed_over(name, value)) is not None:
                raise UserError(f"{cls.__module__}.{cls.__qualname__}.{name} would never do what it says", hint=instead)
            if name.startswith("test") and inspect.isfunction(value):
                setattr(cls, name, _saying_why(value))

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """A test as avocado makes it, with nothing to clean up yet."""
        super().__init__(*arguments, **named)
        self._cleanups_to_run = ExitStack()

    def addCleanup(self, function: Callable[..., object], /, *arguments: Any, **named: Any) -> None:
        """Have a function called at the test's end, the last one first; avocado's own forgets it.

        unittest's `enterContext` comes here too.
        """
        self._cleanups_to_run.callback(function, *arguments, **named)

    def setUp(self) -> None:
        """Begin what the test's labs share."""
        self._open: dict[Lab, tuple[int, ExitStack]] = {}
        """The thread that is in a lab's block, and what ends that."""
        self._trials: list[Trial] = []
        """Of the labs that are open, the innermost last."""
        self._tried: set[str] = set()
        self._ours: set[str] = set()
        text = self.params.get(CELL_PARAMETER)
        self.cell = Cell.of_text(text) if text else Cell.of_environment()
        """What the run says of this test's guests: the variant's, or that of the whole run."""

    def tearDown(self) -> None:
        """End the labs of a test that took too long, or was told to end, with their evidence; then run its cleanups.

        Avocado leaves the test's thread where it is then, within the block, and comes here in another one.
        """
        with self._cleanups_to_run:
            self._end_labs()

    def _end_labs(self) -> None:
        for thread, block in reversed(list(self._open.values())):
            frame = sys._current_frames().get(thread)
            where = "".join(traceback.format_stack(frame)) if frame is not None else "its thread has ended"
            late = VerdictError(_why_ended(self), evidence=f"it was at\n{where}")
            # its thread hears what becomes of its guests by that, which would be the cause if it came to end them again
            with suppress(VerdictError, UserError):
                block.pop_all().__exit__(type(late), late, None)
            self.log.info("%s\n%s", late, late.evidence)

    @contextmanager
    def lab(self) -> Iterator[Lab]:
        """A lab that ends with the block; that of a test that takes too long ends in tearDown.

        When known issues were seen that the test names, it ends as CANCEL, with XFAIL as the reason.
        """
        folder, heading = Path(self.outputdir), str(self.name.name).rpartition("/")[2]
        kept = keeping_test(str(self.name.name), self.cell)
        kept.folder = folder
        try:
            with ExitStack() as block:
                block.enter_context(kept)
                made = block.enter_context(trial(heading, folder=folder, cell=self.cell, progress=self.log.info))
                self._trials.append(made)
                self._open[made.lab] = threading.get_ident(), block
                try:
                    yield made.lab
                    kept.failure = made.lab.failure
                finally:
                    self._trials.remove(made)
                    del self._open[made.lab]
                    self._tried |= made.lab.tried
                    self._ours |= made.lab.ours
                    started = {"tried": sorted(self._tried), "ours": sorted(self._ours)}
                    self.whiteboard = json.dumps({**made.record(), **started})
        except VerdictError as failure:
            self.log.info("%s\n%s", failure, failure.evidence)
            self.fail("; ".join([str(failure), *getattr(failure, "__notes__", ())]))
        for exception in made.unnoticed():  # avocado takes a warning for a verdict of its own, WARN
            self.log.info("no failure, although a device's own code raised: %s", exception.sentence)
        for rule in made.untried:
            self.log.info("of the faults of this test %s", rule)
        if made.seen:
            self.cancel(f"{XFAIL}: {'; '.join(made.seen)}")

    def known_issue(self, identity: str, guest: BootedGuest) -> AbstractContextManager[None]:
        """`Trial.known_issue`: a block that has to fail as this known issue says where the guest's QEMU has it."""
        return self._trial.known_issue(identity, guest)

    @property
    def _trial(self) -> Trial:
        """That of the lab in whose block the test is."""
        return self._trials[-1]

    def edu(self, guest: BootedGuest, *arguments: str, device: Plugged | None = None) -> Exercise:
        """Run the guest's edu program on a device, the guest's first if none is named; its verdict must be good."""
        slot = (device or guest.device).address
        done = succeed(guest, "edu", "--slot", slot, *arguments)
        self.log.info("%s: %s", done.command, dict(done.seen))
        return done


def _why_ended(test: Test) -> str:
    """Why avocado comes to a test's end while its block goes on."""
    took = time.monotonic() - test.time_start  # which avocado notes a moment after it has begun to count
    late = f"the test took longer than its {test.timeout:g} s"
    return late if took > test.timeout - 1 else f"the test was told to end after {took:.1f} s"


def _saying_why(method: Callable[..., object]) -> Callable[..., object]:
    """The same test, whose plain `assert` has its line of the source for a reason: avocado keeps none of it."""

    @wraps(method)
    def run(*arguments: Any, **named: Any) -> object:
        try:
            return method(*arguments, **named)
        except AssertionError as error:
            if not str(error):
                error.args = (raised_by(error),)
            raise

    return run


def _passed_over(name: str, value: object) -> str | None:
    """What to write in place of an attribute that avocado passes over, if it is one."""
    if name in ("setUpClass", "tearDownClass"):
        return "avocado calls no fixtures of classes: use setUp, tearDown and addCleanup"
    if not name.startswith("test"):
        return None
    if inspect.isgeneratorfunction(value):
        return "avocado runs nothing of a test with a yield: call what it shall do, and yield in none"
    if getattr(value, "__unittest_expecting_failure__", False):
        return "avocado lets an unexpected success pass: name what is known in `with self.known_issue(...)`"
    return None
