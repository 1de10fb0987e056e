"""Bad input for as long as you like: `scripts/fuzz --messages 10000000`, or `scripts/fuzz --seconds 600`.

Campaigns of 50,000 messages go round the dialects with ascending seeds; then an interposer, and everything that reads
what others have written (traces, documents, control sockets, agents' answers, states) gets what is nearly right.
Status 1 when something went wrong, with its seed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

from tests import fuzzing_interposer, fuzzing_readers
from tests.fuzzing import campaign, open_fds, resident_bytes
from vfio_user.wire import DIALECTS, Dialect

SLICE = 50_000
GROWTH = 64 << 20
"""Bytes of memory that a whole run may cost."""


def main() -> int:
    arguments = _arguments()
    dialects = [DIALECTS[arguments.dialect]] if arguments.dialect else list(DIALECTS.values())
    campaign(dialects[0], 1000, seed=0)
    gc.collect()
    fds, memory, begin = open_fds(), resident_bytes(), time.monotonic()
    done, seed, told = 0, arguments.seed, "nothing was sent"
    while done < arguments.messages and time.monotonic() - begin < arguments.seconds:
        dialect = dialects[seed % len(dialects)]
        outcome = campaign(dialect, min(SLICE, arguments.messages - done), seed)
        gc.collect()
        done += outcome.messages
        wrong = list(outcome.wrong)
        if open_fds() != fds:
            wrong.append(f"{open_fds() - fds} descriptors are left open")
        if resident_bytes() - memory > GROWTH:
            wrong.append(f"the process has grown by {resident_bytes() - memory >> 20} MiB")
        if wrong:
            print(f"\nseed {seed} of {dialect.name} went wrong:", *wrong, sep="\n  ")
            print(f"again: scripts/fuzz --dialect {dialect.name} --seed {seed} --messages {SLICE}")
            return 1
        rate = done / (time.monotonic() - begin)
        grown = resident_bytes() - memory >> 10
        told = f"{done:,} messages, {rate:,.0f}/s, seed {seed}, {grown:,} KiB more"
        if sys.stdout.isatty():
            print(f"\r{told}", end="", flush=True)
        seed += 1
    print(f"\r{told}" if sys.stdout.isatty() else told)
    return _pass(dialects, arguments.inputs, arguments.seed) or _read(arguments.inputs, arguments.seed)


def _pass(dialects: list[Dialect], messages: int, seed: int) -> int:
    """Let an interposer pass on so many messages of each dialect."""
    for dialect in dialects:
        fds = open_fds()
        outcome = fuzzing_interposer.campaign(dialect, messages, seed)
        gc.collect()
        if open_fds() != fds:
            outcome.wrong.append(f"{open_fds() - fds} descriptors are left open")
        if outcome.wrong:
            print(f"an interposer: seed {seed} of {dialect.name} went wrong:", *outcome.wrong, sep="\n  ")
            print(f"again: scripts/fuzz --messages 0 --dialect {dialect.name} --seed {seed} --inputs {messages}")
            return 1
        print(f"through an interposer, {dialect.name}: {outcome.inputs:,} messages")
    return 0


def _read(inputs: int, seed: int) -> int:
    """Let each reader read so many inputs."""
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many (1,000,000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--inputs", type=int, default=1000, help="how many for each reader (1,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the first campaign (1)")
    parser.add_argument("--dialect", choices=list(DIALECTS), help="one dialect instead of all")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
