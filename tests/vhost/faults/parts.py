"""Faults of what not every device has: kinds of ring, configuration, log, in-flight region, state; and of ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from tests.vhost.faults.faulty import Faulty, Usual, fatal, fault_for, nothing
from tests.vhost.faults.messages import handles, say
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.commands import Answer
from vhost_user.backend.session import Ended, Session
from vhost_user.backend.vrings import Vrings
from vhost_user.frontend.memory import USER_ADDRESS
from vhost_user.memory import DirtyLog
from vhost_user.rings import BrokenRing, Chain, PackedInflight, PackedRing, Ring, SplitInflight, SplitRing
from vhost_user.wire import (
    DeviceStatus,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    VirtioFeature,
)
from vhost_user.wire.payloads import Config, VringState

R, V, P = FrontEndRequest, VirtioFeature, ProtocolFeature


# Kinds of ring


@fault_for("kinds/indirect", "kinds/packed-indirect")
def knows_no_tables(back_end: Faulty) -> None:
    def indirect(usual: Usual, ring: Ring, *_: Any) -> None:
        raise BrokenRing("on purpose")

    back_end.instead(Ring, "_indirect", indirect)


@fault_for("kinds/events", "kinds/packed-events")
def tells_of_the_first_alone(back_end: Faulty) -> None:
    for kind in (SplitRing, PackedRing):
        back_end.instead(kind, "_is_wanted", lambda usual, ring, *places: not ring._told and usual(ring, *places))


@fault_for("kinds/in-order", "kinds/packed-in-order")
def gives_back_in_reverse(back_end: Faulty) -> None:
    def publish(usual: Usual, ring: Ring) -> bool:
        ring._finished.reverse()
        told: bool = usual(ring)
        return told

    for kind in (SplitRing, PackedRing):
        back_end.instead(kind, "publish", publish)


@fault_for("kinds/cut-otherwise")
def reads_one_buffer(back_end: Faulty) -> None:
    back_end.instead(Chain, "read", lambda usual, chain: bytes(chain.readable_views[0]))


@fault_for("kinds/nothing-else")
def writes_what_it_is_to_read(back_end: Faulty) -> None:
    def write(usual: Usual, chain: Chain, data: bytes) -> int:
        chain.readable_views[0][:1] = b"!"
        count: int = usual(chain, data)
        return count

    back_end.instead(Chain, "write", write)


@fault_for("kinds/packed-of-any-size")
def knows_powers_of_two(back_end: Faulty) -> None:
    def check(usual: Usual, ring: Ring) -> None:
        if ring.size & ring.size - 1:
            raise BrokenRing("on purpose")

    back_end.instead(PackedRing, "_check_size", check)


@fault_for("kinds/packed")
def never_wraps(back_end: Faulty) -> None:
    back_end.instead(
        PackedRing, "_after", lambda usual, ring, index, wrap, slots: (usual(ring, index, wrap, slots)[0], wrap)
    )


@fault_for("kinds/packed-base")
def says_half_of_a_base(back_end: Faulty) -> None:
    back_end.at(R.GET_VRING_BASE, lambda b, v, f, usual: VringState(v.vring, usual(b, v, f).num & 0xFFFF))


# Configuration, status, reset


def configured(back_end: Faulty, change: Callable[[BackEnd, Config, bytes], bytes]) -> None:
    """Have other bytes come than the device has."""

    def get(b: BackEnd, wanted: Config, fds: list[int], usual: Usual) -> Config:
        data = change(b, wanted, usual(b, wanted, fds).data)
        return wanted._replace(size=len(data), data=data)

    back_end.at(R.GET_CONFIG, get)


@fault_for("config/as-long-as-asked")
def gives_one_byte_less(back_end: Faulty) -> None:
    configured(back_end, lambda b, wanted, data: data[:-1])


@fault_for("config/same")
def counts_reads(back_end: Faulty) -> None:
    reads: list[None] = []

    def change(b: BackEnd, wanted: Config, data: bytes) -> bytes:
        reads.append(None)
        return bytes((len(reads),)) + data[1:]

    configured(back_end, change)


@fault_for("config/from-an-offset")
def begins_at_the_beginning(back_end: Faulty) -> None:
    configured(back_end, lambda b, wanted, data: b.model.config.read()[: wanted.size])


@fault_for("config/beyond-the-end")
def gives_what_there_is(back_end: Faulty) -> None:
    configured(back_end, lambda b, wanted, data: b.model.config.read()[: wanted.size])


@fault_for("config/read-only")
def writes_anything(back_end: Faulty) -> None:
    back_end.at(
        R.SET_CONFIG, lambda b, said, f, usual: b.model.config.write(0, said.data + bytes(7), read_only_too=True)
    )


@fault_for("status/kept")
def keeps_no_status(back_end: Faulty) -> None:
    back_end.at(R.SET_STATUS, nothing)


@fault_for("status/zero")
def knows_no_status_0(back_end: Faulty) -> None:
    back_end.at(R.SET_STATUS, lambda b, v, f, usual: usual(b, v, f) if v else None)


@fault_for("status/zero-stops")
def keeps_running_at_status_0(back_end: Faulty) -> None:
    def set_status(b: BackEnd, value: int, f: list[int], usual: Usual) -> None:
        b.status = DeviceStatus(value)

    back_end.at(R.SET_STATUS, set_status)


@fault_for("reset/stops")
def resets_nothing(back_end: Faulty) -> None:
    back_end.at(R.RESET_DEVICE, nothing)


@fault_for("reset/starts-again")
def forgets_memory_at_a_reset(back_end: Faulty) -> None:
    def reset(b: BackEnd, v: None, f: list[int], usual: Usual) -> None:
        usual(b, v, f)
        b.vrings.table.clear()

    back_end.at(R.RESET_DEVICE, reset)


# Dirty log


@fault_for("log/answered")
def answers_a_log_twice(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        usual(session, message)
        if message.request == R.SET_LOG_BASE:
            say(session, message.request)

    handles(back_end, handle)


@fault_for("log/answer")
def repeats_the_log(back_end: Faulty) -> None:
    def set_log(b: BackEnd, log: Any, f: list[int], usual: Usual) -> Any:
        usual(b, log, f)
        return log

    back_end.at(R.SET_LOG_BASE, set_log)


@fault_for("log/data")
def marks_no_data(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.ring.Ring._mark", nothing)


@fault_for("log/used-ring")
def marks_no_ring(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.ring.Ring._mark_ring", nothing)


@fault_for("log/used-ring-elsewhere")
def knows_better_where_a_ring_is(back_end: Faulty) -> None:
    back_end.at(R.SET_VRING_ADDR, lambda b, said, f, usual: usual(b, said._replace(log=said.used - USER_ADDRESS), f))


@fault_for("log/offset")
def begins_at_the_files_beginning(back_end: Faulty) -> None:
    back_end.at(R.SET_LOG_BASE, lambda b, said, f, usual: usual(b, said._replace(offset=0), f))


@fault_for("log/another")
def keeps_the_first_log(back_end: Faulty) -> None:
    def set_log(usual: Usual, vrings: Vrings, log: DirtyLog | None) -> None:
        if log is not None and vrings._log is not None:
            log.close()
            return
        usual(vrings, log)

    back_end.instead(Vrings, "set_log", set_log)


@fault_for("log/off")
def marks_always(back_end: Faulty) -> None:
    back_end.put("vhost_user.backend.vrings.Vrings._log_now", property(lambda vrings: vrings._log))


# In-flight region


@fault_for("inflight/given")
def gives_too_little(back_end: Faulty) -> None:
    def get(b: BackEnd, wanted: Any, f: list[int], usual: Usual) -> Answer:
        described, fds = usual(b, wanted, f)
        return Answer(described._replace(mmap_size=16), fds)

    back_end.at(R.GET_INFLIGHT_FD, get)


@fault_for("inflight/taken")
def takes_no_region(back_end: Faulty) -> None:
    back_end.at(R.SET_INFLIGHT_FD, fatal)


@fault_for("inflight/kept")
def never_finishes(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.inflight.SplitInflight.finish", nothing)


@fault_for("inflight/resubmitted")
def does_nothing_again(back_end: Faulty) -> None:
    back_end.instead(SplitInflight, "recover", lambda usual, part, *places: usual(part, *places)[1:])


@fault_for("inflight/last-batch")
def does_all_again(back_end: Faulty) -> None:
    back_end.instead(SplitInflight, "_clear_last_batch", nothing)


@fault_for("inflight/packed-last-batch")
def does_all_again_in_packed_rings(back_end: Faulty) -> None:
    back_end.instead(PackedInflight, "_free_entries", lambda *_: [])


@fault_for("inflight/packed-kept")
def never_finishes_in_packed_rings(back_end: Faulty) -> None:
    back_end.put("vhost_user.rings.inflight.PackedInflight.finish", nothing)


@fault_for("inflight/packed-resubmitted")
def takes_no_account_of_packed_rings(back_end: Faulty) -> None:
    """It goes on where the front-end says, behind what was taken."""
    back_end.at(R.SET_INFLIGHT_FD, nothing)


# The device's state


@fault_for("state/saved")
def does_not_know_how_it_went_once_it_has_served(back_end: Faulty) -> None:
    back_end.at(R.CHECK_DEVICE_STATE, lambda b, v, f, usual: usual(b, v, f) or int(any(r.base for r in b.vrings)))


@fault_for("state/resumed")
def is_done_once_it_is_saved(back_end: Faulty) -> None:
    saved: list[BackEnd] = []

    def check(b: BackEnd, v: None, f: list[int], usual: Usual) -> Any:
        saved.append(b)
        return usual(b, v, f)

    back_end.at(R.CHECK_DEVICE_STATE, check)
    back_end.at(R.SET_VRING_KICK, lambda b, v, f, usual: None if b in saved else usual(b, v, f))


@fault_for("state/loaded")
def loads_nothing(back_end: Faulty) -> None:
    back_end.at(R.SET_DEVICE_STATE_FD, lambda b, v, f, usual: fatal() if v.direction else usual(b, v, f))


@fault_for("state/cut-off")
def takes_any_state(back_end: Faulty) -> None:
    def check(b: BackEnd, v: None, f: list[int], usual: Usual) -> int:
        usual(b, v, f)
        return 0

    back_end.at(R.CHECK_DEVICE_STATE, check)


# Front-ends that come and go


def lost_after(back_end: Faulty, is_last: Callable[[Session], bool]) -> None:
    """Serve nobody any more, once a session has ended of which this holds."""
    lost: list[None] = []

    def end(usual: Usual, session: Session, *, attached: bool) -> None:
        if is_last(session):
            lost.append(None)
        usual(session, attached=attached)

    def wait(usual: Usual, session: Session) -> None:
        if lost:
            raise Ended("")
        usual(session)

    back_end.instead(Session, "_end", end)
    back_end.instead(Session, "_wait", wait)


@fault_for("session/next")
def serves_one(back_end: Faulty) -> None:
    lost_after(back_end, lambda session: len(session._back_end.vrings.table) > 0)


@fault_for("session/gone-while-running")
def is_lost_with_a_ring_that_runs(back_end: Faulty) -> None:
    lost_after(back_end, lambda session: bool(session._back_end.vrings.started))


@fault_for("session/cut-off")
def is_lost_in_a_message(back_end: Faulty) -> None:
    lost_after(back_end, lambda session: session._framer.pending > 0)


@fault_for("session/second")
def lets_others_wait(back_end: Faulty) -> None:
    back_end.put("userdev.serving.server.GRACE_SECONDS", 1.0)
    back_end.put("vhost_user.frontend.conformance.sessions.SECOND_SECONDS", 0.1)


@fault_for("session/nothing-left")
def keeps_descriptors(back_end: Faulty) -> None:
    def call(b: BackEnd, value: int, fds: list[int], usual: Usual) -> None:
        back_end.leaked.append(os.dup(fds[0]))
        usual(b, value, fds)

    back_end.at(R.SET_VRING_CALL, call)
