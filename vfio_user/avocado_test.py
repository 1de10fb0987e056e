"""The base of avocado's tests that drive guests: a lab whose evidence is the test's, and verdicts as avocado has them.

`vfio-user test-e2e FILE` runs them (docs/testing.md).
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from avocado import Test

from userdev.errors import UserError, VerdictError
from vfio_user.harness import (
    INTERPOSE_VARIABLE,
    TEST_SECONDS,
    XFAIL,
    BootedGuest,
    Exercise,
    Lab,
    Plugged,
    patience,
    succeed,
    trial,
)


class GuestTest(Test):  # type: ignore[misc]  # avocado has no types
    """A test that boots guests. What a guest or device did wrong fails it; what could not be done is an error."""

    timeout = TEST_SECONDS * patience("kvm")  # the factor is that of all deadlines, without the accelerator's

    def setUp(self) -> None:
        """Begin what the test's labs share."""
        self._open: dict[Lab, int] = {}

    def tearDown(self) -> None:
        """End the labs of a test that took too long, and keep their evidence.

        Avocado leaves the test's thread where it is then, within the block, and comes here in another one.
        """
        for lab, thread in reversed(list(self._open.items())):
            frame = sys._current_frames().get(thread)
            where = "".join(traceback.format_stack(frame)) if frame is not None else "its thread has ended"
            late = VerdictError(f"the test took longer than its {self.timeout:g} s", evidence=f"it was at\n{where}")
            with suppress(VerdictError, UserError):
                lab.__exit__(type(late), late, None)
            self.log.info("%s\n%s", late, late.evidence)

    @contextmanager
    def lab(self) -> Iterator[Lab]:
        """A lab that ends with the block; that of a test that takes too long ends in tearDown.

        When known issues were seen that the test names, it ends as CANCEL, with XFAIL as the reason.
        """
        folder, heading = Path(self.outputdir), str(self.name.name).rpartition("/")[2]
        interpose = bool(os.environ.get(INTERPOSE_VARIABLE))
        try:
            with trial(heading, folder=folder, interpose=interpose, progress=self.log.info) as self._trial:
                self._open[self._trial.lab] = threading.get_ident()
                try:
                    yield self._trial.lab
                finally:
                    del self._open[self._trial.lab]
        except VerdictError as failure:
            self.log.info("%s\n%s", failure, failure.evidence)
            self.fail("; ".join([str(failure), *getattr(failure, "__notes__", ())]))
        if self._trial.seen:
            self.cancel(f"{XFAIL}: {'; '.join(self._trial.seen)}")

    def known_issue(self, identity: str, guest: BootedGuest) -> AbstractContextManager[None]:
        """`Trial.known_issue`: a block that has to fail as this known issue says where the guest's QEMU has it."""
        return self._trial.known_issue(identity, guest)

    def edu(self, guest: BootedGuest, *arguments: str, device: Plugged | None = None) -> Exercise:
        """Run the guest's edu program on a device, the guest's first if none is named; its verdict must be good."""
        slot = (device or guest.device).address
        done = succeed(guest, "edu", "--slot", slot, *arguments)
        self.log.info("%s: %s", done.command, dict(done.seen))
        return done
