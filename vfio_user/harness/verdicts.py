"""One test's lab and its verdict: what the test runners' faces (avocado's, pytest's) share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from userdev.errors import UserError, VerdictError
from vfio_user.harness import evidence
from vfio_user.harness.booted_guest import BootedGuest
from vfio_user.harness.cell import Cell
from vfio_user.harness.debian import quiet
from vfio_user.harness.known_issues import expected_to_fail, failure_of, known_issue, recognise
from vfio_user.harness.lab import Lab
from vfio_user.harness.rules_used import untried_faults
from vfio_user.harness.server_exceptions import LoggedException
from vfio_user.page.names import INDEX

TEST_SECONDS = 300.0
"""Seconds for a guest-driven test that says nothing else, with the patience of deadlines."""


class Trial:
    """A lab, and the known issues that its test names and has seen: a test that saw one is XFAIL."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.seen: list[str] = []
        """What was seen, an entry's id and what happens."""
        self.untried: list[str] = []
        """Rules of faults that never acted, as sentences: known once the test is over."""

    def record(self) -> dict[str, object]:
        """What a report of the test has to know: the QEMU's version, and the known issues that were seen."""
        qemu = vars(self.lab).get("qemu")  # a lab without a guest has looked for none
        return {
            "qemu": str(qemu.version) if qemu else "",
            "known_issues": [text.partition(":")[0] for text in self.seen],
        }

    def unnoticed(self) -> list[LoggedException]:
        """What devices' own code raised although the test passes: asked once its lab has ended, and wrote all down."""
        return self.lab.exceptions() if self.lab.failure is None else []

    def fails_at_last(self, error: UserError | VerdictError) -> None:
        """Write the evidence of a test that failed when its lab had ended already; none where there is some."""
        folder, children = self.lab.folder, self.lab.records.children
        if not (folder / INDEX).exists():
            with suppress(OSError):  # a full disk: the failure itself is told
                evidence.write(folder, children, error, evidence.ends(folder, children), name=self.lab.name)

    def look_at_faults(self, failure: BaseException | None) -> None:
        """Ask interposers which rules never acted, and note that at a failure: something else led to it."""
        self.untried = untried_faults(self.lab.servers)
        if failure is not None:
            for rule in self.untried:
                failure.add_note(f"of its faults {rule}")

    @contextmanager
    def known_issue(self, identity: str, guest: BootedGuest) -> Iterator[None]:
        """A block that has to fail as this known issue says where the guest's QEMU has it, and is the last of the test.

        It asks for what would be right. A failure with another symptom is a failure; none at all is one too (XPASS),
        for the entry is out of date then. What is not affected runs as if the block were not there.

        Raises:
            UserError: there is no such known issue.
            VerdictError: (XPASS) nothing went wrong.
        """
        issue = known_issue(identity)
        with expected_to_fail(issue, self.lab.qemu.version, guest.machine.child, self.seen):
            yield

    def explain(self, error: Exception) -> None:
        """Add a note to `error` when what ended a QEMU looks like a known issue, in a test that does not name it."""
        for guest in self.lab.guests:
            for issue in recognise(failure_of(guest.machine.child, error), self.lab.qemu.version):
                error.add_note(f"looks like the known issue {issue.id}: {issue.what}")


@contextmanager
def trial(
    name: str,
    *,
    folder: Path,
    cell: Cell = Cell(),  # noqa: B008  # nothing of it changes
    progress: Callable[[str], None] = quiet,
) -> Iterator[Trial]:
    """A lab for one test, whose evidence goes to `folder`; the arguments are those of `Lab`.

    Raises:
        VerdictError: what a guest or device did wrong: the test fails.
        UserError: what could not be done: the test says nothing.
    """
    with Lab(name, folder=folder, cell=cell, progress=progress) as lab:
        made = Trial(lab)
        try:
            yield made
        except (VerdictError, UserError) as failure:
            made.explain(failure)
            made.look_at_faults(failure)
            raise
        made.look_at_faults(lab.failure)
