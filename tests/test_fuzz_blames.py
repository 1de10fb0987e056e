"""What a fuzzer may blame on a server beside what its oracles say: that it died at last, not what it need not do."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tests.conformance_target import InProcess, with_fault
from tests.everything_device import Everything
from tests.test_conformance_blames import HasNoPin, TakesOne
from userdev.conformance import Crash
from userdev.fuzz import Step
from vfio_user.fuzz import VfioUserSubject
from vfio_user.wire import CURRENT

READ = Step.of("read", region=7, offset=0, width=4)
LINE = (Step.of("write_many", values=(1, 2), count=0), Step.of("burst", values=(1, 2), posted=0, place=0))


class Dies(InProcess):
    """It has died of what one client has left, and another is in its place."""

    dead: Crash | None = None

    def crashed(self) -> Crash | None:
        dead, self.dead = self.dead, None
        return dead


def test_a_server_that_died_of_a_client_that_left_is_found_though_another_is_in_its_place(tmp_path: Path) -> None:
    with Dies(tmp_path, Everything) as target, closing(VfioUserSubject(target, CURRENT, timeout=20)) as subject:
        assert subject.prepare() == []
        assert subject.play([READ]) is None
        target.dead = Crash("the server was killed by SIGSEGV")
        found = subject.play([READ])
        assert found is not None
        assert "SIGSEGV" in str(found)
        assert subject.play([READ]) is None


def test_a_server_that_listens_to_nobody_beside_its_client_is_no_find(tmp_path: Path) -> None:
    with (
        TakesOne(tmp_path, Everything, pid=1) as target,
        closing(VfioUserSubject(target, CURRENT, timeout=20)) as subject,
    ):
        assert subject.prepare() == []
        assert subject.play([Step.of("second", unless=0)]) is None


def test_an_interrupt_line_that_keeps_nothing_is_no_find_where_there_is_no_pin(tmp_path: Path) -> None:
    with (
        InProcess(tmp_path, Everything, session=with_fault(HasNoPin())) as target,
        closing(VfioUserSubject(target, CURRENT, timeout=20)) as subject,
    ):
        subject.prepare()
        assert subject.play(LINE) is None
