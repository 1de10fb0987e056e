"""Migration as a client sees it: real devices behind real sockets, in every dialect, with DMA while it goes on."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each
from vfio_user.client import Client, GuestMemory, RemoteError
from vfio_user.device import Bar, MsiX, PciDevice, PciIds, memory, register, state
from vfio_user.server import Server
from vfio_user.wire import CURRENT, DRAFT_V6, REGION_MIGRATION, Dialect
from vfio_user.wire.constants import MigrationState
from vfio_user.wire.dialects import CURRENT_DMA_32

GUEST = 0x4000_0000
RAM = 1 << 20
PAGE = 4096
DATA_OFFSET = 16
"""Of the registers of the v1 region."""


class Scribbler(PciDevice):
    """Writes where it is told to, and remembers what it wrote last."""

    ids = PciIds(vendor=0x1AF4, device=0x10F2)
    bars = (Bar(0, size=0x1000), Bar(2, size=0x4000))
    interrupts = MsiX(vectors=2)
    last: int = state(0)
    history: list[int] = state([])
    scratch = memory(0x4000, bar=2, mmap=True)

    @register(bar=0, offset=0x0, width=8)
    def scribble(self, address: int) -> None:
        self.last = address
        self.history.append(address)
        self.dma.write(address, b"scribble")

    @scribble.reader
    def _(self) -> int:
        return self.last


class Sized(Scribbler):
    """The same, configured differently."""

    bars = (Bar(0, size=0x2000), Bar(2, size=0x4000))


@contextmanager
def served(device: PciDevice, directory: Path, dialect: Dialect = CURRENT) -> Iterator[Client]:
    with (
        Server(device, str(directory / f"{id(device)}.sock"), dialect=dialect) as server,
        Client.connect(str(server.listener.address), dialect=dialect) as client,
    ):
        yield client


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[tuple[Client, Client, Scribbler, Scribbler]]:
    with (
        closing(Scribbler()) as source,
        closing(Scribbler()) as target,
        served(source, tmp_path) as one,
        served(target, tmp_path) as other,
    ):
        yield one, other, source, target


def use(client: Client) -> None:
    """Leave traces in registers, state, memory and configuration space."""
    with GuestMemory(RAM) as ram:
        client.dma_map(GUEST, ram)
        client.store(0, 0, 8, GUEST + 0x1230)
        client.region_write(2, 0x100, b"scratched")
        client.config_write(4, b"\x06\x00")
        client.dma_unmap(GUEST, RAM)


def test_a_device_moves_with_all_that_a_guest_can_tell(
    clients: tuple[Client, Client, Scribbler, Scribbler],
) -> None:
    one, other, source, target = clients
    use(one)
    before = source.digest()
    assert before != target.digest()
    saved = one.save()
    other.load_state(saved)
    other.set_migration_state(MigrationState.RUNNING)
    assert target.digest() == before
    assert other.load(0, 0, 8) == GUEST + 0x1230
    assert other.region_read(2, 0x100, 9) == b"scratched"
    assert target.history == [GUEST + 0x1230]


def test_the_source_goes_on_where_it_was_after_a_cancelled_migration(
    clients: tuple[Client, Client, Scribbler, Scribbler],
) -> None:
    one, _, source, _ = clients
    use(one)
    before = source.digest()
    one.save()
    one.set_migration_state(MigrationState.RUNNING)
    assert source.digest() == before
    use(one)
    assert len(source.history) == 2


def test_the_other_device_is_refused_and_stays_usable_after_a_reset(tmp_path: Path) -> None:
    with served(Scribbler(), tmp_path) as one, served(Sized(), tmp_path) as other:
        saved = one.save()
        other.set_migration_state(MigrationState.RESUMING)
        with pytest.raises(RemoteError) as refused:
            other.mig_data_write(saved)
        assert refused.value.errno == errno.EINVAL
        with pytest.raises(RemoteError):
            other.set_migration_state(MigrationState.RUNNING)
        assert other.migration_state() is MigrationState.ERROR
        other.reset()
        assert other.migration_state() is MigrationState.RUNNING
        use(other)


def test_a_stopped_device_answers_only_what_the_state_allows(
    clients: tuple[Client, Client, Scribbler, Scribbler],
) -> None:
    one, _, source, _ = clients
    one.set_migration_state(MigrationState.STOP)
    assert one.load(0, 0, 8) == 0
    one.set_migration_state(MigrationState.STOP_COPY)
    before = source.digest()
    refused: dict[str, Callable[[], object]] = {
        "registers": lambda: one.load(0, 0, 8),
        "a register's write": lambda: one.store(0, 0, 8, GUEST),
        "memory": lambda: one.region_read(2, 0, 4),
        "configuration space": lambda: one.config_read(0, 4),
        "DEVICE_RESET": one.reset,
        "GET_INFO": one.device_info,
        "DMA_UNMAP": one.dma_unmap_all,
    }
    for name, call in refused.items():
        with pytest.raises(RemoteError) as error:
            call()
        assert error.value.errno == errno.EINVAL, name
    assert source.digest() == before
    assert one.migration_state() is MigrationState.STOP_COPY


def test_a_client_that_dies_in_stop_copy_locks_nobody_out(tmp_path: Path) -> None:
    device = Scribbler()
    with Server(device, str(tmp_path / "socket")) as server:
        for state_left in (MigrationState.STOP_COPY, MigrationState.RESUMING, MigrationState.PRE_COPY):
            with Client.connect(str(server.listener.address)) as client:
                use(client)
                client.set_migration_state(state_left)
        with Client.connect(str(server.listener.address)) as client:
            assert client.migration_state() is MigrationState.RUNNING
            use(client)
    assert len(device.history) == 4


@for_each([DRAFT_V6, REGION_MIGRATION], ids=lambda dialect: dialect.name)
def test_a_device_moves_through_the_v1_region(dialect: Dialect, tmp_path: Path) -> None:
    source, target = Scribbler(), Scribbler()
    with served(source, tmp_path, dialect) as one, served(target, tmp_path, dialect) as other:
        use(one)
        before = source.digest()
        region, target_region = one.migration_region(), other.migration_region()
        region.state = 3
        pieces = [region.read_piece()]
        region.state = 2
        while piece := region.read_piece():
            pieces.append(piece)
        target_region.load(pieces)
        assert target.digest() == before
        assert other.load(0, 0, 8) == GUEST + 0x1230
        region.state = 0
        region.state = 1
        use(one)


@for_each([DRAFT_V6, REGION_MIGRATION], ids=lambda dialect: dialect.name)
def test_the_next_client_finds_the_v1_region_unused(dialect: Dialect, tmp_path: Path) -> None:
    device = Scribbler()
    with Server(device, str(tmp_path / "server.sock"), dialect=dialect) as server:
        for _ in range(2):
            with Client.connect(str(server.listener.address), dialect=dialect) as client:
                region = client.migration_region()
                assert region.state == 1
                region.state = 2
                with pytest.raises(RemoteError) as refused:
                    client.region_read(region.index, DATA_OFFSET, 8)  # before pending_bytes
                assert refused.value.errno == errno.EINVAL
                assert region.read_piece()


# The log, against an oracle that knows every write


class Oracle:
    """A client that has the device write here and there, and knows which pages were written since a report."""

    def __init__(self, client: Client, ranges: list[tuple[int, int]], seed: int) -> None:
        self.client = client
        self.ranges = ranges
        self.random = random.Random(seed)
        self.written: set[int] = set()

    def write(self, count: int) -> None:
        for _ in range(count):
            start, size = self.random.choice(self.ranges)
            address = self.random.randrange(start, start + size - 8)
            self.client.store(0, 0, 8, address)
            self.written.update({address // PAGE, (address + 7) // PAGE})
        self.client.load(0, 0, 8)

    def reported(self, start: int, size: int, page_size: int) -> set[int]:
        """What was written in a range, in its pages; it is forgotten."""
        here = {page for page in self.written if start <= page * PAGE < start + size}
        self.written -= here
        return {(page * PAGE - start) // page_size for page in here}


def mapped(client: Client, stack: ExitStack) -> list[tuple[int, int]]:
    """Guest memory in two modes: mapped, and by messages."""
    ranges = [(GUEST, RAM), (GUEST + RAM, 4 * PAGE), (GUEST + 4 * RAM, RAM // 2)]
    for index, (start, size) in enumerate(ranges):
        client.dma_map(start, stack.enter_context(GuestMemory(size, shared=index != 1)))
    return ranges


@for_each([CURRENT, CURRENT_DMA_32, DRAFT_V6, REGION_MIGRATION], range(3))
def test_the_log_is_exact_under_random_dma(dialect: Dialect, seed: int, tmp_path: Path) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(served(Scribbler(), tmp_path, dialect))
        oracle = Oracle(client, mapped(client, stack), seed)
        oracle.write(5)
        oracle.written.clear()
        if dialect.migration_region:
            client.start_dirty_pages()
        else:
            client.start_logging(PAGE)
        for _ in range(20):
            oracle.write(oracle.random.randrange(12))
            start, size = oracle.random.choice([*oracle.ranges, (GUEST, RAM + 4 * PAGE), (GUEST, 8 * RAM)])
            page_size = PAGE << oracle.random.randrange(4) if size % (8 * PAGE) == 0 else PAGE
            if dialect.migration_region:
                found = client.dirty_pages(start, size, page_size)
            else:
                found = client.report_logging(start, size, page_size)
            assert {(iova - start) // page_size for iova in found.pages()} == oracle.reported(start, size, page_size)


@for_each([CURRENT, DRAFT_V6, REGION_MIGRATION], ids=lambda found: found.name)
def test_unmapping_takes_what_was_dirty(dialect: Dialect, tmp_path: Path) -> None:
    with ExitStack() as stack:
        client = stack.enter_context(served(Scribbler(), tmp_path, dialect))
        oracle = Oracle(client, mapped(client, stack), 7)
        if dialect.migration_region:
            client.start_dirty_pages()
        else:
            client.start_logging(PAGE)
        oracle.write(30)
        for start, size in oracle.ranges:
            found = client.dma_unmap(start, size, page_size=PAGE)
            assert found is not None
            assert {(iova - start) // PAGE for iova in found.pages()} == oracle.reported(start, size, PAGE)
