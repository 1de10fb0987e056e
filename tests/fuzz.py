"""Bad input for as long as you like: `scripts/fuzz --messages 10000000`, or `scripts/fuzz --seconds 600`.

Campaigns of 50,000 messages go round the dialects with ascending seeds, and as many messages go to vhost-user sessions,
with rings of any content; an interposer, and everything that reads what others have written (traces, documents, control
sockets, agents' answers, states) gets what is nearly right. A process for each processor does all that. Status 1 when
something went wrong, with its seed.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests import fuzz_seeded, fuzzing_interposer, fuzzing_readers, fuzzing_rings, fuzzing_vhost
from tests.descriptors import fd_count
from tests.fuzzing import Outcome, campaign, resident_bytes
from userdev.fuzz import Bounds
from vfio_user.wire import DIALECTS, Dialect

SLICE = 50_000
GROWTH = 64 << 20
"""Bytes of memory that a whole run may cost."""


VHOST = "vhost-user"
"""In place of a dialect."""
SEQUENCES = 20
"""Of the fuzzer for any server, for each of ours."""
RINGS = 20
"""For each input of a reader, so many rings."""


def main() -> int:
    arguments = _arguments()
    vfio, vhost = arguments.dialect != VHOST, arguments.dialect in (None, VHOST)
    parts = [_drive, _pass, _read, _fuzz_servers] * vfio + [_drive_rings] * vhost  # the longest first
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        begun = [pool.submit(part, arguments) for part in parts]
        status = _drive_vhost(arguments, pool, workers) if vhost else 0
        return max([status, *(part.result() for part in begun)])


def _dialects(arguments: argparse.Namespace) -> list[Dialect]:
    return [DIALECTS[arguments.dialect]] if arguments.dialect else list(DIALECTS.values())


def _drive_vhost(arguments: argparse.Namespace, pool: Executor, workers: int) -> int:
    """Send so many messages to vhost-user sessions; what a seed does is the same in whichever process."""
    begin, done, whole = time.monotonic(), 0, 0
    seeds = range(arguments.seed, arguments.seed + -(-arguments.messages // SLICE))
    waiting = deque[tuple[int, Future[Outcome]]]()
    for seed in seeds:
        if time.monotonic() - begin > arguments.seconds:
            break
        waiting.append((seed, pool.submit(fuzzing_vhost.checked_campaign, SLICE, seed)))
        if len(waiting) <= workers and seed != seeds[-1]:
            continue
        while waiting and (len(waiting) > workers or seed == seeds[-1]):
            which, future = waiting.popleft()
            outcome = future.result()
            done, whole = done + outcome.messages, whole + outcome.whole
            if outcome.wrong:
                print(f"seed {which} of {VHOST} went wrong:", *outcome.wrong, sep="\n  ")
                print(f"again: scripts/fuzz --dialect {VHOST} --seed {which} --messages {SLICE} --inputs 0")
                return 1
    if done:
        print(f"{VHOST}: {done:,} messages, {done / (time.monotonic() - begin):,.0f}/s, {whole:,} whole sessions")
    return 0


def _drive_rings(arguments: argparse.Namespace) -> int:
    """Have so many rings taken from."""
    count = RINGS * arguments.inputs
    outcome = fuzzing_rings.campaign(count, arguments.seed)
    if outcome.wrong:
        print(f"rings: seed {arguments.seed} went wrong:", *outcome.wrong, sep="\n  ")
        print(f"again: scripts/fuzz --dialect {VHOST} --messages 0 --seed {arguments.seed} --inputs {arguments.inputs}")
        return 1
    print(f"rings: {outcome.messages:,}, {outcome.refused:,} broken")
    return 0


def _drive(arguments: argparse.Namespace) -> int:
    """Send so many messages to vfio-user sessions, all in one process, which is not to grow meanwhile."""
    dialects = _dialects(arguments)
    campaign(dialects[0], 1000, seed=0)
    gc.collect()
    fds, memory, begin = fd_count(), resident_bytes(), time.monotonic()
    done, seed, told = 0, arguments.seed, "nothing was sent"
    while done < arguments.messages and time.monotonic() - begin < arguments.seconds:
        dialect = dialects[seed % len(dialects)]
        outcome = campaign(dialect, min(SLICE, arguments.messages - done), seed)
        gc.collect()
        done += outcome.messages
        wrong = list(outcome.wrong)
        if fd_count() != fds:
            wrong.append(f"{fd_count() - fds} descriptors are left open")
        if resident_bytes() - memory > GROWTH:
            wrong.append(f"the process has grown by {resident_bytes() - memory >> 20} MiB")
        if wrong:
            print(f"seed {seed} of {dialect.name} went wrong:", *wrong, sep="\n  ")
            print(f"again: scripts/fuzz --dialect {dialect.name} --seed {seed} --messages {SLICE}")
            return 1
        rate = done / (time.monotonic() - begin)
        grown = resident_bytes() - memory >> 10
        told = f"{done:,} messages, {rate:,.0f}/s, seed {seed}, {grown:,} KiB more"
        if sys.stdout.isatty():
            print(told, end="\r", flush=True)
        seed += 1
    print(told)
    return 0


def _pass(arguments: argparse.Namespace) -> int:
    """Let an interposer pass on so many messages of each dialect."""
    messages, seed = arguments.inputs, arguments.seed
    for dialect in _dialects(arguments):
        fds = fd_count()
        outcome = fuzzing_interposer.campaign(dialect, messages, seed)
        gc.collect()
        if fd_count() != fds:
            outcome.wrong.append(f"{fd_count() - fds} descriptors are left open")
        if outcome.wrong:
            print(f"an interposer: seed {seed} of {dialect.name} went wrong:", *outcome.wrong, sep="\n  ")
            print(f"again: scripts/fuzz --messages 0 --dialect {dialect.name} --seed {seed} --inputs {messages}")
            return 1
        print(f"through an interposer, {dialect.name}: {outcome.inputs:,} messages")
    return 0


def _read(arguments: argparse.Namespace) -> int:
    """Let each reader read so many inputs."""
    inputs, seed = arguments.inputs, arguments.seed
    with tempfile.TemporaryDirectory(prefix="vfu-") as folder, fuzzing_readers.readers(Path(folder)) as readers:
        for reader in readers:
            begin = time.monotonic()
            outcome = fuzzing_readers.campaign(reader, inputs, seed)
            if outcome.wrong:
                print(f"{reader.name}: seed {seed} went wrong:", *outcome.wrong, sep="\n  ")
                print(f"again: scripts/fuzz --messages 0 --seed {seed} --inputs {inputs}")
                return 1
            seconds = time.monotonic() - begin
            print(f"{reader.name}: {outcome.inputs:,} inputs, {outcome.refused:,} refused, {seconds:.1f} s")
    return 0


def _fuzz_servers(arguments: argparse.Namespace) -> int:
    """Have what `vfio-user fuzz` and `vhost-user fuzz` do be done to servers of ours."""
    seed, sequences = arguments.seed, SEQUENCES * min(1, arguments.inputs)
    for program in (fuzz_seeded.EDU, fuzz_seeded.BLK):
        summary, heard = fuzz_seeded.fuzz(program, seed, Bounds(sequences=sequences))
        if finds := heard.finds:
            print(f"{program}: seed {seed} found:", *(find.what for find in finds), sep="\n  ")
            print(*(f"    {step}" for step in finds[0].steps), sep="\n")
            return 1
        print(f"{program}: {summary.sequences:,} sequences, {summary.steps:,} steps, {summary.seconds:.1f} s")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many (1,000,000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--inputs", type=int, default=1000, help="how many for each reader (1,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first campaign (1)")
    parser.add_argument("--dialect", choices=[*DIALECTS, VHOST], help="one dialect instead of all")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
