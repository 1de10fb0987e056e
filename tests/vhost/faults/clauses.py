"""Faults for what a check requires beside the fault of `FAULTS`: each is found by the words of that requirement."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import Any

from tests.vhost.faults.channel import answers_regions
from tests.vhost.faults.faulty import FAULTS, Fault, Faulty, Usual
from userdev.errors import ProtocolError
from vhost_user.backend import session as sessions
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.commands import Answer
from vhost_user.backend.in_band import InBand
from vhost_user.backend.session import Session
from vhost_user.frontend.conformance.bench import MOST_NEWS, RING
from vhost_user.frontend.device_state import LOAD
from vhost_user.memory import Iotlb, IotlbMiss
from vhost_user.rings import Chain, PackedInflight, Ring, SplitInflight, SplitRing
from vhost_user.wire import NO_FD, BackEndRequest, FrontEndRequest, VirtioFeature
from vhost_user.wire.payloads import VringState

R = FrontEndRequest
LOWER = 2 << 20
"""I/O addresses of requests are below it."""

CLAUSES: list[tuple[str, str, Fault]] = [("rings/drained", "requests have come back", FAULTS["rings/drained"])]
"""Check, words of what it requires, and the fault."""


def clause(id: str, words: str) -> Callable[[Fault], Fault]:
    """Enter a fault for a requirement of this check."""

    def enter(fault: Fault) -> Fault:
        CLAUSES.append((id, words, fault))
        return fault

    return enter


# Rings that are served on, and nobody is called


def quietly(request: R, does: Callable[[BackEnd, Any], Any], at: int | None = None) -> Fault:
    """Do something else at a request, or at that with this number, and call nobody from then on."""

    def fault(back_end: Faulty) -> None:
        def quiet(b: BackEnd, value: Any, fds: list[int], usual: Usual) -> Any:
            if at is not None and value != at:
                return usual(b, value, fds)
            for vring in b.vrings.started:
                vring.call.signal = lambda: None
            return does(b, value)

        back_end.at(request, quiet)

    return fault


@clause("rings/disabled", "a ring that was disabled is served")
def never_disables_and_says_nothing(back_end: Faulty) -> None:
    def enable(b: BackEnd, said: VringState, fds: list[int], usual: Usual) -> None:
        if said.num:
            usual(b, said, fds)
        else:
            b.vrings[said.vring].call.signal = lambda: None

    back_end.at(R.SET_VRING_ENABLE, enable)


def its_base(b: BackEnd, said: VringState) -> VringState:
    """What a ring that is not stopped would say."""
    ring = b.vrings[said.vring].ring
    assert ring is not None
    return said._replace(num=ring.base)


CLAUSES += [
    ("rings/stopped", "a ring that was stopped is served", quietly(R.GET_VRING_BASE, its_base)),
    ("reset/stops", "a ring of a device that was reset is served", quietly(R.RESET_DEVICE, lambda *_: None)),
    ("status/zero-stops", "a ring of a device whose status is 0 is served", quietly(R.SET_STATUS, lambda *_: None, 0)),
]


# Messages


@clause("config/same", "another for the next front-end")
def has_a_configuration_for_each(back_end: Faulty) -> None:
    seen: list[BackEnd] = []

    def get(b: BackEnd, wanted: Any, fds: list[int], usual: Usual) -> Any:
        if b not in seen:
            seen.append(b)
        said = usual(b, wanted, fds)
        return said._replace(data=bytes((len(seen),)) + said.data[1:])

    back_end.at(R.GET_CONFIG, get)


def answers_as(which: Callable[[int, int], int]) -> Fault:
    """Have answers be of another request: of the number of the answer, and the request."""

    def fault(back_end: Faulty) -> None:
        count = 0

        def encode(usual: Usual, request: R, *rest: Any) -> Any:
            nonlocal count
            count += 1
            message = usual(request, *rest)
            message.request = which(count, message.request)
            return message

        back_end.instead(sessions, "encode_reply", encode)
        back_end.instead(sessions, "acknowledge", encode)

    return fault


CLAUSES += [
    ("messages/reply", "is answered with request", answers_as(lambda _, request: 12 if request == 11 else request)),
    ("messages/unknown", "is answered with request", answers_as(lambda _, request: min(request, 100))),
    ("messages/in-pieces", "in pieces is not answered", answers_as(lambda _, request: 1 if request == 11 else request)),
    ("messages/pipelined", "are answered", answers_as(lambda _, request: 1 if request == 11 else request)),
]


# The channel


def refuse(*_: Any) -> None:
    raise ProtocolError("on purpose")


CLAUSES.append(("in-band/kick", "VRING_KICK is answered with", lambda back_end: back_end.at(R.VRING_KICK, refuse)))


@clause("in-band/kick", "a request is answered with")
def writes_it_the_other_way(back_end: Faulty) -> None:
    back_end.instead(Chain, "write", lambda usual, chain, data: usual(chain, data[::-1]))


@clause("in-band/call", "no VRING_CALL does")
def calls_nobody_in_band(back_end: Faulty) -> None:
    back_end.instead(InBand, "signal", lambda *_: None)


@clause("in-band/call", "is due, and")
def takes_a_call_for_an_error(back_end: Faulty) -> None:
    back_end.instead(InBand, "signal", lambda usual, in_band, _, ring: usual(in_band, BackEndRequest.VRING_ERR, ring))


@clause("in-band/call", "which is reserved")
def says_more_than_whom_it_calls(back_end: Faulty) -> None:
    def ask(usual: Usual, b: BackEnd, request: BackEndRequest, said: VringState, answered: Any) -> Any:
        return usual(b, request, said._replace(num=1), answered)

    back_end.instead(BackEnd, "_ask_in_band", ask)


@clause("in-band/call", "and nothing else")
def tells_of_nothing_but_its_configuration(back_end: Faulty) -> None:
    def tell(usual: Usual, b: BackEnd, *_: Any) -> Any:
        assert b._channel is not None
        return all(b._channel.tell(BackEndRequest.CONFIG_CHANGE_MSG) for _ in range(MOST_NEWS))

    back_end.instead(BackEnd, "_ask_in_band", tell)


# An IOMMU


@clause("iommu/asked", "to do nothing with it")
def asks_for_no_permission(back_end: Faulty) -> None:
    back_end.instead(
        BackEnd,
        "_ask_translation",
        lambda usual, b, wanted, answered: usual(b, wanted._replace(permissions=0), answered),
    )


@clause("iommu/served", "translations are asked for that were told")
def asks_once_more(back_end: Faulty) -> None:
    asked: set[int] = set()

    def translate(usual: Usual, iotlb: Iotlb, iova: int, size: int, permission: Any) -> Any:
        if iova < LOWER and iova not in asked:
            asked.add(iova)
            raise IotlbMiss(iova, permission)
        return usual(iotlb, iova, size, permission)

    back_end.instead(Iotlb, "translate", translate)


@clause("iommu/served", "at the guest's address that is its I/O address")
def touches_what_is_there_too(back_end: Faulty) -> None:
    def translate(usual: Usual, iotlb: Iotlb, iova: int, size: int, permission: Any) -> Any:
        if iova < LOWER:
            iotlb._table.view(iova, size)[:1] = b"!"
        return usual(iotlb, iova, size, permission)

    back_end.instead(Iotlb, "translate", translate)


@clause("iommu/asked", "nothing is asked for")
def guesses(back_end: Faulty) -> None:
    def translate(usual: Usual, iotlb: Iotlb, iova: int, size: int, permission: Any) -> Any:
        return [(iova + LOWER, size)] if iova < LOWER else usual(iotlb, iova, size, permission)

    back_end.instead(Iotlb, "translate", translate)


@clause("iommu/asked", "not for a translation")
def asks_for_something_else(back_end: Faulty) -> None:
    def ask(_: Usual, b: BackEnd, *__: Any) -> None:
        assert b._channel is not None
        b._channel.tell(BackEndRequest.VRING_ERR, VringState(0, 0))

    back_end.instead(BackEnd, "_ask_translation", ask)


# What a migration and a death ask


@clause("log/off", "after LOG_ALL was taken back")
def goes_on_marking(back_end: Faulty) -> None:
    marks: list[bool] = []

    def log_now(vrings: Any) -> Any:
        marks.extend([True] if VirtioFeature.LOG_ALL in vrings.features else [])
        return vrings._log if marks else None

    back_end.put("vhost_user.backend.vrings.Vrings._log_now", property(log_now))


def gives(change: Callable[[Any, int], Any]) -> Fault:
    """Give another description of an in-flight region, or do something to its descriptor."""

    def fault(back_end: Faulty) -> None:
        def get(b: BackEnd, wanted: Any, fds: list[int], usual: Usual) -> Answer:
            described, given = usual(b, wanted, fds)
            return Answer(change(described, given[0]), given)

        back_end.at(R.GET_INFLIGHT_FD, get)

    return fault


CLAUSES += [
    ("inflight/given", "the region's file has", gives(lambda it, fd: it._replace(mmap_size=os.fstat(fd).st_size + 1))),
    ("inflight/given", "a region for 1 ring of", gives(lambda it, _: it._replace(queue_size=it.queue_size // 2))),
]


def keeps(does: Callable[[SplitInflight, Any], Any]) -> Fault:
    """Have something else be in an in-flight region once requests have come back."""

    def fault(back_end: Faulty) -> None:
        def finish(usual: Usual, region: SplitInflight, heads: Any, used: int) -> None:
            usual(region, heads, used)
            does(region, heads)

        back_end.instead(SplitInflight, "finish", finish)

    return fault


def _says_version_2(region: SplitInflight, _: Any) -> None:
    region._shorts[4] = 2


def _says_less(region: SplitInflight, _: Any) -> None:
    region._shorts[7] -= 1


def _takes_a_free_one(region: SplitInflight, _: Any) -> None:
    region._bytes[16 + 16 * 9] = 1


CLAUSES += [
    ("inflight/kept", "the region is of version", keeps(_says_version_2)),
    ("inflight/kept", "says that 2 requests have come back", keeps(_says_less)),
    ("inflight/kept", "are under way, and all requests", keeps(_takes_a_free_one)),
]


@clause("rings/restarted-elsewhere", "served twice, or left out")
def counts_one_more_at_the_second_stop(back_end: Faulty) -> None:
    stops: list[int] = []

    def get(b: BackEnd, said: VringState, fds: list[int], usual: Usual) -> VringState:
        answer: VringState = usual(b, said, fds)
        stops.append(answer.num)
        return answer._replace(num=answer.num + (len(stops) > 1))

    back_end.at(R.GET_VRING_BASE, get)


@clause("session/nothing-left", "descriptors after")
def keeps_a_single_descriptor(back_end: Faulty) -> None:
    """Of one front-end among several, as one does that forgets it on a way that is seldom gone."""
    calls = count()

    def call(b: BackEnd, value: int, fds: list[int], usual: Usual) -> None:
        if next(calls) == 3:
            back_end.leaked.append(os.dup(fds[0]))
        usual(b, value, fds)

    back_end.at(R.SET_VRING_CALL, call)


@clause("session/second", "the first front-end is not served any more")
def lets_the_first_go(back_end: Faulty) -> None:
    def end(_: Usual, session: Session) -> bool:
        session.stop()
        return True

    back_end.instead(Session, "free", end)


def serves(front_ends: int) -> Fault:
    """So many are served, and nobody behind them: who is lost once is let off."""

    def fault(back_end: Faulty) -> None:
        came = count(1)

        def run(usual: Usual, session: Session) -> None:
            if next(came) > front_ends:
                session.stop()
            usual(session)

        back_end.instead(Session, "run", run)

    return fault


NOT_SERVED = "the next front-end is not served"
CLAUSES += [
    ("messages/refused", NOT_SERVED, serves(1)),
    ("session/next", NOT_SERVED, serves(3)),
    ("session/cut-off", NOT_SERVED, serves(2)),
]


@clause("kinds/indirect", "the driver is not called")
def calls_nobody_at_the_end(back_end: Faulty) -> None:
    """Of requests that come one by one, when the ring has been gone through three times."""
    gone_through = 3 * RING + 3
    back_end.instead(
        SplitRing, "_is_wanted", lambda usual, ring, *at: ring._used_head[1] <= gone_through and usual(ring, *at)
    )


@clause("state/cut-off", "are taken for a whole state")
def takes_any_state_and_has_one_once_it_has_served(back_end: Faulty) -> None:
    served: list[None] = []

    def push(usual: Usual, *request: Any) -> None:
        served.append(None)
        usual(*request)

    def give(b: BackEnd, said: Any, fds: list[int], usual: Usual) -> int:
        answer: int = usual(b, said, fds) if said.direction == LOAD or served else NO_FD
        return answer

    back_end.instead(Ring, "push", push)
    back_end.at(R.SET_DEVICE_STATE_FD, give)
    FAULTS["state/cut-off"](back_end)


@clause("iommu/asked", "and the request does not come back")
def asks_for_ever(back_end: Faulty) -> None:
    """For another page each time."""
    pages = count(1)

    def translate(usual: Usual, iotlb: Iotlb, iova: int, size: int, permission: Any) -> Any:
        if iova < LOWER:
            raise IotlbMiss(iova + 0x1000 * next(pages), permission)
        return usual(iotlb, iova, size, permission)

    back_end.instead(Iotlb, "translate", translate)


@clause("inflight/resubmitted", "GET_VRING_BASE says 3")
def counts_one_more(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, said, fds, usual: (it := usual(b, said, fds))._replace(num=it.num + 1))


@clause("inflight/resubmitted", "3 requests came back, of 2")
def gives_one_back_again(back_end: Faulty) -> None:
    def get(b: BackEnd, said: VringState, fds: list[int], usual: Usual) -> VringState:
        ring = b.vrings[said.vring].ring
        assert isinstance(ring, SplitRing)
        head = ring._used_head
        answer: VringState = usual(b, said, fds)
        head[1] += 1
        return answer

    back_end.at(R.GET_VRING_BASE, get)


@clause("messages/acknowledged-on-agreeing", "SET_PROTOCOL_FEATURES is answered with 0x16")
def agrees_and_says_no(back_end: Faulty) -> None:
    """To the third who agrees, who asks for an answer."""
    came = count(1)

    def agree(b: BackEnd, value: Any, fds: list[int], usual: Usual) -> None:
        usual(b, value, fds)
        if next(came) > 2:
            refuse()

    back_end.at(R.SET_PROTOCOL_FEATURES, agree)


def ends_at_the_size(back_end: Faulty) -> None:
    """Of a place that goes on behind the ring's size, say where in the ring it is."""
    back_end.at(R.GET_VRING_BASE, lambda b, said, f, usual: (it := usual(b, said, f))._replace(num=it.num % RING))


def says_another_place(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, said, f, usual: (it := usual(b, said, f))._replace(num=it.num ^ 1))


def knows_no_word_of_addresses(back_end: Faulty) -> None:
    """Have the front-end's word that it knows where regions are be a table that is too short."""
    back_end.put("vhost_user.backend.session.is_postcopy_acknowledgement", lambda _: False)


def leaves_packed(at: int, byte: int) -> Fault:
    """Have another byte be in the in-flight region of a packed ring once requests have come back."""

    def finish(usual: Usual, region: PackedInflight, entries: Any) -> None:
        usual(region, entries)
        region._bytes[at] = byte

    return lambda back_end: back_end.instead(PackedInflight, "finish", finish)


CLAUSES += [
    ("rings/base-at-stop", "GET_VRING_BASE says 5 after", ends_at_the_size),
    *(
        (id, "of 1 requests came back", FAULTS["rings/kicked-as-asked"])
        for id in ("kinds/events", "kinds/packed", "kinds/packed-events")
    ),
    ("log/offset", "the used ring is not marked", FAULTS["log/used-ring"]),
    ("inflight/last-batch", "GET_VRING_BASE says 3", counts_one_more_at_the_second_stop),
    ("postcopy/bases", "with other regions", lambda back_end: answers_regions(back_end, size=4096)),
    ("postcopy/bases", "reply to request 5", knows_no_word_of_addresses),
    ("inflight/packed-kept", "the region is of version", leaves_packed(8, 2)),
    ("inflight/packed-kept", "the region says that", leaves_packed(16, 1)),
    ("inflight/packed-kept", "entries [9] are under way", leaves_packed(32 + 32 * 9, 1)),
    ("inflight/packed-resubmitted", "GET_VRING_BASE says", says_another_place),
    ("inflight/packed-last-batch", "GET_VRING_BASE says", says_another_place),
]
