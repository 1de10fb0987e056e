"""Everybody who may go, in every way, at every moment: disconnections.py is the table of what is to become of the rest.

A row is one test: its cells share a guest and a server as long as these live, so that each new client also finds what
the one before left.
"""

from __future__ import annotations

from pathlib import Path

from avocado_tests.disconnecting import Disconnection, Outcome
from avocado_tests.disconnections import CELLS, Moment, Row
from vfio_user.avocado_test import GuestTest


class Disconnections(GuestTest):
    """
    :avocado: tags=disconnection
    """

    def test_server_killed(self) -> None:
        self.row("server", "SIGKILL")

    def test_server_terminated(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("server", "SIGTERM")

    def test_server_pauses(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("server", "SIGSTOP")

    def test_server_closes(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("server", "close")

    def test_server_closes_one_direction(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("server", "half-close")

    def test_qemu_killed(self) -> None:
        self.row("QEMU", "SIGKILL")

    def test_qemu_terminated(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("QEMU", "SIGTERM")

    def test_qemu_pauses(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("QEMU", "SIGSTOP")

    def test_qemu_unplugs(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("QEMU", "close")

    def test_interposer_killed(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("interposer", "SIGKILL")

    def test_interposer_terminated(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("interposer", "SIGTERM")

    def test_interposer_pauses(self) -> None:
        """
        :avocado: tags=nightly
        """
        self.row("interposer", "SIGSTOP")

    def row(self, who: str, how: str) -> None:
        with self.lab() as lab:
            row = Row(who, how)
            seen = dict(Disconnection(lab, row).cells())
            table = "\n".join(line(row, moment, outcome) for moment, outcome in seen.items())
            self.log.info("%s", table)
            (Path(self.outputdir) / "disconnections.txt").write_text(table + "\n")
            wrong = {moment: outcome.differs(CELLS[row][moment]) for moment, outcome in seen.items()}
            self.assertEqual({moment.value: found for moment, found in wrong.items() if found}, {})


def line(row: Row, moment: Moment, outcome: Outcome) -> str:
    """A line of the table of outcomes."""
    return (
        f"{row.who:10} {row.how:10} {moment.value:24} guest: {outcome.guest:24} QEMU: {outcome.qemu:22}"
        f" server: {outcome.server:22} frozen: {outcome.frozen:.2f} s"
    )
