"""What the guest-driven tests share: a lab whose evidence is the test's, and verdicts as avocado has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avocado import Test

from vfio_user.cli.test_e2e import INTERPOSE
from vfio_user.errors import UserError, VerdictError
from vfio_user.harness.booted import BootedGuest, Plugged
from vfio_user.harness.deadline import patience
from vfio_user.harness.exercise import Exercise, succeed
from vfio_user.harness.known_issues import XFAIL, expected_to_fail, failure_of, known_issues, recognise
from vfio_user.harness.lab import Lab


class GuestTest(Test):  # type: ignore[misc]  # avocado has no types
    """A test that boots guests. What a guest or device did wrong fails it; what could not be done is an error."""

    timeout = 300 * patience("kvm")  # seconds; the factor is that of all deadlines, without the accelerator's

    @contextmanager
    def lab(self) -> Iterator[Lab]:
        """A lab that ends with the block, not in tearDown: avocado leaves that out when a test takes too long.

        When known issues were seen that the test names, it ends as CANCEL, with XFAIL as the reason.
        """
        self._seen: list[str] = []
        try:
            interpose = bool(self.params.get(INTERPOSE))
            with Lab("test", folder=Path(self.outputdir), interpose=interpose, progress=self.log.info) as lab:
                self._lab = lab
                try:
                    yield lab
                except (VerdictError, UserError) as failure:
                    self._explain(failure, lab)
                    raise
        except VerdictError as failure:
            self.log.info("%s\n%s", failure, failure.evidence)
            self.fail("; ".join([str(failure), *getattr(failure, "__notes__", ())]))
        if self._seen:
            self.cancel(f"{XFAIL}: {'; '.join(self._seen)}")

    @contextmanager
    def known_issue(self, identity: str, guest: BootedGuest) -> Iterator[None]:
        """A block that has to fail as this known issue says where the guest's QEMU has it, and is the last of the test.

        It asks for what would be right. A failure with another symptom is a failure; none at all is one too (XPASS),
        for the entry is out of date then. What is not affected runs as if the block were not there.
        """
        issue = known_issues()[identity]
        with expected_to_fail(issue, self._lab.qemu.version, guest.machine.child, self._seen):
            yield

    def _explain(self, error: Exception, lab: Lab) -> None:
        """Say so when what ended a QEMU looks like a known issue, in a test that does not name it."""
        for guest in lab.guests:
            for issue in recognise(failure_of(guest.machine.child, error), lab.qemu.version):
                error.add_note(f"looks like the known issue {issue.id}: {issue.what}")

    def edu(self, guest: BootedGuest, *arguments: str, device: Plugged | None = None) -> Exercise:
        """Run the guest's edu program on a device, the guest's first if none is named; its verdict must be good."""
        slot = (device or guest.device).address
        done = succeed(guest, "edu", "--slot", slot, *arguments)
        self.log.info("%s: %s", done.command, dict(done.seen))
        return done
