"""`scripts/fresh`: a command of this checkout, on a machine that has nothing but a new Debian and its Python."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import click

from tests.fresh.machine import USER, fresh_machine
from tests.fresh.root_file_system import root_file_system
from userdev.errors import UserError

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--suite", default="bookworm", show_default=True, help="the Debian: bookworm, trixie, forky, sid")
@click.option("--user", is_flag=True, help="as an ordinary user instead of as root")
@click.option("--keep", is_flag=True, help="leave the machine's files where they are")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def main(suite: str, user: bool, keep: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND (scripts/test) in this checkout on a machine where nothing was installed by hand."""
    name = USER if user else "root"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the machine's files are removed then too
    try:
        base = root_file_system(suite, progress=say)
        with fresh_machine(base, CHECKOUT, user=name, keep=keep) as machine:
            say(f"Debian {suite}, as {name}: {' '.join(command or ('scripts/test',))}")
            status = machine.run(command or ("scripts/test",))
            if results := machine.keep_results(CHECKOUT / "results" / f"fresh-{suite}-{name}"):
                say(f"evidence: {os.path.relpath(results)}")
    except UserError as error:
        say(f"error: {error}" + f"\n  {error.hint}" * bool(error.hint))
        sys.exit(2)
    sys.exit(status)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
