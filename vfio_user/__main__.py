"""The `vfio-user` command, also as `python -m vfio_user`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from userdev.leaving import leave
from userdev.printable import show_controls


def main() -> None:
    """Run `vfio-user`."""

    def serve(words: Sequence[str]) -> bool:
        from vfio_user.server.command_line import SERVING

        return SERVING.run_plain(words)

    start(serve, "main")


def start(serve: Callable[[Sequence[str]], bool], otherwise: str) -> NoReturn:
    """Have a plain `serve` done at once, and all else by this function of `vfio_user.cli` (decision 52); then end.

    The collector is off until all is loaded: that stays, and to look for garbage in it is an eighth of the start.
    """
    show_controls()
    gc.disable()
    try:
        if sys.argv[1:2] == ["serve"] and serve(sys.argv[2:]):
            leave()
    except (Exception, KeyboardInterrupt) as error:
        from vfio_user.cli import end_with

        end_with(error)
    import vfio_user.cli

    try:
        getattr(vfio_user.cli, otherwise)()
    except SystemExit as end:
        if isinstance(end.code, int):
            leave(end.code)
        raise
    leave()


if __name__ == "__main__":
    main()
