"""What a thread of the device writes while it gets quiet is told to whoever had it get quiet."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.session_kit import GUEST, Prober
from userdev.errors import ProtocolError
from userdev.memory.bitmap import dirty_pages
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.device import DRAFT_V6_POLICY, Dma, DmaRegion, Quiesce
from vfio_user.server import Server
from vfio_user.testing import memory_file
from vfio_user.wire import CURRENT, DRAFT_V6, REGION_MIGRATION, Dialect
from vfio_user.wire.constants import MigrationState

PAGE, PAGES = 4096, 4


class Writer(Prober):
    """Writes a page more when it is asked to stand still, on its own thread, and stands still then."""

    def __init__(self) -> None:
        super().__init__()
        self.page = 0
        self.refuses = False

    def on_quiesce(self) -> Quiesce:
        quiesce = Quiesce()
        threading.Thread(target=self._finish, args=(quiesce,)).start()
        return quiesce

    def _finish(self, quiesce: Quiesce) -> None:
        def write() -> None:
            with contextlib.suppress(ProtocolError):  # nothing is mapped yet
                self.dma.write(GUEST + self.page * PAGE, b"last words")
            if self.refuses:
                quiesce.fail(errno.EBUSY)
            else:
                quiesce.done()

        self.call_soon(write)


@pytest.fixture
def device() -> Iterator[Writer]:
    with closing(Writer()) as device:
        yield device


def served(device: Writer, folder: Path, dialect: Dialect) -> Iterator[tuple[Client, GuestMemory]]:
    with (
        Server(device, str(folder / "s"), dialect=dialect) as server,
        Client.connect(str(server.listener.address), dialect=dialect) as client,
        GuestMemory(PAGES * PAGE) as memory,
    ):
        client.dma_map(GUEST, memory)
        device.page = 2
        yield client, memory


@pytest.fixture
def v1(device: Writer, tmp_path: Path) -> Iterator[tuple[Client, GuestMemory]]:
    yield from served(device, tmp_path, REGION_MIGRATION)


@pytest.fixture
def v2(device: Writer, tmp_path: Path) -> Iterator[tuple[Client, GuestMemory]]:
    yield from served(device, tmp_path, CURRENT)


def pages(found: object) -> list[int]:
    """Numbers of the pages in a report."""
    assert found is not None
    return [(iova - GUEST) // PAGE for iova in found.pages()]  # type: ignore[attr-defined]


def test_the_bitmap_of_an_unmap_has_the_last_page(device: Writer, v1: tuple[Client, GuestMemory]) -> None:
    client, memory = v1
    client.start_dirty_pages()
    found = client.dma_unmap(GUEST, PAGES * PAGE, page_size=PAGE)
    assert pages(found) == [2]
    assert bytes(memory.view[2 * PAGE : 2 * PAGE + 10]) == b"last words"


def test_an_unmap_that_is_refused_leaves_memory_and_log_to_the_next(
    device: Writer, v1: tuple[Client, GuestMemory]
) -> None:
    client, _ = v1
    client.start_dirty_pages()
    device.refuses = True
    with pytest.raises(RemoteError):
        client.dma_unmap(GUEST, PAGES * PAGE, page_size=PAGE)
    device.refuses, device.page = False, 1
    assert pages(client.dma_unmap(GUEST, PAGES * PAGE, page_size=PAGE)) == [1, 2]


def test_the_report_behind_the_stop_has_the_last_page(device: Writer, v2: tuple[Client, GuestMemory]) -> None:
    client, _ = v2
    client.start_logging(PAGE)
    client.set_migration_state(MigrationState.PRE_COPY)
    assert pages(client.report_logging(GUEST, PAGES * PAGE, PAGE)) == []
    client.set_migration_state(MigrationState.STOP_COPY)
    assert pages(client.report_logging(GUEST, PAGES * PAGE, PAGE)) == [2]
    client.set_migration_state(MigrationState.STOP)


STILL: dict[str, Callable[[Client], object]] = {
    "an unmap": lambda client: client.dma_unmap(GUEST, PAGES * PAGE),
    "a map": lambda client: client.dma_map(0x10000000, GuestMemory(PAGE, shared=False)),
    "a reset": lambda client: client.reset(),
}


@pytest.mark.parametrize("asked", STILL)
def test_whoever_has_it_stand_still_sees_all_that_it_had_to_write(
    device: Writer, v2: tuple[Client, GuestMemory], asked: str
) -> None:
    client, memory = v2
    device.page = 1
    STILL[asked](client)
    assert bytes(memory.view[PAGE : PAGE + 10]) == b"last words"


class Farewell(Prober):
    """Writes its last words as it is told that memory goes."""

    def on_dma_unmap(self, region: DmaRegion) -> None:
        self.dma.write(region.iova + PAGE, b"last words")


@for_each([CURRENT, REGION_MIGRATION, DRAFT_V6], ids=lambda dialect: dialect.name)
def test_what_is_written_as_memory_goes_is_in_its_bitmap(dialect: Dialect, tmp_path: Path) -> None:
    device = Farewell()
    with (
        Server(device, str(tmp_path / "s"), dialect=dialect) as server,
        Client.connect(str(server.listener.address), dialect=dialect) as client,
        GuestMemory(PAGES * PAGE) as memory,
    ):
        client.dma_map(GUEST, memory)
        if dialect is CURRENT:
            client.start_logging(PAGE)
        else:
            client.start_dirty_pages()
        assert pages(client.dma_unmap(GUEST, PAGES * PAGE, page_size=PAGE)) == [1]
        assert bytes(memory.view[PAGE : PAGE + 10]) == b"last words"


@for_each_row([(0, 1), (2, 3), (3, 4)])
def test_what_is_written_as_a_region_is_cut_is_dirty_in_what_is_left(first: int, end: int) -> None:
    dma = Dma(unmapped=lambda region: dma.write(GUEST + PAGE, b"last words"))
    dma.policy = DRAFT_V6_POLICY
    dma.map(GUEST, PAGES * PAGE, 3, memory_file(PAGES * PAGE))
    dma.start_log(PAGE)
    dma.write(GUEST + 2 * PAGE, b"before")
    gone = dma.dirty_report(GUEST + first * PAGE, (end - first) * PAGE, PAGE)
    dma.unmap(GUEST + first * PAGE, (end - first) * PAGE)
    left = dma.take_dirty(GUEST, PAGES * PAGE, PAGE)
    dma.unmap_all()
    assert {first + page for page in dirty_pages(bytes(gone()))} | {*dirty_pages(bytes(left))} == {1, 2}
