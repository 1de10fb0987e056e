"""Faults with memory, and in the life of rings."""

from __future__ import annotations

import os
from typing import Any

from tests.vhost.faults.faulty import Faulty, Usual, fatal, fault_for, nothing
from userdev.errors import ProtocolError
from userdev.eventfd import drain
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.lifecycle import RingEvent, RingState
from vhost_user.backend.line import Line
from vhost_user.backend.vring import Vring
from vhost_user.backend.vrings import Vrings
from vhost_user.rings import BrokenRing, PackedRing, Ring, SplitRing
from vhost_user.wire import (
    FrontEndRequest,
    ProtocolFeature,
    VirtioFeature,
)
from vhost_user.wire.payloads import Region, VringState

R, V, P = FrontEndRequest, VirtioFeature, ProtocolFeature


# Memory


@fault_for("memory/table")
def takes_no_table(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, nothing)


@fault_for("memory/table-of-several")
def takes_the_first_of_a_table(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, lambda b, regions, fds, usual: usual(b, regions[:1], fds[:1]))


@fault_for("memory/table-replaced")
def keeps_the_first_tables_memory(back_end: Faulty) -> None:
    kept: list[int] = []

    def set_table(b: BackEnd, regions: tuple[Region, ...], fds: list[int], usual: Usual) -> Any:
        if not kept:
            kept.append(os.dup(fds[0]))
            return usual(b, regions, fds)
        try:
            return usual(b, regions, kept)
        finally:
            os.close(kept[0])

    back_end.at(R.SET_MEM_TABLE, set_table)


@fault_for("memory/slots")
def takes_the_first_slot(back_end: Faulty) -> None:
    back_end.at(R.ADD_MEM_REG, lambda b, region, fds, usual: None if region.guest_address else usual(b, region, fds))


@fault_for("memory/slot-gone")
def compares_offsets(back_end: Faulty) -> None:
    def remove(b: BackEnd, region: Region, fds: list[int], usual: Usual) -> None:
        if region.mmap_offset != region.guest_address:
            raise ProtocolError("another offset")
        usual(b, region, fds)

    back_end.at(R.REM_MEM_REG, remove)


@fault_for("memory/slot-gone-with-descriptor")
def refuses_descriptors_of_slots_that_go(back_end: Faulty) -> None:
    back_end.at(R.REM_MEM_REG, lambda b, region, fds, usual: fatal() if fds else usual(b, region, fds))


@fault_for("memory/slot-unknown")
def removes_anything(back_end: Faulty) -> None:
    back_end.at(R.REM_MEM_REG, nothing)


@fault_for("memory/offset-on-no-page")
def maps_pages_only(back_end: Faulty) -> None:
    back_end.at(
        R.SET_MEM_TABLE,
        lambda b, regions, fds, usual: fatal() if regions[0].mmap_offset % 4096 else usual(b, regions, fds),
    )


@fault_for("memory/region-without-memory")
def takes_nothing_for_a_region(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, lambda b, regions, fds, usual: usual(b, regions, fds) if regions[0].size else None)


@fault_for("memory/again-while-running")
def takes_a_table_once(back_end: Faulty) -> None:
    back_end.at(R.SET_MEM_TABLE, lambda b, regions, fds, usual: fatal() if b.vrings.started else usual(b, regions, fds))


@fault_for("memory/over-a-border")
def knows_one_region(back_end: Faulty) -> None:
    def buffer(usual: Usual, ring: Ring, *_: Any) -> None:
        raise BrokenRing("on purpose")

    back_end.instead(Ring, "_buffer", buffer)


# The life of rings


@fault_for("rings/served")
def calls_nobody(back_end: Faulty) -> None:
    def set_line(usual: Usual, line: Line, fd: int | None) -> None:
        usual(line, fd)
        line.signal = lambda: None

    back_end.instead(Line, "set", set_line)


@fault_for("rings/round-and-round")
def tires(back_end: Faulty) -> None:
    served: list[None] = []

    def serve(usual: Usual, vring: Vring) -> None:
        if len(served) < 3:
            served.append(usual(vring))
        vring.pending = vring.pending and len(served) < 3

    back_end.instead(Vring, "serve", serve)


@fault_for("rings/without-protocol-features")
def waits_to_be_enabled(back_end: Faulty) -> None:
    def set_kick(usual: Usual, vrings: Vrings, vring: Vring, fd: int | None) -> None:
        vring.is_told = True
        usual(vrings, vring, fd)

    back_end.instead(Vrings, "set_kick", set_kick)
    back_end.instead(Vrings, "enable_all", nothing)


@fault_for("rings/enabled-by-features")
def enables_what_it_is_told_to_alone(back_end: Faulty) -> None:
    back_end.instead(Vrings, "enable_all", nothing)


@fault_for("rings/enabled-before-start")
def forgets_what_was_enabled_early(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_ENABLE, lambda b, v, f, usual: usual(b, v, f) if b.vrings.started else None)


@fault_for("rings/without-call")
def wants_to_call(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_CALL, lambda b, v, f, usual: usual(b, v, f) if f else fatal())


@fault_for("rings/without-kick")
def never_polls(back_end: Faulty) -> None:
    def set_kick(usual: Usual, vring: Vring, fd: int | None) -> None:
        usual(vring, fd)
        vring.is_polled = False

    back_end.instead(Vring, "set_kick", set_kick)
    looks_at_new_kicks_alone(back_end)


@fault_for("rings/kicked-as-asked")
def never_asks_to_be_told(back_end: Faulty) -> None:
    def rest(usual: Usual, vring: Vring) -> bool:
        vring.is_awake = False
        return False

    back_end.instead(Vring, "rest", rest)
    back_end.instead(Vring, "look", lambda usual, vring: False)


@fault_for("rings/uncalled", "kinds/events-uncalled", "kinds/packed-uncalled")
def calls_always(back_end: Faulty) -> None:
    for kind in (SplitRing, PackedRing):
        back_end.instead(kind, "_is_wanted", lambda usual, *_: True)


@fault_for("rings/16-bits")
def says_more_than_16_bits(back_end: Faulty) -> None:
    def get_base(b: BackEnd, said: VringState, f: list[int], usual: Usual) -> VringState:
        answer: VringState = usual(b, said, f)
        return answer._replace(num=answer.num | 0x10000)

    back_end.at(R.GET_VRING_BASE, get_base)


@fault_for("rings/suspended")
def calls_while_it_is_stopped(back_end: Faulty) -> None:
    def get(b: BackEnd, v: None, f: list[int], usual: Usual) -> Any:
        for vring in b.vrings:
            if not vring.state.is_started:
                vring.call.signal()
        return usual(b, v, f)

    back_end.at(R.GET_FEATURES, get)


@fault_for("rings/call-before-kick")
def wants_memory_first(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_CALL, lambda b, v, f, usual: usual(b, v, f) if len(b.vrings.table) else fatal())


@fault_for("rings/kick-before-call")
def wants_calls_first(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_CALL, lambda b, v, f, usual: fatal() if b.vrings.started else usual(b, v, f))


@fault_for("rings/disabled-at-first")
def enables_by_itself(back_end: Faulty) -> None:
    def set_kick(usual: Usual, vrings: Vrings, vring: Vring, fd: int | None) -> None:
        vring.happen(RingEvent.ENABLE)
        usual(vrings, vring, fd)

    back_end.instead(Vrings, "set_kick", set_kick)


@fault_for("rings/disabled")
def never_disables(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_ENABLE, lambda b, v, f, usual: usual(b, v, f) if v.num else None)


@fault_for("rings/enabled-again")
def never_enables_again(back_end: Faulty) -> None:
    back_end.at(
        R.SET_VRING_ENABLE,
        lambda b, v, f, usual: None if v.num and b.vrings[v.vring].is_told else usual(b, v, f),
    )


@fault_for("rings/kick-while-disabled", "rings/there-at-start")
def looks_at_new_kicks_alone(back_end: Faulty) -> None:
    def run(usual: Usual, vring: Vring) -> None:
        usual(vring)
        vring.pending = False
        drain(vring._kick)

    def rest(usual: Usual, vring: Vring) -> bool:
        vring.is_awake = False
        return False

    back_end.instead(Vring, "_run", run)
    back_end.instead(Vring, "rest", rest)
    back_end.instead(Vring, "look", lambda usual, vring: False)


@fault_for("rings/base-at-stop")
def counts_one_more(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, usual(b, v, f).num + 1))


@fault_for("rings/base-of-nothing")
def begins_somewhere(back_end: Faulty) -> None:
    back_end.at(
        R.GET_VRING_BASE, lambda b, v, f, usual: usual(b, v, f) if b.negotiated.features else VringState(v.vring, 7)
    )


@fault_for("rings/stopped")
def never_stops(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, b.vrings[v.vring].ring.base))


@fault_for("rings/drained")
def says_more_than_came_back(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, usual(b, v, f).num + 3))


@fault_for("rings/restarted")
def starts_once(back_end: Faulty) -> None:
    def kick(b: BackEnd, value: int, fds: list[int], usual: Usual) -> None:
        if not b.vrings[value & 0xFF].base:
            usual(b, value, fds)

    back_end.at(R.SET_VRING_KICK, kick)


@fault_for("rings/restarted-elsewhere")
def begins_at_0(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.split.SplitRing._first", lambda ring, base: 0)


@fault_for("rings/remembered")
def forgets_addresses(back_end: Faulty) -> None:
    def stop(usual: Usual, vrings: Vrings, vring: Vring) -> int:
        base: int = usual(vrings, vring)
        vring.addresses = None
        return base

    back_end.instead(Vrings, "stop", stop)


@fault_for("rings/another-call")
def keeps_the_first_call(back_end: Faulty) -> None:
    back_end.at(
        R.SET_VRING_CALL,
        lambda b, v, f, usual: None if b.vrings[v & 0xFF].state is RingState.RUNNING else usual(b, v, f),
    )


@fault_for("rings/independent")
def stops_all(back_end: Faulty) -> None:
    def get_base(b: BackEnd, said: VringState, f: list[int], usual: Usual) -> Any:
        answer = usual(b, said, f)
        b.vrings.stop_all()
        return answer

    back_end.at(R.GET_VRING_BASE, get_base)
