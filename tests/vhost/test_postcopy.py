"""A migration whose memory comes after its start: the back-end waits for pages, and for nobody who is not there."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from tests.cases import for_each
from tests.descriptors import fd_count
from tests.test_vhost_program import serving
from tests.userfaults import needs_userfaultfd
from tests.vhost_frontend import PROTOCOL, Disconnected, FrontEnd, P, Queue, R
from userdev.errors import ProtocolError
from vhost_user.backend.postcopy import Postcopy
from vhost_user.frontend.memory import GuestMemory
from vhost_user.memory import MemoryTable, userfault
from vhost_user.wire import VERSION, Message
from vhost_user.wire.payloads import NUMBER, Region

PAGE = 4096
PAGEFAULT = 0x12
_MESSAGE = struct.Struct("=B7xQQ8x")
_RANGE = struct.Struct("=QQ")
_IOC_WAKE = 0x8010AA02


@dataclass
class Destination:
    """The front-end of a destination, which has the pages and gives them when they are missed."""

    front_end: FrontEnd
    fd: int
    regions: tuple[Region, ...] = ()
    program: subprocess.Popen[bytes] | None = None

    @property
    def memory(self) -> GuestMemory:
        return self.front_end.memory

    def take_out(self, address: int) -> bytes:
        """A page's content, which is not there any more."""
        content = self.memory[address : address + PAGE]
        self.memory._map.madvise(mmap.MADV_REMOVE, address, PAGE)
        return content

    def missed(self) -> int:
        """The guest's address of the next page that the back-end waits for."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        assert poll.poll(4_000)
        event, _, address = _MESSAGE.unpack(os.read(self.fd, _MESSAGE.size))
        assert event == PAGEFAULT
        for region in self.regions:
            if region.user_address <= address < region.user_address + region.size:
                place: int = region.guest_address + (address - region.user_address) // PAGE * PAGE
                return place
        raise AssertionError(f"{address:#x} is in no region")

    def give_until_done(self, queue: Queue, contents: dict[int, bytes]) -> list[int]:
        """Give what is missed, zeros where nothing else is told, until a request comes back; what that was."""
        missed = []
        while not (done := queue.take_used()):
            ready, _, _ = select.select([self.fd, queue.call_fd], [], [], 10)
            assert ready
            if self.fd in ready:
                missed.append(self.missed())
                self.give(missed[-1], contents.get(missed[-1], bytes(PAGE)))
            else:
                os.eventfd_read(queue.call_fd)
        assert done[0].data == b"xx"
        return missed

    def give(self, address: int, content: bytes) -> None:
        """Have a page be there, and whoever waits for it go on."""
        os.pwrite(self.memory.fd, content, address)
        region = next(each for each in self.regions if each.guest_address <= address < each.guest_address + each.size)
        at = region.user_address + address - region.guest_address
        fcntl.ioctl(self.fd, _IOC_WAKE, _RANGE.pack(at, PAGE))


@contextmanager
def migrating_to(tmp_path: Path, *, as_table: bool = True) -> Iterator[Destination]:
    """A destination whose back-end is a program of its own: who waits for a page keeps Python's lock."""
    served = f"{Path(__file__).parent / 'reverse.py'}:Reverse"
    memory = GuestMemory(regions=2)
    with (
        serving(tmp_path, served) as (program, address),
        FrontEnd(address, memory=memory) as front_end,
    ):
        front_end.negotiate(protocol=PROTOCOL | P.PAGEFAULT)
        said, fds = front_end.ask_for_fds(R.POSTCOPY_ADVISE)
        assert said is None
        front_end.do(R.POSTCOPY_LISTEN)
        front_end.negotiated = replace(front_end.negotiated, postcopy=True)
        if as_table:
            request, regions = R.SET_MEM_TABLE, front_end.ask(R.SET_MEM_TABLE, memory.regions, [memory.fd] * 2)
        else:
            request = R.ADD_MEM_REG
            regions = tuple(front_end.ask(request, region, [memory.fd]) for region in memory.regions)
        assert [region._replace(user_address=0) for region in regions] == [
            region._replace(user_address=0) for region in memory.regions
        ]
        front_end.send_message(Message(request, VERSION, NUMBER.encode(0)))
        destination = Destination(front_end, fds[0], regions, program)
        yield destination
        if destination.fd >= 0:
            os.close(destination.fd)


def request(destination: Destination) -> tuple[Queue, int]:
    """A queue that runs, and a page with what is to be read next, which is not there."""
    queue = destination.front_end.queue()
    queue.start()
    destination.front_end.settle()
    destination.memory.allocate(1, at=1 << 20)
    at = queue.put(b"x" * PAGE * 2, 2).places[0]
    return queue, -(-at // PAGE) * PAGE


@needs_userfaultfd
@pytest.mark.parametrize("as_table", [True, False], ids=["SET_MEM_TABLE", "ADD_MEM_REG"])
def test_a_page_that_has_not_come_is_waited_for(tmp_path: Path, as_table: bool) -> None:
    with migrating_to(tmp_path, as_table=as_table) as destination:
        queue, page = request(destination)
        destination.memory[page : page + 2] = b"yz"
        content = destination.take_out(page)
        queue.kick()
        assert page in destination.give_until_done(queue, {page: content})
        queue.stop()
        assert destination.front_end.ask(R.POSTCOPY_END) == 0
        destination.front_end.negotiated = replace(destination.front_end.negotiated, postcopy=False)
        os.close(destination.fd)
        destination.fd = -1
        destination.front_end.share_memory(as_table=True)  # an ordinary one again
        queue.start()
        destination.take_out(page)
        assert queue.exchange(b"ab", 2).data == b"ba"


def test_memory_of_a_second_migration_is_told_to_the_kernel_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    class Fault:
        def __init__(self) -> None:
            self.fd = os.eventfd(0)

        def register(self, _: mmap.mmap, start: int, size: int) -> None:
            told.append((start, size))

        def close(self) -> None:
            os.close(self.fd)

    monkeypatch.setattr("vhost_user.backend.postcopy.UserFault", Fault)
    table, postcopy, memory = MemoryTable(), Postcopy(), GuestMemory(regions=2)
    table.set(memory.regions, [memory.fd] * 2)
    before = fd_count()
    for _ in range(2):
        os.close(postcopy.advise())
        postcopy.listen()
        for region in (*table.regions, *table.regions):
            postcopy.register(region)
        postcopy.agree()
        postcopy.end()
    half = memory.size // 2
    assert told == [(0, half), (half, half)] * 2
    assert fd_count() == before
    table.clear()
    memory.close()


@needs_userfaultfd
def test_a_front_end_that_dies_with_a_page_missing_is_survived(tmp_path: Path) -> None:
    with migrating_to(tmp_path) as destination:
        queue, page = request(destination)
        destination.take_out(page)
        queue.kick()
        destination.missed()
        os.close(destination.fd)  # all that a dead front-end had
        destination.fd = -1
        address = destination.front_end.stream.socket.getpeername()
        destination.front_end.stream.close()
        with FrontEnd(str(address), timeout=4) as other:
            other.negotiate()
            other.share_memory()
            ring = other.queue()
            ring.start()
            assert ring.exchange(b"ab", 2).data == b"ba"


@needs_userfaultfd
def test_postcopy_in_another_order_is_refused(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.PAGEFAULT)
    assert stranger.tell(R.POSTCOPY_LISTEN) == errno.EINVAL
    stranger.share_memory()
    ring = stranger.queue()
    ring.start()
    _, (fd,) = stranger.ask_for_fds(R.POSTCOPY_ADVISE)
    assert stranger.tell(R.POSTCOPY_LISTEN) == errno.EBUSY
    os.close(fd)
    assert stranger.ask(R.POSTCOPY_END) == 0
    assert ring.exchange(b"ab", 2).data == b"ba"


@needs_userfaultfd
def test_memory_that_is_no_whole_pages_cannot_come_later(stranger: FrontEnd) -> None:
    stranger.negotiate(protocol=PROTOCOL | P.PAGEFAULT)
    _, (fd,) = stranger.ask_for_fds(R.POSTCOPY_ADVISE)
    os.close(fd)
    stranger.do(R.POSTCOPY_LISTEN)
    stranger.send(R.ADD_MEM_REG, stranger.memory.regions[0]._replace(size=0x1800), [stranger.memory.fd])
    with pytest.raises(Disconnected):
        stranger.receive()


def test_postcopy_is_not_offered_where_the_kernel_does_not_allow_it(
    stranger: FrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(userfault, "is_allowed", lambda: False)
    stranger.negotiate(protocol=PROTOCOL | P.PAGEFAULT)
    assert not stranger.has(P.PAGEFAULT)
    stranger.send(R.POSTCOPY_ADVISE)
    with pytest.raises(Disconnected):
        stranger.receive()


def test_a_kernel_that_refuses_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(userfault, "_open", refused)
    userfault.is_allowed.cache_clear()
    try:
        assert not userfault.is_allowed()
    finally:
        userfault.is_allowed.cache_clear()


class System:
    """In place of the C library: a system call that comes to this."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int]] = []

    def syscall(self, number: int, flags: int) -> int:
        self.asked.append((number, flags))
        ctypes.set_errno(errno.EPERM)
        return self.answer


@for_each([-1, 0, 7])
def test_who_may_not_open_the_device_asks_by_the_system_call(answer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(answer)
    with monkeypatch.context() as patch:
        refused = Mock(side_effect=PermissionError(errno.EACCES, "not yours"))
        patch.setattr(userfault, "os", SimpleNamespace(**{**vars(os), "open": refused}))  # other threads open theirs
        patch.setattr(ctypes, "CDLL", lambda *_, **__: system)
        with pytest.raises(PermissionError, match=os.strerror(errno.EPERM)) if answer < 0 else nullcontext():
            assert userfault._open() == answer
    assert system.asked == [(323, os.O_CLOEXEC | os.O_NONBLOCK)]


def knows_no_such_request(_fd: int, _request: int, _api: bytearray) -> int:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def has_it_for_anonymous_memory_alone(_fd: int, _request: int, api: bytearray) -> int:
    api[8:16] = struct.pack("=Q", (1 << 64) - 1 & ~userfault._MISSING_SHMEM)
    return 0


@for_each([knows_no_such_request, has_it_for_anonymous_memory_alone])
def test_a_kernel_that_cannot_do_it_for_files_is_found_out_and_its_descriptor_closed(
    kernel: Callable[[int, int, bytearray], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.memfd_create("userfaultfd")
    monkeypatch.setattr(userfault, "_open", lambda: opened)
    monkeypatch.setattr("vhost_user.memory.userfault.fcntl.ioctl", kernel)
    with pytest.raises(OSError, match="userfaultfd"):
        userfault.UserFault()
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(opened)


class Kernel:
    """One that can do it for files in memory, and keeps what it is asked to have wait."""

    def __init__(self, refuses: int = 0) -> None:
        self._refuses = refuses
        self.asked: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, _fd: int, request: int, argument: bytearray) -> int:
        if request == userfault._IOC_API:
            argument[8:16] = struct.pack("=Q", userfault._MISSING_SHMEM)
            return 0
        self.asked.append((request, struct.unpack("=QQQQ", argument)))
        if self._refuses:
            raise OSError(self._refuses, os.strerror(self._refuses))
        return 0


@for_each([0, errno.ENOMEM, errno.EBUSY])
def test_a_piece_of_memory_is_told_to_the_kernel_as_it_is_and_its_refusal_is_the_answer(
    refuses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(refuses)
    monkeypatch.setattr(userfault, "_open", lambda: os.memfd_create("userfaultfd"))
    monkeypatch.setattr("vhost_user.memory.userfault.fcntl.ioctl", kernel)
    waiting = userfault.UserFault()
    mapped = mmap.mmap(-1, 4 * PAGE)
    try:
        with pytest.raises(ProtocolError) if refuses else nullcontext() as refused:
            waiting.register(mapped, PAGE, 2 * PAGE)
        assert refused is None or refused.value.errno == refuses
        # UFFDIO_REGISTER of linux/userfaultfd.h: start, length, UFFDIO_REGISTER_MODE_MISSING, what it answers
        assert kernel.asked == [(0xC020AA00, (userfault.address_of(mapped) + PAGE, 2 * PAGE, 1, 0))]
    finally:
        waiting.close()
        mapped.close()
