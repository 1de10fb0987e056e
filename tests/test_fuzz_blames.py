"""What a fuzzer may blame on a server beside what its oracles say: that it died at last, not what it need not do."""

from __future__ import annotations

import errno
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each
from tests.clauses.requests import of_feature
from tests.config_space_faults import RegionSays
from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from tests.everything_device import Everything
from tests.test_conformance_blames import HasNoPin, SaysHowMany, TakesOne
from userdev.conformance import Crash, Skip
from userdev.errors import ProtocolError, UserError
from userdev.fuzz import Find, Found, Kind, Step
from vfio_user.cli._fuzzing import corpus_checks, play_again
from vfio_user.client.conformance import CATALOGUE
from vfio_user.fuzz import VfioUserSubject
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.constants import Feature, FeatureFlags, MigrationState

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


class StaysStopped(Fault):
    """As the reference: a client that leaves changes no state, and what STOP has no use for is refused in it."""

    TAKEN = (Command.REGION_READ, Command.REGION_WRITE, Command.DEVICE_FEATURE, Command.MIG_DATA_READ)
    set_to: MigrationState | None = None

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        migration = session.function.migration
        assert migration is not None
        if self.set_to is MigrationState.STOP and migration.state is not self.set_to:
            migration.set_state(self.set_to)
        if migration.state is MigrationState.STOP and command not in self.TAKEN:
            raise ProtocolError("not in STOP", errno.EINVAL)
        answer = proceed(command, message)
        self.set_to = migration.state
        return answer


class LooksForTheRangeFirst(Fault):
    """As the reference: what is not mapped is not there, whether anything is logged or not."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        reports = of_feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET)(message.payload)
        if reports and not len(session.function.dma):
            raise ProtocolError("it is not mapped", errno.ENOENT)
        return proceed(command, message)


AS_THE_REFERENCE: dict[str, tuple[Fault, list[Step]]] = {
    "a device that stays in STOP": (
        StaysStopped(),
        [
            Step.of("change_state", state=int(MigrationState.STOP)),
            *(Step.of("greet", ids=(check.id,)) for check in CATALOGUE if check.group == "version"),
            Step.of("second", unless=0),
            Step.of("leave", size=0, fds=0),
            Step.of("change_state", state=int(MigrationState.RUNNING)),
        ],
    ),
    "a report of what is not mapped": (LooksForTheRangeFirst(), [Step.of("report_log", slots=1, less=0)]),
}


def test_what_the_reference_does_is_no_find(tmp_path: Path) -> None:
    for name, (fault, steps) in AS_THE_REFERENCE.items():
        with (
            InProcess(tmp_path, Everything, session=with_fault(fault), pid=1) as target,
            closing(VfioUserSubject(target, CURRENT, timeout=20)) as subject,
        ):
            assert subject.prepare() == [], name
            assert subject.play(steps) is None, name


class OfAnother:
    """A subject that sees nothing, and plays `x` alone."""

    def prepare(self) -> list[Found]:
        return []

    def kinds(self) -> list[Kind[Any]]:
        return [Kind("x", lambda session: None, {})]

    def play(self, steps: object) -> None:
        return

    def close(self) -> None:
        return


def test_a_find_that_could_not_be_seen_is_no_good_sign(tmp_path: Path) -> None:
    """What a reference answered otherwise, played without it; steps that are none of this server's."""
    for number, (oracle, names, said) in enumerate(
        (("reference", "x", "--against"), ("rule", "y", "none of its 1 step"), ("rule", "yx", ""), ("rule", "", ""))
    ):
        facts = {"device": "1234:5678"}
        find = Find("p", oracle, "a rule", f"{oracle}: d", "d was said", tuple(map(Step, names)), subject=facts)
        path = find.write(tmp_path / str(number))
        subject: Any = OfAnother()
        checks = corpus_checks(path.parent, "p", lambda bench, find, subject=subject: subject, ())  # type: ignore[misc]
        play = partial(play_again, find, subject, subject, path, as_json=False, quiet=True)
        if said:
            with pytest.raises(Skip, match=said):
                checks[0].run(None)
            with pytest.raises(UserError, match=said) as refused:
                play()
            assert "1234:5678" in (refused.value.hint or "")
        else:
            checks[0].run(None)
            play()


class LastAreaIsEmpty(Fault):
    """Of the areas of region 2 that may be mapped."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.GET_REGION_INFO and len(payload) > 72:
            payload = payload[:-16] + bytes(16)
        return payload, fds


LIES: dict[str, tuple[Fault, Step, str]] = {
    "few regions": (SaysHowMany(3, 1), Step.of("size_region", index=4), "region 4 is needed"),
    "no region": (SaysHowMany(0, 0), Step.of("write_config", offset=4, data=(1,)), ""),
    "no config space": (RegionSays(7, {"size": 0}), Step.of("check", id="region_write/over-the-end"), "has 0 bytes"),
    "a vast config space": (RegionSays(7, {"size": 1 << 40}), Step.of("write_config", offset=4, data=(1,)), ""),
    "an empty area": (LastAreaIsEmpty(), Step.of("look_at_mapped", region=2, offset=1), "0 bytes"),
}
"""What a server says that is not so, a step that it could break, and what is found then."""


@for_each(list(LIES))
def test_what_a_server_lies_about_is_a_find_and_ends_no_campaign(name: str, tmp_path: Path) -> None:
    fault, step, said = LIES[name]
    with (
        InProcess(tmp_path, Everything, session=with_fault(fault)) as target,
        closing(VfioUserSubject(target, CURRENT, timeout=20)) as subject,
    ):
        subject.prepare()
        assert {kind.name: kind for kind in subject.kinds()}[step.name].takes(step)
        assert said in str(subject.play([step]) or "")
