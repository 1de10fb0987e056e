"""Messages that are nearly right, both ways through an interposer that captures, breaks and records what passes.

Whatever comes, nothing is raised, and no descriptor stays: an interposer passes on what it does not understand.
"""

from __future__ import annotations

import os
import random
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from tests.fuzzing import Generator
from tests.fuzzing_readers import Outcome
from tests.interposer_bench import Bench, Peer
from userdev.transport import close_all
from vfio_user.interposer.capture import CaptureDma, CaptureInterrupts
from vfio_user.interposer.faults.scenario import parse_scenario
from vfio_user.interposer.faults.stage import Faults
from vfio_user.wire import HEADER, HEADER_SIZE, REPLY, Dialect

PER_SESSION = 60
"""Messages of one session."""
_SCENARIO = """rules:
- {match: {nth: {every: 7}}, act: {corrupt: {at: 3, random: true}}}
- {match: {nth: {every: 11}}, act: drop}
- {match: {nth: {every: 13}}, act: {truncate: 17}}
- {match: {nth: {every: 17}}, act: {duplicate: 2}}
- {match: {nth: {every: 19}}, act: [{extra-fd: 2}, {reorder: 1}]}
"""


def campaign(dialect: Dialect, messages: int, seed: int) -> Outcome:
    """Send so many messages through one interposer's session after another; always the same for a seed."""
    outcome = Outcome()
    generator = Generator(dialect, seed)
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder:
        while outcome.inputs < messages and len(outcome.wrong) < 10:
            try:
                _one_session(dialect, generator, Path(folder) / "trace", outcome)
            except Exception as error:  # whatever it is, it is what we are here for
                where = traceback.extract_tb(error.__traceback__)[-1]
                told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                outcome.wrong.append(f"message {outcome.inputs} of {dialect.name}: {told}")
    return outcome


def _one_session(dialect: Dialect, generator: Generator, trace: Path, outcome: Outcome) -> None:
    chance = generator.random
    with Bench(dialect=dialect, trace=trace) as bench:
        if chance.random() < 0.5:
            CaptureDma(bench.session)
        if chance.random() < 0.5:
            CaptureInterrupts(bench.session)
        if chance.random() < 0.3:
            Faults(bench.session, parse_scenario(_SCENARIO, "fuzz"), lambda number: number)
        for id in range(PER_SESSION):
            if bench.ended:
                return
            outcome.inputs += 1
            _send(bench.client if chance.random() < 0.8 else bench.server, generator, id)
            bench.settle()
            for peer in (bench.client, bench.server):
                peer.take_all()


def _send(peer: Peer, generator: Generator, id: int) -> None:
    chance = generator.random
    data, _ = generator.message(id)
    if chance.random() < 0.3:
        command = int.from_bytes(data[2:4], "little")
        data = HEADER.pack(id, command, len(data), REPLY, 0) + data[HEADER_SIZE:]
    fds = [_descriptor(chance) for _ in range(chance.choice((0, 0, 0, 1, 2)))]
    with suppress(OSError):
        peer.stream.send(data, fds)
    close_all(fds)


def _descriptor(chance: random.Random) -> int:
    return os.eventfd(0) if chance.random() < 0.5 else os.memfd_create("fuzz")
