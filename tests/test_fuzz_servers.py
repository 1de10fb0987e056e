"""`vfio-user fuzz`: what each oracle notices of a server, what is found where nothing is wrong, the command line."""

from __future__ import annotations

import errno
import json
import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.conformance_target import Fault, InProcess, Proceed, Reply, with_fault
from tests.conftest import PATIENCE
from tests.fuzz_kit import Quiet, Switched, drawn_at_once
from userdev.errors import ProtocolError, UserError
from userdev.fuzz import Bounds, Campaign, Find, Found, Step
from userdev.fuzz import process as process_module
from userdev.fuzz.drawing import sequences
from userdev.fuzz.process import Holdings, Watched
from userdev_servers.edu import Edu
from vfio_user.cli import _fuzzing, cli, run_command, vhost_user_cli
from vfio_user.cli._fuzzing import _Teller
from vfio_user.client import Client
from vfio_user.device import PciDevice, register
from vfio_user.fuzz import ORACLES, VfioUserSubject
from vfio_user.server import Server
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, DRAFT_V6, REGION_MIGRATION, Command, Dialect, Message
from vfio_user.wire.constants import IrqSetFlags
from vfio_user.wire.layouts import DMA_MAP, IRQ_SET, REGION_ACCESS

# what each oracle notices


class KeepsARegister(Edu):
    """Its liveness register is neither reset nor saved."""

    kept = 0

    @register(bar=0, offset=0x04, width=4)
    def liveness(self, value: int) -> None:  # type: ignore[override]
        self.kept = value

    @liveness.reader
    def kept_register(self) -> int:
        return self.kept


class HasNoClass(Edu):
    """Linux gives it no addresses."""

    ids = replace(Edu.ids, class_code=0)


class Writes(Fault):
    """Writes to the beginning of each file that is mapped, wherever the map is."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.DMA_MAP and message.fds and len(message.payload) == DMA_MAP.size:
            os.pwrite(message.fds[0], b"x", 0)
        return proceed(command, message)


class KeepsDescriptors(Fault):
    """For as long as there is the fault itself."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        for fd in message.fds:
            weakref.finalize(self, os.close, os.dup(fd))
        return proceed(command, message)


class FiresTheNext(Fault):
    """What triggers vector 1 triggers vector 2."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.SET_IRQS and len(message.payload) == IRQ_SET.size:
            asked = IRQ_SET.unpack(message.payload)
            if asked.flags == IrqSetFlags.DATA_NONE | IrqSetFlags.TRIGGER and (asked.start, asked.nr_vectors) == (1, 1):
                message.payload = IRQ_SET.pack(*asked[:3], 2, 1)
        return proceed(command, message)


class Unmaps(Fault):
    """Takes whatever is to be unmapped for mapped."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except Exception:
            if command is Command.DMA_UNMAP and len(message.payload) >= 24:
                return message.payload[:24], []
            raise


class ChangesANeighbour(Fault):
    """A write of the interrupt line changes the command register too."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        answer = proceed(command, message)
        if command is Command.REGION_WRITE and message.payload[:13] == REGION_ACCESS.pack(0x3C, 7, 1)[:13]:
            session.regions.write(7, 0x05, message.payload[16:17])
        return answer


class SaysNothing(Fault):
    """GET_IRQ_INFO is not answered."""

    def sent(self, message: Message) -> list[Message]:
        return [] if message.command == CURRENT.number(Command.GET_REGION_IO_FDS) else [message]


class SavesSomethingElse(Fault):
    """Of a state that was loaded, and not of one that was not, the last byte is saved wrong."""

    loaded = False

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        self.loaded |= command is Command.MIG_DATA_WRITE
        if command is Command.MIG_DATA_READ and len(payload) > 8 and self.loaded:
            payload = payload[:-1] + bytes([payload[-1] ^ 1])
        return payload, fds


NOTICED: dict[str, tuple[type[PciDevice], type[Fault], list[Step]]] = {
    "alive": (Edu, SaysNothing, [Step.of("check", id="io_fds/two-steps")]),
    "replies": (Edu, Unmaps, [Step.of("unmap", slot=1, page=0, pages=0, shift=0)]),
    "description": (HasNoClass, Fault, []),
    "memory": (Edu, Writes, [Step.of("give", slot=0, page=0, pages=0, shift=0, rights=3, shared=1)]),
    "config": (Edu, ChangesANeighbour, [Step.of("write_config", offset=0x3C, data=(7,))]),
    "interrupts": (
        Edu,
        FiresTheNext,
        [
            Step.of("wire", irq=2, start=0, count=3, spare=0),
            Step.of("trigger", irq=2, start=1, count=1, chosen=()),
        ],
    ),
    "reset": (KeepsARegister, Fault, [Step.of("write", region=0, offset=4, width=4, value=7, posted=0)]),
    "state": (Edu, SavesSomethingElse, [Step.of("move", reset_between=1, chunk=0, damage="")]),
    "descriptors": (Edu, KeepsDescriptors, [Step.of("with_descriptors", command="GET_INFO", fds=2)]),
}
"""By oracle: a server that does wrong what it is for, and nothing else; and when it does."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "finds"


def fuzz(
    target: InProcess, folder: Path | None, *, timeout: float = 1.0, dialect: Dialect = CURRENT, **bounds: Any
) -> dict[str, Find]:
    player = VfioUserSubject(target, dialect, timeout=timeout)
    try:
        wrong = player.prepare()
        drawn = sequences(player.kinds(), 7, 40)
        made = Campaign(player, drawn, seed=7, bounds=Bounds(**bounds), listener=Quiet(), folder=folder)
        with drawn_at_once(bounds["sequences"]):
            return made.run(wrong).finds
    finally:
        player.close()


def test_each_oracle_notices_what_it_is_for_and_only_then(tmp_path: Path) -> None:
    for oracle, (device, fault, steps) in NOTICED.items():
        pid = os.getpid() if oracle == "descriptors" else None
        with InProcess(tmp_path, device, session=with_fault(fault()), pid=pid) as target:
            player = VfioUserSubject(target, CURRENT, timeout=0.5 if oracle == "alive" else PATIENCE)
            wrong = player.prepare()
            found = player.play(steps) if steps else wrong[0]
            player.close()
        assert found is not None, oracle
        assert found.oracle.id == oracle
    with InProcess(tmp_path, Edu, pid=os.getpid()) as target:
        player = VfioUserSubject(target, CURRENT, timeout=PATIENCE)
        assert not player.prepare()
        for oracle, (_, _, steps) in NOTICED.items():
            assert player.play(steps) is None, oracle
        player.close()


def test_a_find_says_how_many_steps_had_begun(tmp_path: Path) -> None:
    device, fault, (wrong,) = NOTICED["memory"]
    other = Step.of("read", region=0, offset=4, width=4)
    for steps, begun in (([wrong, other], 1), ([other, wrong, other, other], 2)):
        with InProcess(tmp_path, device, session=with_fault(fault())) as target:
            player = VfioUserSubject(target, CURRENT, timeout=PATIENCE)
            assert not player.prepare()
            found = player.play(steps)
            player.close()
        assert found is not None
        assert found.begun == begun


class RefusesNothing(Fault):
    """SET_IRQS that cannot be right is answered as good."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        try:
            return proceed(command, message)
        except Exception:
            if command is Command.SET_IRQS:
                return b"", []
            raise


def test_what_a_server_may_take_by_the_specification_is_no_find_where_it_is_held_to_that(tmp_path: Path) -> None:
    """What comes behind it is tried all the same, by another client: what the server has kept is not known."""
    wrong, next_is_fired = Step.of("set_wrong", irq=2, flags=0), NOTICED["interrupts"][2]
    for level, fault, steps, oracle in (
        ("reference", RefusesNothing(), [wrong], "replies"),
        ("must", RefusesNothing(), [wrong], None),
        ("must", RefusesNothing(), [wrong, *next_is_fired], None),
        ("must", FiresTheNext(), [wrong, *next_is_fired], "interrupts"),
        ("must", Unmaps(), [Step.of("unmap", slot=1, page=0, pages=0, shift=0), *next_is_fired], None),
        ("must", Fault(), [Step.of("check", id="info/argsz-too-small")], None),
    ):
        with InProcess(tmp_path, Edu, session=with_fault(fault)) as target:
            player = VfioUserSubject(target, CURRENT, timeout=5, level=level)
            assert not player.prepare()
            found = player.play(steps)
            assert player.facts()["level"] == level
            player.close()
        assert (found.oracle.id if found is not None else None) == oracle, (level, fault, steps)


class SubRegionsAreUnknown(Fault):
    """As a server has it that does not know the command: all of its checks fail, and one of them is the cause."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        if command is Command.GET_REGION_IO_FDS:
            raise ProtocolError("no such command", errno.ENOTSUP)
        return proceed(command, message)


def test_checks_that_fail_for_want_of_another_are_one_find(tmp_path: Path) -> None:
    with InProcess(tmp_path, Edu, session=with_fault(SubRegionsAreUnknown())) as target:
        player = VfioUserSubject(target, CURRENT, timeout=5)
        player.prepare()
        found = [player.play([Step.of("check", id=f"io_fds/{name}")]) for name in ("two-steps", "flags", "count")]
        player.close()
    assert {each.cause for each in found if each is not None} == {"replies: check io_fds/two-steps"}
    assert None not in found


class StandsStill(Fault):
    """A write of the migration region's device_state is answered, and does nothing."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        access = REGION_ACCESS.unpack(message.payload) if command is Command.REGION_WRITE else None
        if access is not None and (access.offset, access.length) == (0, 4) and access.region > 8:
            return message.payload[: REGION_ACCESS.size], []
        return proceed(command, message)


class LoadsAnother(Fault):
    """Of each second state that is saved in pieces the middle is wrong."""

    saved = 0

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        access = REGION_ACCESS.unpack(message.payload) if command is Command.REGION_READ else None
        if access is not None and access.region > 8 and access.length > 32:
            self.saved += 1
            if self.saved > 2:
                payload = payload[:-1] + bytes([payload[-1] ^ 1])
        return payload, fds


class TakesAnyTable(Fault):
    """DMA_MAP is answered as good, if it is more than a byte."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        return (b"", []) if command is Command.DMA_MAP and len(message.payload) > 1 else proceed(command, message)


OF_OTHER_DIALECTS: list[tuple[Dialect, type[Fault], Step, str]] = [
    (REGION_MIGRATION, StandsStill, Step.of("change_states", states=(0,)), "replies"),
    (REGION_MIGRATION, LoadsAnother, Step.of("move_region", reset_between=0, damage=0), "state"),
    (DRAFT_V6, StandsStill, Step.of("change_states", states=(3,)), "replies"),
    (DRAFT_V6, TakesAnyTable, Step.of("map_wrong_entry", what="rights", shared=0), "replies"),
    (DRAFT_V6, Unmaps, Step.of("unmap", slot=1, page=0, pages=0, shift=0), "replies"),
]


@for_each([REGION_MIGRATION, DRAFT_V6])
def test_so_it_is_with_what_other_dialects_have(dialect: Dialect, tmp_path: Path) -> None:
    switched = Switched()
    with InProcess(tmp_path, Edu, session=with_fault(switched), dialect=dialect) as target:
        player = VfioUserSubject(target, dialect, timeout=5)
        assert not player.prepare()
        for where, fault, step, oracle in OF_OTHER_DIALECTS:
            if where is not dialect:
                continue
            switched.now = fault()
            found = player.play([step])
            assert found is not None, fault
            assert found.oracle.id == oracle
            switched.now = Fault()
            assert player.play([step]) is None, fault
        player.close()


@pytest.mark.parametrize("dialect", [CURRENT, REGION_MIGRATION, DRAFT_V6], ids=lambda dialect: dialect.name)
def test_nothing_is_found_in_a_server_that_does_nothing_wrong(tmp_path: Path, dialect: Dialect) -> None:
    with InProcess(tmp_path, Edu, dialect=dialect) as target:
        assert fuzz(target, None, timeout=5.0, sequences=6 if dialect is CURRENT else 2, dialect=dialect) == {}


def test_memory_that_no_descriptor_names_is_the_same_whatever_of_the_clients_it_is(tmp_path: Path) -> None:
    """A server is told addresses alone, and may take them twice; with a descriptor it is told where in the file."""
    last, before = ({"slot": 2, "page": 3, "pages": 0, "shift": 0}, {"slot": 3, "page": 0, "pages": 1, "shift": -1})
    for shared in (0, 1):
        with InProcess(tmp_path, Edu) as target:
            player = VfioUserSubject(target, CURRENT, timeout=5)
            assert not player.prepare()
            assert player.play([Step.of("give", **place, rights=1, shared=shared) for place in (before, last)]) is None
            player.close()


def test_a_reference_that_answers_otherwise_is_a_find(tmp_path: Path) -> None:
    class Factorial(Edu):
        @register(bar=0, offset=0x08, width=4)
        def compute(self, value: int) -> None:  # type: ignore[override]
            self.result = value + 1

        @compute.reader
        def result_register(self) -> int:
            return self.result

    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    steps = (
        Step.of("write", region=0, offset=8, width=4, value=4, posted=0),
        Step.of("read", region=0, offset=8, width=4),
    )
    with InProcess(tmp_path / "one", Factorial) as target, InProcess(tmp_path / "other", Edu) as reference:
        other = VfioUserSubject(reference, CURRENT, timeout=5)
        player = VfioUserSubject(target, CURRENT, timeout=5, reference=other)
        player.prepare()
        found = player.play(steps)
        player.close()
    assert found is not None
    assert found.oracle.id == "reference"
    assert str(found).index("05000000") < str(found).index("18000000")


def test_a_server_that_gathers_memory_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()
    for memory, mappings in ((0, 0), (1 << 20, 0)):
        monkeypatch.setattr(process_module.Holdings, "of", lambda pid, m=memory, n=mappings: Holdings(5, n, m))
        watched.note(1, lambda: None)
    monkeypatch.setattr(process_module.Holdings, "of", lambda pid: Holdings(5, 1, 0))
    with pytest.raises(Found, match="mappings"):
        watched.check(1)
    monkeypatch.setattr(process_module.Holdings, "of", lambda pid: Holdings(5, 0, 1 << 30))
    with pytest.raises(Found, match="grown"):
        watched.check(1)


# the command lines


def start_anew(target: InProcess) -> None:
    """Have a device that nobody has touched, behind the same address."""
    target.renew()
    target.connect().close()


def test_what_is_found_is_played_again_by_replay_and_conformance(tmp_path: Path, folder: Path) -> None:
    with InProcess(tmp_path, Edu, session=with_fault(Unmaps())) as target:
        start_anew(target)
        run = CliRunner()
        arguments = ["--for", "30", "--finds", "1", "--seed", "7", "--output", str(folder), "--json", "--quiet"]
        with drawn_at_once(5):
            found = run.invoke(cli, ["fuzz", target._address, *arguments])
        assert type(found.exception).__name__ == "VerdictError"
        assert found.stderr == "", "it is quiet"
        (find,) = json.loads(found.stdout)["finds"]
        assert find["oracle"] == "replies"
        start_anew(target)
        again = run.invoke(cli, ["replay", find["file"], "--connect", target._address])
        assert "still there" in str(again.exception)
        assert "#" not in str(again.exception), "numbers as they were seen"
        start_anew(target)
        told = run.invoke(cli, ["replay", find["file"], "--connect", target._address, "--json"])
        assert told.exit_code == 1
        assert json.loads(told.stdout)["found"]["cause"] == find["cause"]
        refused = run.invoke(cli, ["replay", find["file"], "--connect", target._address, "--ignore", "BAR0"])
        assert refused.exit_code == 2, "it has no recorded answers, of which some could be ignored"
        assert "--ignore" in refused.output
        start_anew(target)
        checked = run.invoke(cli, ["conformance", target._address, "--corpus", str(folder)])
        assert "1 of 1 check" in str(checked.exception)
    with InProcess(tmp_path, Edu) as mended:
        start_anew(mended)
        good = run.invoke(cli, ["replay", find["file"], "--connect", mended._address, "--json"])
        assert (good.exit_code, json.loads(good.stdout)["found"]) == (0, None)
        start_anew(mended)
        silent = run.invoke(cli, ["replay", find["file"], "--connect", mended._address, "--quiet"])
        assert (silent.exit_code, silent.output) == (0, "")
        assert run.invoke(cli, ["conformance", mended._address, "--corpus", str(folder)]).exit_code == 0


def test_the_seed_is_told_before_anything_that_may_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(subject: VfioUserSubject) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(VfioUserSubject, "prepare", interrupted)
    with Server(Edu(), f"unix:{tmp_path / 's'}"):
        for quiet in ([], ["--quiet"]):
            monkeypatch.setattr("sys.argv", ["vfio-user", "fuzz", str(tmp_path / "s"), "--seed", "4711", *quiet])
            with pytest.raises(SystemExit, match="130"):
                run_command(cli)
            told = capsys.readouterr().err
            assert told.count("seed 4711") == told.count("interrupted") == 1, quiet


def test_what_probing_shows_is_told_as_that_and_not_as_no_steps(tmp_path: Path) -> None:
    """As of a server that dies of it, or describes itself wrongly."""
    find = Find("vfio-user", "death", "a rule", "death of it", "it died", (), 1, 0)
    told: list[str] = []
    _Teller(1.0, SimpleNamespace(say=told.append)).kept(find, tmp_path / "f.json")  # type: ignore[arg-type]
    assert "probing" in told[0]


def test_how_many_steps_of_a_long_find_are_not_shown_is_told(tmp_path: Path) -> None:
    for number in (10, 13):
        find = Find("vfio-user", "death", "a rule", "death: of it", "it died", (Step.of("reset"),) * number)
        told: list[str] = []
        _Teller(1.0, SimpleNamespace(say=told.append)).kept(find, tmp_path / "f.json")  # type: ignore[arg-type]
        assert sum("reset" in line for line in told) == 10
        assert [line for line in told[1:] if "reset" not in line] == ["    ... and 3 more steps"] * (number > 10)


def test_a_device_of_ours_is_served_for_the_fuzzer_as_for_the_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A back-end's says what is served as well, and does where one is named."""
    asked: list[tuple[str | None, str | None]] = []

    def served(address: str | None, command: str | None, *_: object, **__: object) -> NoReturn:
        asked.append((address, command))
        raise UserError("enough")

    monkeypatch.setattr(_fuzzing, "server", served)
    run = CliRunner()
    run.invoke(cli, ["fuzz", "--device", "edu --msix 0"])
    run.invoke(vhost_user_cli, ["fuzz", "--device", "rng"])
    for (address, command), words in zip(
        asked, ("serve edu --socket-path {socket} --msix 0", "serve rng"), strict=True
    ):
        assert address is None
        assert command is not None
        assert words in command.replace("'", "")
    asked.clear()
    run.invoke(vhost_user_cli, ["fuzz", "a.sock", "--device", "rng"])
    assert asked == [("a.sock", None)]
    for program, refused in (
        (cli, ["fuzz", "s", "--device", "edu"]),
        (vhost_user_cli, ["fuzz", "s", "--device", "edu"]),
    ):
        assert isinstance(run.invoke(program, refused).exception, UserError), refused
    assert len(asked) == 1


def test_what_cannot_be_asked_for_is_said(tmp_path: Path) -> None:
    run = CliRunner()
    assert "one server, please" in str(run.invoke(cli, ["fuzz"]).exception)
    assert run.invoke(cli, ["fuzz", str(tmp_path / "none"), "--for", "soon"]).exit_code == 2
    assert isinstance(run.invoke(cli, ["fuzz", str(tmp_path / "none")]).exception, UserError)
    listed = run.invoke(cli, ["fuzz", "--oracles"]).output
    assert all(oracle.id in listed for oracle in ORACLES)


def test_a_server_that_has_another_client_is_no_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userdev.serving.server.GRACE_SECONDS", 0.1)
    with InProcess(tmp_path, Edu) as target, Client(target.connect()) as client:
        client.negotiate()
        result = CliRunner().invoke(cli, ["fuzz", target._address, "--output", str(tmp_path / "finds")])
    assert isinstance(result.exception, UserError)
    assert "another client" in result.exception.hint
    assert not (tmp_path / "finds").exists()
