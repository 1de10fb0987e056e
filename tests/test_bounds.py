"""What others can queue, or have us keep, has a bound (docs/decisions, 19), and each bound has its test.

A row sends what fits, then more, and looks at what is read and kept. `ELSEWHERE` has the tests of those that have one.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.bounds_elsewhere import ELSEWHERE, NO_BOUNDS
from tests.bounds_of_vhost_user import (
    answers_without_a_translation,
    descriptors_of_a_ring,
    indirect_table,
    state_of_a_back_end,
    translations,
)
from tests.cases import for_each
from tests.device_kit import open_fds
from tests.migration_device import Adder
from tests.seeded_bugs.catalogue import module_name
from userdev import documents
from userdev.errors import ProtocolError, UserError
from userdev.interposer.control.command import ControlCommand
from userdev.interposer.control.commands import MAX_SCENARIO, SetFaults
from userdev.interposer.control.server import ControlServer
from userdev.process import Deadline
from userdev.relay.backlog import Backlog
from userdev.relay.direction import Direction
from userdev.relay.loop import Future, Loop
from userdev_servers import rng
from userdev_servers.block import images
from vfio_user.client.memory import AddressSpace
from vfio_user.client.service import Service
from vfio_user.harness.mishaps import Mishaps
from vfio_user.harness.qmp import EventLog
from vfio_user.interposer.pairing import Pairing, PendingRequest
from vfio_user.interposer.trace.registers import NamedRegister, RegisterMap
from vfio_user.migration import Migration
from vfio_user.server import dirty_pages, migration_commands
from vfio_user.server.connection import ClientGone
from vfio_user.server.owed import Owed
from vfio_user.server.requests import ClientRequests
from vfio_user.wire import CURRENT, DRAFT_V6, REGION_MIGRATION, Command, Message
from vfio_user.wire.constants import DirtyPagesFlags, Feature, FeatureFlags
from vfio_user.wire.layouts import DIRTY_PAGES, DIRTY_RANGE, FEATURE, LOGGING_REPORT, VM_INTERRUPT
from vhost_user.interposer.unanswered import SentRequest, Unanswered
from vhost_user.wire import acknowledge

ROOT = Path(__file__).parents[1]

Bound = Callable[[int, Path], None]
"""Tries a bound, which is as small as this for the time."""


# vfio-user's server


class Asking:
    """A session whose client answers nothing, or whose handlers ask again while they wait."""

    def __init__(self, *, nested: bool) -> None:
        self.asked = 0
        self.out = bytearray()
        self.nested = nested
        self.refused = 0
        self.requests = ClientRequests(CURRENT, self, threading.RLock(), Owed(), self.serve)  # type: ignore[arg-type]
        self.requests.serving_thread = threading.get_ident()

    def limit_receives(self, seconds: float) -> None:
        pass

    def flush(self) -> None:
        self.asked += 1

    def serve(self) -> None:
        if self.nested and not self.refused:
            self.ask()

    def receive(self) -> bool:
        raise BlockingIOError

    def ask(self) -> int:
        """The errno of reading memory of the client's."""
        with pytest.raises(ProtocolError) as told:
            self.requests.dma_read(0, 4)
        self.refused += told.value.errno == errno.EDEADLK
        return told.value.errno


def handlers_that_wait(bound: int, folder: Path) -> None:
    nested = Asking(nested=True)
    assert nested.ask() == errno.ETIMEDOUT
    assert (nested.asked, nested.refused) == (bound, 1)
    one_by_one = Asking(nested=False)
    assert [one_by_one.ask() for _ in range(2 * bound)] == [errno.ETIMEDOUT] * 2 * bound, "each has ended"


def test_a_handler_that_fails_at_a_client_that_has_gone_counts_no_more() -> None:
    asking = Asking(nested=False)

    def gone() -> bool:
        raise ClientGone("gone")

    asking.receive = gone  # type: ignore[method-assign]
    for _ in range(20):
        with pytest.raises(ClientGone):
            asking.requests.dma_read(0, 4)


def logged(size: int) -> Migration:
    """A device with a log of so many bytes of its client's memory."""
    device = Adder()
    device.dma.map(0, size, 3)
    migration = Migration(device)
    migration.start_log(4096)
    return migration


def bitmap_of_v1(bound: int, folder: Path) -> None:
    migration = logged(1 << 30)

    def ask(argsz: int, size: int) -> bytes:
        payload = DIRTY_PAGES.pack(argsz, DirtyPagesFlags.GET_BITMAP) + DIRTY_RANGE.pack(0, size, 4096, size >> 15)
        return dirty_pages.handle_dirty_pages(migration, payload, REGION_MIGRATION)

    fits = bound << 15
    assert len(ask(bound, fits)) == bound, "too little room for what is around it"
    with pytest.raises(ProtocolError):
        ask(bound + 1, 1 << 20)
    with pytest.raises(ProtocolError):
        ask(bound, fits + (1 << 18))
    wanted = [(0, fits, 4096, bound)]
    assert len(dirty_pages.take_bitmaps_v6(migration, wanted)) > bound
    with pytest.raises(ProtocolError):
        dirty_pages.take_bitmaps_v6(migration, [*wanted, (fits, 1 << 15, 4096, 1)])


def bitmap_of_v2(bound: int, folder: Path) -> None:
    migration = logged(1 << 30)

    def ask(size: int) -> bytes:
        report = LOGGING_REPORT.pack(0, size, 4096)
        payload = FEATURE.pack(1 << 24, Feature.DMA_LOGGING_REPORT | FeatureFlags.GET, tail=report)
        return migration_commands.device_feature(migration, payload)

    assert len(ask(bound << 15)) >= bound
    with pytest.raises(ProtocolError):
        ask((bound << 15) + (1 << 18))


def room_for_an_answer(bound: int, folder: Path) -> None:
    from tests.session_kit import Prober
    from vfio_user.client import Client
    from vfio_user.server import Server
    from vfio_user.wire import Command
    from vfio_user.wire import layouts as at

    with Server(Prober(), str(folder / "s")) as server, Client.connect(str(server.listener.address)) as client:

        def ask(argsz: int) -> int:
            unmap = client.submit(Command.DMA_UNMAP, at.DMA_UNMAP.pack(argsz, 2, 0, 0))  # all of nothing
            fds = client.submit(Command.GET_REGION_IO_FDS, at.REGION_IO_FDS.pack(argsz, 0, 0, 0))
            found = [client.wait(each).errno for each in (unmap, fds)]
            assert found[0] == found[1]
            return found[0]

        assert [ask(bound), ask(bound + 1)] == [0, errno.EINVAL]


# Interposers


def messages_kept(bound: int, folder: Path, *, size: int = 1) -> None:
    changed: list[Direction] = []
    backlog = Backlog(changed.append)
    for _ in range(bound - 1):
        backlog.keep(Direction.TO_SERVER, size)
    assert not backlog.full(Direction.TO_SERVER)
    backlog.keep(Direction.TO_SERVER, size)
    assert backlog.full(Direction.TO_SERVER)
    assert not backlog.full(Direction.TO_CLIENT)
    assert changed == [Direction.TO_SERVER]
    backlog.let_go(Direction.TO_SERVER, size)
    assert not backlog.full(Direction.TO_SERVER)
    assert changed == [Direction.TO_SERVER] * 2


def bytes_kept(bound: int, folder: Path) -> None:
    backlog = Backlog(lambda _: None)
    backlog.keep(Direction.TO_CLIENT, bound - 1)
    assert not backlog.full(Direction.TO_CLIENT)
    backlog.keep(Direction.TO_CLIENT, 1)
    assert backlog.full(Direction.TO_CLIENT)
    backlog.let_go(Direction.TO_CLIENT, 1)
    assert not backlog.full(Direction.TO_CLIENT)


def requests_without_answer(bound: int, folder: Path) -> None:
    before = open_fds()
    pairing, told = Pairing(), list[Message | None]()
    for number in range(3 * bound):
        message = Message(7, 1, 0, fds=[os.open(os.devnull, os.O_RDONLY)])
        pairing.sent(7, PendingRequest(number, 1, message, answered=(told.append,)))
    assert len(pairing) == bound + 1, "the one that the next reply answers is beside them"
    assert len(open_fds() - before) == bound + 1, "what is forgotten keeps no descriptor"
    assert told == [None] * (2 * bound - 1), "whoever waits for its reply hears that none will come"
    pairing.close()
    assert open_fds() == before


def requests_without_answer_of_vhost_user(bound: int, folder: Path) -> None:
    unanswered, told = Unanswered(), list[object]()
    for number in range(3 * bound):
        unanswered.sent(SentRequest(1, number, (told.append,)))
    assert len(unanswered) == bound
    assert told == [None] * (2 * bound)
    assert unanswered.answered(acknowledge(1)) == 2 * bound


class Stuck(ControlCommand[Any]):
    """A command that does not come to its end."""

    fds: ClassVar[bool] = True
    text: str = ""

    async def run(self, interposer: Any, fds: list[int]) -> Any:
        await Future[None]()


def controller_ahead(send: Callable[[socket.socket], None], kept: Callable[[Any], int]) -> Bound:
    """A controller that sends on while its first command is under way."""

    def check(bound: int, folder: Path) -> None:
        loop = Loop()
        interposer = SimpleNamespace(loop=loop)
        server = ControlServer(interposer, lambda: {"stuck": Stuck}, f"unix:{folder}/c")
        with socket.socket(socket.AF_UNIX) as controller, pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("userdev.interposer.control.server._ROOM", 64)
            controller.connect(f"{folder}/c")
            controller.setblocking(False)
            for _ in range(20 * bound):
                try:
                    send(controller)
                except BlockingIOError:
                    break
                loop.turn(0)
            while loop.turn(0.001):
                pass
            (connection,) = server._connections
            assert bound <= kept(connection._lines) <= bound + 8, "what one receive brings is beside it"
        server.close()
        loop.close()

    return check


LINE = b'{"command": "stuck"}\n'


def send_with_fds(controller: socket.socket) -> None:
    with open(os.devnull) as file:
        socket.send_fds(controller, [LINE], [file.fileno()] * 4)


# Devices


def random_bytes(bound: int, folder: Path) -> None:
    device = rng.Rng()
    written: list[bytes] = []

    def write(data: bytes) -> int:
        written.append(data)
        return len(data)

    for wanted, given in ((bound, bound), (10 * bound, bound), (1, 1)):
        assert device.fill(SimpleNamespace(writable=wanted, write=write)) == given  # type: ignore[arg-type]
        assert len(written.pop()) == given
    device.on_close()


# Documents, and consoles


def of_a_document(fits: Callable[[int], str], more: Callable[[int], str]) -> Bound:
    def check(bound: int, folder: Path) -> None:
        documents.parse(fits(bound), "a document")
        with pytest.raises(UserError, match="a document"):
            documents.parse(more(bound), "a document")

    return check


def behind_small_ones(levels: int) -> str:
    """A document of so many levels and one, which others have closed before."""
    return "[" + levels * "[], {a: {}}, " + levels * "[" + levels * "]" + "]"


def size_of_a_document(bound: int, folder: Path) -> None:
    path = folder / "document"
    path.write_text("x" * bound)
    assert documents.read_text(path, "document") == "x" * bound
    path.write_text("x" * (bound + 1))
    with pytest.raises(UserError):
        documents.read_text(path, "document")


def line_of_a_console(bound: int, folder: Path) -> None:
    mishaps = object.__new__(Mishaps)
    mishaps._line = b""
    for _ in range(100):
        mishaps._hear(b"x" * (bound // 2))
        assert len(mishaps._line) <= bound


def registers_of_a_map(bound: int, folder: Path) -> None:
    have = RegisterMap()._bytes
    RegisterMap([NamedRegister(0, 0, "r", 1, count=bound - have)])
    with pytest.raises(ValueError, match="more than"):
        RegisterMap([NamedRegister(0, 0, "r", 1, count=bound - have + 1)])


def scenario_of_a_controller(bound: int, folder: Path) -> None:
    """The constant is in the command's model already, so that it is tried as it is."""
    SetFaults(command="faults", scenario="#" * MAX_SCENARIO)
    with pytest.raises(ValueError, match="65536"):
        SetFaults(command="faults", scenario="#" * (MAX_SCENARIO + 1))


def size_of_an_image(bound: int, folder: Path) -> None:
    assert images.parse_size(f"{bound}") == bound
    for more in (f"{bound + 1}", f"{bound}K", f"{bound}T"):
        with pytest.raises(UserError):
            images.parse_size(more)


def interrupts_that_nobody_takes(bound: int, folder: Path) -> None:
    service = Service(DRAFT_V6, AddressSpace())
    for number in range(3 * bound):
        payload = VM_INTERRUPT.pack(number)
        assert service.answer(Message(1, DRAFT_V6.number(Command.VM_INTERRUPT), payload=payload)) is not None
    assert list(service.interrupts) == list(range(2 * bound, 3 * bound))
    assert service.served[Command.VM_INTERRUPT] == 3 * bound


def events_that_nobody_takes(bound: int, folder: Path) -> None:
    log = EventLog()
    looking_on = log.branch()
    log.put({"event": "STOP"})
    for number in range(3 * bound):
        log.put({"event": "RTC_CHANGE", "data": {"offset": number}})
    for each in (log, looking_on):
        assert len(each._waiting) == bound
        assert each.take("STOP", {}, Deadline(0))
        last = [each.take("RTC_CHANGE", {}, Deadline(0))["data"]["offset"] for _ in range(bound - 1)]
        assert last == list(range(2 * bound + 1, 3 * bound))


BOUNDS: Mapping[str, tuple[int, Bound]] = {
    "vfio_user.client.service:MOST": (5, interrupts_that_nobody_takes),
    "vfio_user.harness.qmp:MOST": (5, events_that_nobody_takes),
    "vfio_user.server.requests:MAX_DEPTH": (3, handlers_that_wait),
    "vfio_user.server.dirty_pages:MAX_REPLY": (128, bitmap_of_v1),
    "vfio_user.server.migration_commands:MAX_BITMAP": (64, bitmap_of_v2),
    "vfio_user.server.commands:_MAX_ARGSZ": (4096, room_for_an_answer),
    "vfio_user.interposer.pairing:LIMIT": (5, requests_without_answer),
    "vfio_user.harness.mishaps:_LONGEST_LINE": (100, line_of_a_console),
    "userdev.relay.backlog:MAX_MESSAGES": (5, messages_kept),
    "userdev.relay.backlog:MAX_BYTES": (500, bytes_kept),
    "userdev.interposer.control.server:MAX_LINES": (10, controller_ahead(lambda c: c.sendall(LINE), len)),
    "userdev.interposer.control.server:MAX_FDS_WAITING": (
        12,
        controller_ahead(send_with_fds, lambda lines: sum(len(line.fds) for line in lines)),
    ),
    "userdev.documents:MAX_SIZE": (100, size_of_a_document),
    "userdev.documents:MAX_VALUES": (
        50,
        of_a_document(lambda most: str([1] * (most - 1)), lambda most: str([1] * most)),
    ),
    "userdev.documents:MAX_LEVELS": (
        10,
        of_a_document(lambda most: behind_small_ones(most - 1), behind_small_ones),
    ),
    "vhost_user.interposer.unanswered:LIMIT": (5, requests_without_answer_of_vhost_user),
    "vhost_user.frontend.device_state:MOST": (1000, state_of_a_back_end),
    "vhost_user.rings.ring:MAX_INDIRECT": (6, indirect_table),
    "vhost_user.backend.misses:MAX_TRIES": (4, answers_without_a_translation),
    "vhost_user.memory.iotlb:MAX_ENTRIES": (5, translations),
    "vfio_user.interposer.trace.registers:MAX_BYTES": (1000, registers_of_a_map),
    "userdev.interposer.control.commands:MAX_SCENARIO": (64 << 10, scenario_of_a_controller),
    "userdev_servers.block.images:MOST": (1 << 20, size_of_an_image),
    "vhost_user.rings.ring:MAX_SIZE": (8, descriptors_of_a_ring),
    "userdev_servers.rng:MOST": (100, random_bytes),
}

_NAMED = re.compile(
    r"^(_?(?:MAX_[A-Z_]+|MOST|_MOST_[A-Z]+|LIMIT|[A-Z]+_LIMIT|_LIMIT_[A-Z]+|BACKLOG|FORGOTTEN|_MAX_[A-Z]+|_LONGEST_[A-Z]+))"
    r"(?:: .+)? = ",
    re.MULTILINE,
)
ROOMS = ("userdev", "vhost_user", "servers/userdev_servers")
ROOMS_OF_VFIO_USER = ("server", "client", "device", "migration", "interposer", "wire")
CHANNELS = ("agent", "console", "log", "mishaps", "qmp")


def bounds_there_are() -> set[str]:
    """Each constant that is named as a bound, as module and name."""
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    files += [file for room in ROOMS_OF_VFIO_USER for file in (ROOT / "vfio_user" / room).rglob("*.py")]
    files += [ROOT / f"vfio_user/harness/{channel}.py" for channel in CHANNELS]
    return {
        f"{module_name(str(file.relative_to(ROOT)))}:{name}"
        for file in files
        for name in _NAMED.findall(file.read_text())
    }


def test_each_bound_has_its_test() -> None:
    elsewhere = [name for tests in ELSEWHERE.values() for names in tests.values() for name in names]
    listed = [*BOUNDS, *elsewhere, *NO_BOUNDS]
    assert len({*listed}) == len(listed)
    assert bounds_there_are() == {*listed}


@for_each(ELSEWHERE)
def test_the_tests_of_other_files_are_there(file: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    assert [test for test in ELSEWHERE[file] if f"def test_{test}(" not in text] == []


@for_each(BOUNDS)
def test_what_is_beyond_a_bound_is_not_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound, check = BOUNDS[name]
    module, _, constant = name.partition(":")
    monkeypatch.setattr(import_module(module), constant, bound)
    check(bound, tmp_path)
