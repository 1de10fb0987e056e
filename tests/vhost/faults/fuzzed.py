"""Back-ends of ours with one fault each: by the rule of the fuzzer's that it breaks, and the steps that show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.vhost.faults.faulty import FAULTS, Fault, Faulty
from tests.vhost.faults.messages import say
from tests.vhost.reverse import REVERSE, Reverse
from userdev.fuzz import Step
from vhost_user.backend.session import Session
from vhost_user.backend.vring import Vring
from vhost_user.device import Chain, VhostDevice, queue
from vhost_user.frontend.conformance import DeviceKind
from vhost_user.rings.split import SplitRing
from vhost_user.wire import FrontEndRequest, Message

R = FrontEndRequest
SECTOR = 512
BLK = DeviceKind("blk", 2, 0, (bytes(16), SECTOR, 1), lambda done: done.writable[-1] == 0, 0)

START, STOP, STATE, TOO_MANY = map(Step.of, ("start", "stop", "state", "too_many_regions"))
SERVE = Step.of("serve", count=3, indirect=0, one_by_one=1, border=0)
JOIN = Step.of("join", kind=0, regions=1, as_table=0)
WRITE = Step.of("write_blocks", sector=1, data="", cut=16, merged=0)
SHORT = Step.of("wrong", request=int(R.SET_VRING_NUM), payload="", fds=0)
READ = Step.of("read_blocks", sector=1, cut=0)


class Wrong(Reverse):
    """Its third answer is another one."""

    @queue()
    def reverse(self, chain: Chain) -> int:
        data = chain.read()
        self.done += 1
        return chain.write(data if self.done == 3 else data[::-1])


class Disk(Reverse):
    """Keeps sectors, and loses the last byte of what comes in more than one piece."""

    features = 1 << 50
    of_writes = of_reads = b"\0"
    """The status that it answers with."""

    def __init__(self) -> None:
        super().__init__()
        self.sectors: dict[bytes, bytes] = {}

    @queue()
    def reverse(self, chain: Chain) -> int:
        pieces = len(chain.readable_views)
        whole = chain.read()
        if whole[:1] == b"\1":
            data = whole[16:]
            self.sectors[whole[8:16]] = data[:-1] + b"\0" if pieces > 2 else data
            return chain.write(self.of_writes)
        return chain.write(self.sectors.get(whole[8:16], bytes(SECTOR)) + self.of_reads)


class Restless(Reverse):
    """Has another state each time that it is saved."""

    def on_save(self) -> None:
        self.done += 1


class ReadOnlyDisk(Disk):
    """Takes no write, and does not say so."""

    of_writes = b"\1"


class WriteOnlyDisk(Disk):
    """Gives nothing to read."""

    of_reads = b"\1"


def never(faulty: Faulty) -> None:
    """No fault."""


def changes(request: FrontEndRequest, after: int, then: FrontEndRequest) -> Fault:
    """Another answer to `request` once `then` has come so many times."""

    def fault(faulty: Faulty) -> None:
        came: list[None] = []

        def count(back_end: Any, value: Any, fds: Any, usual: Any) -> Any:
            came.append(None)
            return usual(back_end, value, fds)

        def answer(back_end: Any, value: Any, fds: Any, usual: Any) -> Any:
            return usual(back_end, value, fds) ^ (len(came) > after) << 5

        faulty.at(then, count)
        faulty.at(request, answer)

    return fault


def before_it_serves(does: Callable[[memoryview, int], None]) -> Fault:
    """Does something with the last region, and the number of times, before a ring is served."""

    def fault(faulty: Faulty) -> None:
        served: list[None] = []

        def serve(usual: Any, vring: Vring) -> None:
            if vring.ring is not None:
                served.append(None)
                does(vring.ring.table._regions[-1].view, len(served))
            usual(vring)

        faulty.instead(Vring, "serve", serve)

    return fault


def count_at_the_end(memory: memoryview, times: int) -> None:
    """Write into the last byte of memory."""
    memory[-1:] = bytes([times % 256])


def write_what_is_to_be_read(memory: memoryview, times: int) -> None:
    """Write to a request's readable buffer."""
    if (at := bytes(memory).find(b"abc")) >= 0:
        memory[at + 2] = ord("d")


def gives_back_another(faulty: Faulty) -> None:
    """A request comes back as one that was not made."""

    def publish(usual: Any, ring: SplitRing) -> Any:
        for chain in ring._finished:
            chain.head = ring.size - 1
        return usual(ring)

    faulty.instead(SplitRing, "publish", publish)


def takes_anything(faulty: Faulty) -> None:
    """What cannot be read is acknowledged as done."""

    def refuse(usual: Any, session: Session, message: Message, *_: Any, **__: Any) -> None:
        say(session, message.request)

    faulty.instead(Session, "_refuse", refuse)


class Case(NamedTuple):
    """What is found of a back-end, and when."""

    oracle: str
    said: str
    steps: list[Step]
    fault: Fault = never
    make: Callable[[], VhostDevice] = Reverse
    device: DeviceKind = REVERSE


FOUND = (
    Case("rings", "a request is answered with", [SERVE], make=Wrong),
    Case("rings", "the driver is not called", [SERVE], FAULTS["rings/served"]),
    Case("rings", "which it does not have", [SERVE], gives_back_another),
    Case("rings", "a ring is stopped at 0x4", [SERVE, STOP], FAULTS["rings/base-at-stop"]),
    Case("memory", "which no request gave", [SERVE], before_it_serves(count_at_the_end)),
    Case("memory", "given for reading was written", [SERVE], before_it_serves(write_what_is_to_be_read)),
    Case("blocks", "was written", [WRITE, READ], make=Disk, device=BLK),
    Case("blocks", "a write of sector 1 ends with status 1", [WRITE], make=ReadOnlyDisk, device=BLK),
    Case("blocks", "a read of sector 1 ends with status 1", [READ], make=WriteOnlyDisk, device=BLK),
    Case("log", "is not marked", [START, Step.of("log", on=1), SERVE], FAULTS["log/data"]),
    Case("offer", "the next front-end", [JOIN], changes(R.GET_FEATURES, 1, R.ADD_MEM_REG)),
    Case("offer", "the next front-end", [JOIN], changes(R.GET_PROTOCOL_FEATURES, 1, R.ADD_MEM_REG)),
    Case("offer", "GET_FEATURES is", [Step.of("ask", what=0)], changes(R.GET_FEATURES, 0, R.ADD_MEM_REG)),
    Case("offer", "GET_PROTOCOL", [Step.of("ask", what=1)], changes(R.GET_PROTOCOL_FEATURES, 0, R.ADD_MEM_REG)),
    Case("offer", "GET_QUEUE_NUM is", [Step.of("ask", what=2)], changes(R.GET_QUEUE_NUM, 0, R.ADD_MEM_REG)),
    Case("state", "is another one", [STATE], make=Restless),
    Case("replies", "of ring 250 is acknowledged", [Step.of("ring_number", request=0)], FAULTS["messages/refused"]),
    Case("replies", "SET_VRING_NUM with 0 bytes", [SHORT], takes_anything),
    Case("replies", "9 regions is", [TOO_MANY], takes_anything),
    Case("replies", "(overlap) is", [Step.of("wrong_memory", how="overlap")], takes_anything),
    Case("alive", "", [JOIN], FAULTS["session/next"]),
    Case("descriptors", "", [SERVE, JOIN], FAULTS["session/nothing-left"]),
)
"""One for each rule, and a second where there are two ways to break it."""
