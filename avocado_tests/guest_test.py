"""What the guest-driven tests share: a lab whose evidence is the test's, and verdicts as avocado has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avocado import Test

from vfio_user.errors import VerdictError
from vfio_user.harness.booted import BootedGuest, Plugged
from vfio_user.harness.deadline import patience
from vfio_user.harness.exercise import Exercise, succeed
from vfio_user.harness.lab import Lab


class GuestTest(Test):  # type: ignore[misc]  # avocado has no types
    """A test that boots guests. What a guest or device did wrong fails it; what could not be done is an error."""

    timeout = 300 * patience("kvm")  # seconds; the factor is that of all deadlines, without the accelerator's

    @contextmanager
    def lab(self) -> Iterator[Lab]:
        """A lab that ends with the block, not in tearDown: avocado leaves that out when a test takes too long."""
        try:
            with Lab("test", folder=Path(self.outputdir), progress=self.log.info) as lab:
                yield lab
        except VerdictError as failure:
            self.log.info("%s\n%s", failure, failure.evidence)
            self.fail(str(failure))

    def edu(self, guest: BootedGuest, *arguments: str, device: Plugged | None = None) -> Exercise:
        """Run the guest's edu program on a device, the guest's first if none is named; its verdict must be good."""
        slot = (device or guest.device).address
        done = succeed(guest, "edu", "--slot", slot, *arguments)
        self.log.info("%s: %s", done.command, dict(done.seen))
        return done
