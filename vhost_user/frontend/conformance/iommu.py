"""A device behind an IOMMU: translations that are told, asked for on the back-end's channel, and taken back.

Of rings the I/O addresses are the front-end's own ones. A request lies at I/O addresses that are none of the places
where it is, so that a back-end that takes them for the guest's reads and writes something else.
"""

from __future__ import annotations

import select

from userdev.conformance import CheckFailed, Group, Level, Skip, require
from userdev.eventfd import drain
from userdev.process import Deadline
from vhost_user.frontend.channel import Channel, Said
from vhost_user.frontend.conformance.bench import AGREED, SERVED, Bench, is_news
from vhost_user.frontend.errors import Refused
from vhost_user.frontend.front_end import FEATURES, FrontEnd
from vhost_user.frontend.memory import PAGE, USER_ADDRESS
from vhost_user.frontend.queue import Buffer, Queue, Request
from vhost_user.frontend.split import SplitDriver
from vhost_user.wire import BackEndRequest, FrontEndRequest, ProtocolFeature, VirtioFeature
from vhost_user.wire.payloads import IotlbMessage, IotlbType, Permission

iommu = Group[Bench]("iommu", "spec: IOMMU support", needs=(*SERVED, *AGREED))

R = FrontEndRequest

_MOVED = 2 << 20
"""Between the I/O address of a request's byte and the guest's: the second half of the memory has no more in it."""

_UNTOUCHED = b"\x5a"
_MOST_QUESTIONS = 64
"""Of one request: a back-end that asks for ever is found out."""


def _behind(bench: Bench) -> FrontEnd:
    """A front-end with an IOMMU, which has given a channel, and told of the rings' memory."""
    front_end = bench.agreed(FEATURES | VirtioFeature.ACCESS_PLATFORM)
    front_end.need(VirtioFeature.ACCESS_PLATFORM)
    front_end.need(ProtocolFeature.BACKEND_REQ)
    front_end.open_channel()
    front_end.share_memory()
    front_end.translate(USER_ADDRESS, USER_ADDRESS, front_end.memory.size)
    return front_end


def _tell_of_all(front_end: FrontEnd) -> None:
    front_end.translate(0, USER_ADDRESS + _MOVED, _MOVED)


def _put(bench: Bench, queue: Queue) -> Request:
    """Make the device's request available, with its bytes where the translation says, and others at its address."""
    request, memory = bench.put(queue), queue.memory
    for place, buffer in zip(request.places, bench.device.request, strict=True):
        size = _length(buffer)
        memory[place + _MOVED : place + _MOVED + size] = buffer if isinstance(buffer, bytes) else bytes(size)
        memory[place : place + size] = _UNTOUCHED * size
    return request


def _served(bench: Bench, queue: Queue, request: Request) -> None:
    """What has come back is right, and nothing was written where the translation does not lead."""
    memory = queue.memory
    for place, buffer in zip(request.places, bench.device.request, strict=True):
        size = _length(buffer)
        touched = memory[place : place + size] != _UNTOUCHED * size
        require(not touched, "a request is served at the guest's address that is its I/O address")
        memory[place : place + size] = memory[place + _MOVED : place + _MOVED + size]
    bench.served(queue)


def _length(buffer: Buffer) -> int:
    return buffer if isinstance(buffer, int) else len(buffer)


def _answer_until_done(front_end: FrontEnd, queue: Queue) -> set[int]:
    """Kick, and tell every translation that is asked for until the request comes back; the pages that it were."""
    asked: set[int] = set()
    channel, driver = front_end.channel, queue.driver
    assert channel is not None
    assert isinstance(driver, SplitDriver)
    questions, before = channel.stream.fileno(), driver.seen
    poll = select.poll()
    poll.register(questions, select.POLLIN)
    poll.register(queue.call_fd, select.POLLIN)
    driver.ask_for_call()
    queue.kick()
    deadline = Deadline(front_end.timeout)
    left = _MOST_QUESTIONS
    while driver.used_index == before:
        ready = {questions} if channel.has_more else {fd for fd, _ in poll.poll(deadline.remaining * 1000)}
        if not ready:
            raise CheckFailed(
                f"a request does not come back within {deadline.seconds:g} s; {len(asked)} pages were asked for"
            )
        if questions in ready:
            said = channel.take()
            if not is_news(channel, said):
                asked.add(_answer(front_end, channel, said))
            left -= 1
            require(left, f"{_MOST_QUESTIONS} translations are asked for, and the request does not come back")
        drain(queue.call_fd)
    return asked


def _answer(front_end: FrontEnd, channel: Channel, said: Said) -> int:
    """As QEMU does: the translation on the connection, then the acknowledgement; the page that was asked for."""
    require(
        said.request is BackEndRequest.IOTLB_MSG and said.value.type == IotlbType.MISS,
        f"the back-end asks for {said}, not for a translation",
    )
    require(said.value.permissions, f"a translation of {said.value.iova:#x} is asked for to do nothing with it")
    page: int = said.value.iova & -PAGE
    front_end.translate(page, page if page >= USER_ADDRESS else USER_ADDRESS + page + _MOVED)
    if said.needs_reply:
        channel.acknowledge(said)
    return page


@iommu.check("told", rule="spec: Front-end message types, IOTLB_MSG")
def told(bench: Bench) -> None:
    """A translation that is told, and one that is taken back, is acknowledged with 0."""
    front_end = _behind(bench)
    try:
        _tell_of_all(front_end)
        front_end.invalidate(0, _MOVED)
    except Refused as error:
        raise CheckFailed(str(error)) from None
    front_end.settle()


@iommu.check("told-unasked", level=Level.OPEN, rule="spec: Front-end message types, IOTLB_MSG", needs=("iommu/told",))
def told_unasked(bench: Bench) -> None:
    """It is acknowledged as well where that was not asked for."""
    front_end = _behind(bench)
    front_end.send(R.IOTLB_MSG, IotlbMessage(0, PAGE, USER_ADDRESS, 3, IotlbType.UPDATE))
    front_end.send(R.GET_FEATURES)
    require(front_end.receive("IOTLB_MSG").request == R.IOTLB_MSG, "IOTLB_MSG that asks for no reply has none")


@iommu.check("nowhere", level=Level.OPEN, rule="spec: Front-end message types, IOTLB_MSG")
def nowhere(bench: Bench) -> None:
    """A translation to memory that is in no region is refused."""
    front_end = _behind(bench)
    try:
        front_end.translate(0, USER_ADDRESS + front_end.memory.size)
    except Refused:
        return
    raise CheckFailed("a translation to memory that is in no region is acknowledged as done")


@iommu.check("served", needs=("iommu/told",))
def served(bench: Bench) -> None:
    """A request is served where the translation says that it is."""
    front_end = _behind(bench)
    _tell_of_all(front_end)
    queue = bench.running(front_end)
    for _ in range(2):
        request = _put(bench, queue)
        asked = _answer_until_done(front_end, queue)
        require(not asked, f"{len(asked)} translations are asked for that were told")
        _served(bench, queue, request)


@iommu.check("asked", needs=("iommu/told", "iommu/served"))
def asked(bench: Bench) -> None:
    """A translation that is not known is asked for, and the request is served once it is told."""
    front_end = _behind(bench)
    queue = bench.running(front_end)
    request = _put(bench, queue)
    require(_answer_until_done(front_end, queue), "nothing is asked for, and no translation was told")
    _served(bench, queue, request)


@iommu.check("taken-back", needs=("iommu/told", "iommu/served", "iommu/asked"))
def taken_back(bench: Bench) -> None:
    """A translation that was taken back is used no more: it is asked for again."""
    front_end = _behind(bench)
    _tell_of_all(front_end)
    queue = bench.running(front_end)
    request = _put(bench, queue)
    _answer_until_done(front_end, queue)
    _served(bench, queue, request)
    front_end.invalidate(0, _MOVED)
    request = _put(bench, queue)
    require(_answer_until_done(front_end, queue), "a translation that was taken back is used")
    _served(bench, queue, request)


@iommu.check("read-only", level=Level.OPEN, needs=("iommu/told", "iommu/served", "iommu/asked"))
def read_only(bench: Bench) -> None:
    """Memory that may only be read is not written: what may be is asked for."""
    if not bench.device.writable:
        raise Skip(f"the request of {bench.device.name} has nothing written")
    front_end = _behind(bench)
    front_end.translate(0, USER_ADDRESS + _MOVED, _MOVED, allowed=Permission.READ)
    queue = bench.running(front_end)
    request = _put(bench, queue)
    require(_answer_until_done(front_end, queue), "what may only be read is written, and nothing is asked for")
    _served(bench, queue, request)
