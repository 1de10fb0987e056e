"""Bad input for a real vhost-user session: messages in any order, right, nearly right and hostile; and in rings.

A session runs in the calling thread on a `FrontEndScript`, a stream that plays a front-end without a socket; between
messages it writes into the guest's memory, kicks, and takes memory away. What a seed does is always the same.
"""

from __future__ import annotations

import gc
import os
import random
import struct
import threading
import traceback
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from unittest.mock import patch

from tests.descriptors import fd_count
from tests.fuzzing import Defects, Outcome, resident_bytes
from tests.fuzzing_vhost_front_end import (
    Action,
    Echo,
    Front,
    FrontEndScript,
    P,
    R,
    Said,
    V,
)
from tests.fuzzing_vhost_messages import INFLIGHT_SIZE, Generator
from userdev import busy_wait
from userdev.errors import ProtocolError
from vhost_user.backend import Session
from vhost_user.backend.withheld import Withheld
from vhost_user.wire import (
    REPLY,
    VERSION,
    Message,
    Negotiated,
    decode_reply,
)
from vhost_user.wire.payloads import (
    VringState,
)

PER_SESSION = 500
"""Messages of one session, unless it ends before."""
GROWTH = 32 << 20
"""Bytes of memory that a campaign may cost."""
WITHHELD = Withheld.of(["PAGEFAULT"])
"""A page fault keeps Python's lock, and it is this process that would have to serve it."""


def campaign(messages: int, seed: int) -> Outcome:
    """Send so many messages in sessions to one device after another; always the same for a seed."""
    outcome = Outcome()
    generator = Generator(seed)
    device = Echo()
    threads = threading.active_count()
    # A session that looks before it sleeps would do so for as long as this machine lets it.
    with Defects.of("vhost_user") as defects, patch.object(busy_wait, "SHORT_NS", 0):
        while outcome.messages < messages and len(outcome.wrong) < 10:
            one = _noisy_session if outcome.sessions % 20 == 19 else _one_session
            try:
                one(device, generator, min(PER_SESSION, messages - outcome.messages), outcome)
                if outcome.sessions % 20 == 0:
                    _next_is_served(device, outcome)
            except Exception as error:
                outcome.wrong.append(f"session {outcome.sessions}: {error!r} at {_place(error)}")
        device.close()
    if threading.active_count() > threads:
        outcome.wrong.append(f"{threading.active_count() - threads} threads are left")
    outcome.wrong += defects.found
    return outcome


def _one_session(device: Echo, generator: Generator, count: int, outcome: Outcome) -> None:
    """Every message asks for an answer and has it, in order; the last has none where the back-end hangs up."""
    front, script = Front(generator.random), FrontEndScript()
    script.items = generator.session(front, count)
    _run(device, front, script, outcome)
    where = f"session {outcome.sessions}"
    for message, reply in zip(script.sent, script.replies, strict=False):
        if reply.request != message.request or reply.flags != VERSION | REPLY:
            outcome.wrong.append(f"{where}: {message} is answered by a {reply} with flags {reply.flags:#x}")
            return
        try:
            _decode(reply, front.negotiated)
        except ProtocolError as error:
            outcome.wrong.append(f"{where}: the reply to {message}: {error}")
        outcome.refused += len(reply.payload) == 8 and any(reply.payload)
    if script.is_over:
        outcome.whole += 1
        if len(script.replies) != len(script.sent):
            outcome.wrong.append(f"{where}: {len(script.replies)} replies to {len(script.sent)} messages")


def _noisy_session(device: Echo, generator: Generator, count: int, outcome: Outcome) -> None:
    front, script = Front(generator.random), FrontEndScript()
    script.items = generator.rubbish(front, count)
    _run(device, front, script, outcome)


def _run(device: Echo, front: Front, script: FrontEndScript, outcome: Outcome) -> None:
    try:
        Session(device, script, withheld=WITHHELD).run()
    finally:
        front.close()
        outcome.sessions += 1
        outcome.messages += len(script.sent)


def _place(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def _decode(reply: Message, negotiated: Negotiated) -> None:
    """Raise ProtocolError for a payload that no reply to this request has; a number is an acknowledgement, too."""
    if len(reply.payload) == 8:
        return
    request = R(reply.request)
    if request is R.GET_INFLIGHT_FD and len(reply.payload) == INFLIGHT_SIZE:
        return  # its descriptor is not kept
    decode_reply(request, reply, negotiated)


def _next_is_served(device: Echo, outcome: Outcome) -> None:
    """A front-end that is right, and its request, which is done."""
    front, script = Front(random.Random(0)), FrontEndScript()
    front.features, front.protocol = V.VERSION_1 | V.PROTOCOL_FEATURES, P.REPLY_ACK | P.CONFIGURE_MEM_SLOTS | P.MQ
    for at, data in (
        (0, struct.pack("<QIHH", 0x3000, 16, 2, 0)),
        (0x1000, struct.pack("<HHH", 0, 1, 0)),
        (0x3000, b"\xff" * 16),
    ):
        os.pwrite(front.memory, data, at)
    stop: Iterator[Said | Action] = iter([front.kick(0), front.say(R.GET_VRING_BASE, VringState(0, 0))])
    script.items = chain(front.greet(), front.start(0), stop)
    Session(device, script, withheld=WITHHELD).run()
    used, written = os.pread(front.memory, 12, 0x2000), os.pread(front.memory, 16, 0x3000)
    if used[2:] != struct.pack("<HII", 1, 0, 16) or any(written):
        outcome.wrong.append(f"after session {outcome.sessions} the next front-end is not served: {used.hex()}")
    front.close()


def checked_campaign(messages: int, seed: int) -> Outcome:
    """`campaign`, and what is left of its front-ends afterwards: descriptors, mappings and memory of this process."""
    campaign(500, 0)
    gc.collect()
    fds, memory = fd_count(), resident_bytes()
    outcome = campaign(messages, seed)
    gc.collect()
    if fd_count() != fds:
        outcome.wrong.append(f"{fd_count() - fds} descriptors are left open")
    if mappings():
        outcome.wrong.append(f"{mappings()} mappings of front-ends' memory are left")
    if resident_bytes() - memory > GROWTH:
        outcome.wrong.append(f"the process has grown by {resident_bytes() - memory >> 20} MiB")
    return outcome


def mappings() -> int:
    """How many pieces of a front-end's memory this process has."""
    return Path("/proc/self/maps").read_text().count("memfd:fuzz")
